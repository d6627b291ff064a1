"""What a gater does over a data set: numbers only, gathered batch by batch in bounded memory."""

# pyright: basic

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise import _validation, errors
from gatewise.gaternet import GaterNet, Site
from gatewise.places import evaluation_mode

NEARLY = 0.01  # a gate that opens for fewer images than this share, or all but so many, is nearly constant
_LEARNED_DIMENSIONS = 400  # of PCA before t-SNE, as in the paper


@dataclass(frozen=True)
class UnitKinds:
    """How the gates of one site behave: numbers of gates.

    Attributes:
        name: the site's convolution.
        always_open: open for every image.
        always_closed: closed for every image.
        dependent: open for some.
    """

    name: str
    always_open: int
    always_closed: int
    dependent: int


class GatePatterns:
    """Counts of open gates over images, by class, and a sample of whole patterns.

    Args:
        sites: of the net, which give gates their units.
        classes: how many classes there are.
        keep: how many whole patterns are kept for `embedding`, spread evenly by chance over all images.

    >>> net = GaterNet(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Conv2d(2, 2, 3)), image_size=(8, 8))
    >>> patterns = GatePatterns(net.sites, classes=2)
    >>> patterns.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]), torch.tensor([10.0, 20.0]))
    >>> patterns.kinds(), patterns.executed_macs
    ([UnitKinds(name='0', always_open=1, always_closed=0, dependent=1)], 15.0)
    """

    def __init__(self, sites: Sequence[Site], classes: int, keep: int = 2000) -> None:
        _validation.check_integer_at_least(1, classes=classes, keep=keep)
        self.sites, self.keep = tuple(sites), keep
        gates = sites[-1].first + sites[-1].gates
        self.images_by_class = torch.zeros(classes, dtype=torch.long)
        self.opened_by_class = torch.zeros(classes, gates, dtype=torch.long)
        self.images_by_open_gates = torch.zeros(gates + 1, dtype=torch.long)
        self._macs = 0.0
        self._patterns = torch.zeros(0, gates, dtype=torch.bool)
        self._labels = torch.zeros(0, dtype=torch.long)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._places = torch.zeros(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(0)

    def update(self, gates: Tensor, labels: Tensor, executed_macs: Tensor) -> None:
        """Count one batch: gates (N, c) of 0 and 1, labels (N,), multiply-adds of each image (N,)."""
        opened, labels = gates.detach().cpu() > 0.5, labels.cpu()
        places = self.images + torch.arange(len(labels))
        classes = len(self.images_by_class)
        self.images_by_class += labels.bincount(minlength=classes)
        self.opened_by_class.index_add_(0, labels, opened.long())
        self.images_by_open_gates += opened.sum(1).bincount(minlength=len(self.images_by_open_gates))
        self._macs += float(executed_macs.double().sum())
        keys = torch.rand(len(labels), generator=self._generator, dtype=torch.float64)
        keys, order = torch.cat([self._keys, keys]).sort()
        order = order[: self.keep]
        self._keys = keys[: self.keep]
        self._patterns = torch.cat([self._patterns, opened])[order]
        self._labels = torch.cat([self._labels, labels])[order]
        self._places = torch.cat([self._places, places])[order]

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self.images_by_class.sum())

    @property
    def kept(self) -> Tensor:
        """Which images' whole patterns are kept: their numbers in the order of counting, (K,), as in `embedding`."""
        return self._places

    @property
    def executed_macs(self) -> float:
        """Mean multiply-adds of an image, the gater's own included."""
        return self._macs / max(1, self.images)

    @property
    def images_by_gate(self) -> Tensor:
        """How many images opened each gate, (c,)."""
        return self.opened_by_class.sum(0)

    @property
    def rate_by_class(self) -> Tensor:
        """Share of each class's images that opened each gate, (classes, c); 0 for a class without images."""
        return self.opened_by_class / self.images_by_class.clamp(min=1).unsqueeze(1)

    def kinds(self) -> list[UnitKinds]:
        """Return, unit by unit, how many gates are always open, always closed, and dependent on the image."""
        rows = []
        for site in self.sites:
            counts = self.images_by_gate[site.first : site.first + site.gates]
            open_, closed = int((counts == self.images).sum()), int((counts == 0).sum())
            rows.append(UnitKinds(site.name, open_, closed, site.gates - open_ - closed))
        return rows

    def open_shares(self) -> list[float]:
        """Return, unit by unit, the share of gates that an image opens in the mean."""
        shares = self.images_by_gate.double() / max(1, self.images)
        return [float(shares[site.first : site.first + site.gates].mean()) for site in self.sites]

    def nearly_constant(self) -> int:
        """Return how many dependent gates open for less than 1 % or more than 99 % of the images."""
        share = self.images_by_gate / max(1, self.images)
        dependent = (share > 0) & (share < 1)
        return int((dependent & ((share < NEARLY) | (share > 1 - NEARLY))).sum())

    def open_gates(self) -> tuple[int, float, int]:
        """Return the smallest, mean and largest number of gates that an image opens."""
        numbers = self.images_by_open_gates.nonzero().flatten()
        mean = float((self.images_by_open_gates * torch.arange(len(self.images_by_open_gates))).sum()) / self.images
        return int(numbers.min()), mean, int(numbers.max())

    def embedding(self) -> tuple[Tensor, Tensor]:
        """Return a point in the plane for each kept pattern, (K, 2), and its label, (K,).

        Patterns are projected on at most 400 principal components, then laid out by t-SNE, as in the paper. Fewer than
        four patterns, a single gate, or patterns that are all the same are refused with ValueError.
        """
        decomposition = _validation.import_optional("sklearn.decomposition", "PCA")
        manifold = _validation.import_optional("sklearn.manifold", "t-SNE")
        patterns = self._patterns.double()
        dimensions = min(_LEARNED_DIMENSIONS, *patterns.shape)
        if len(patterns) < 4 or not patterns.var(0).any() or dimensions < 2:
            raise errors.InvalidValueError(
                f"{len(patterns)} patterns of which {len(patterns.unique(dim=0))} differ cannot be laid out; "
                f"expected at least four images whose gates are not all the same, and two gates."
            )
        components = decomposition.PCA(dimensions, random_state=0).fit_transform(patterns.numpy())
        perplexity = min(30.0, (len(patterns) - 1) / 3)
        points = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
        return torch.from_numpy(points), self._labels


def record_patterns(
    net: GaterNet, batches: Iterable[tuple[Tensor, Tensor]], classes: int, keep: int = 2000
) -> GatePatterns:
    """Run `net` in eval mode over batches of images and labels and return what its gates did.

    Training flags are afterwards as before, whatever happens. No batch at all is refused with ValueError.
    """
    patterns: Any = GatePatterns(net.sites, classes, keep)
    device = next(net.parameters()).device
    with evaluation_mode(net), torch.no_grad():
        for images, labels in batches:
            _, gates = net.forward_with_gates(images.to(device))
            patterns.update(gates, labels, net.executed_macs(gates))
    if not patterns.images:
        raise errors.InvalidValueError("there are no images to record; an iterator may be used up already.")
    return patterns
