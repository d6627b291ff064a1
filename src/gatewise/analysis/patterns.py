"""Statistics of a gater over a data set, accumulated batch by batch in bounded memory."""

# pyright: basic

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.gaternet import GaterNet, Site, depend_on_image
from gatewise.graph import evaluation_mode

_LEARNED_DIMENSIONS = 400  # of PCA before t-SNE, as in the GaterNet paper (Chen et al., CVPR 2019)


@dataclass(frozen=True)
class UnitKinds:
    """Numbers of constant and of image-dependent gates of one gated layer.

    Attributes:
        name: path of the convolution.
        always_open: number of gates that are open for at least 99.5 % of the images.
        always_closed: number of gates that are open for at most 0.5 % of the images.
        dependent: number of the other gates, which depend on the image.
    """

    name: str
    always_open: int
    always_closed: int
    dependent: int


class GatePatterns:
    """Accumulate counts of open gates over images, by class, and a random sample of gate vectors.

    Args:
        sites: gated layers of the GaterNet (`GaterNet.sites`).
        classes: number of classes.
        keep: number of gate vectors kept for `embedding`, a uniform sample of all images.

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
        """Add one batch: gates (N, c) of 0 and 1, labels (N,), executed multiply-adds of each image (N,)."""
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
        """Number of images."""
        return int(self.images_by_class.sum())

    @property
    def kept(self) -> Tensor:
        """Indices of the images whose gate vectors are kept, (K,), in the order of `embedding`."""
        return self._places

    @property
    def executed_macs(self) -> float:
        """Mean executed multiply-adds per image, including those of the gater."""
        return self._macs / max(1, self.images)

    @property
    def images_by_gate(self) -> Tensor:
        """Number of images that opened each gate, (c,)."""
        return self.opened_by_class.sum(0)

    @property
    def rate_by_class(self) -> Tensor:
        """Share of the images of each class that opened each gate, (classes, c); 0 for a class without images."""
        return self.opened_by_class / self.images_by_class.clamp(min=1).unsqueeze(1)

    def kinds(self) -> list[UnitKinds]:
        """Return the numbers of gates that are always open, always closed and dependent on the image, by layer."""
        dependent, mostly = self.dependent, 2 * self.images_by_gate > self.images
        rows = []
        for site in self.sites:
            own = slice(site.first, site.first + site.gates)
            constant = mostly[own][~dependent[own]]
            opened = int(constant.sum())
            rows.append(UnitKinds(site.name, opened, len(constant) - opened, site.gates - len(constant)))
        return rows

    @property
    def dependent(self) -> Tensor:
        """Whether each gate is open for more than 0.5 % and fewer than 99.5 % of the images, (c,)."""
        return depend_on_image(self.images_by_gate, self.images)

    def open_shares(self) -> list[float]:
        """Return the mean share of gates that an image opens, by layer."""
        shares = self.images_by_gate.double() / max(1, self.images)
        return [float(shares[site.first : site.first + site.gates].mean()) for site in self.sites]

    def nearly_constant(self) -> int:
        """Return the number of gates that some images open, but at most 0.5 %, or that all but 0.5 % open."""
        some = (self.images_by_gate > 0) & (self.images_by_gate < self.images)
        return int((some & ~self.dependent).sum())

    def open_gates(self) -> tuple[int, float, int]:
        """Return the smallest, mean and largest number of gates that an image opens."""
        numbers = self.images_by_open_gates.nonzero().flatten()
        mean = float((self.images_by_open_gates * torch.arange(len(self.images_by_open_gates))).sum()) / self.images
        return int(numbers.min()), mean, int(numbers.max())

    def embedding(self) -> tuple[Tensor, Tensor]:
        """Embed the kept gate vectors in 2D: PCA with at most 400 components, then t-SNE, as in the GaterNet paper.

        Returns:
            Points (K, 2) and labels (K,).

        Raises:
            InvalidValueError: if there are fewer than four vectors, only one gate, or only equal vectors.
        """
        decomposition = _validation.import_optional("sklearn.decomposition", "PCA")
        manifold = _validation.import_optional("sklearn.manifold", "t-SNE")
        patterns = self._patterns.double()
        dimensions = min(_LEARNED_DIMENSIONS, *patterns.shape)
        if len(patterns) < 4 or not patterns.var(0).any() or dimensions < 2:
            raise errors.InvalidValueError(
                f"{len(patterns)} gate vectors of which {len(patterns.unique(dim=0))} differ cannot be embedded in 2D; "
                f"expected at least four images whose gates are not all the same, and two gates."
            )
        components = decomposition.PCA(dimensions, random_state=0).fit_transform(patterns.numpy())
        perplexity = min(30.0, (len(patterns) - 1) / 3)
        points = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
        return torch.from_numpy(points), self._labels


def record_patterns(
    net: GaterNet, batches: Iterable[tuple[Tensor, Tensor]], classes: int, keep: int = 2000
) -> GatePatterns:
    """Run `net` in eval mode over batches of images and labels and count its open gates; restore the training flags.

    Raises:
        InvalidValueError: if there are no batches.
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
