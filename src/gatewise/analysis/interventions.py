"""What gates are worth, by taking them away or exchanging them and counting again."""

# pyright: basic

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.patterns import GatePatterns
from gatewise.analysis.recording import gates_bypassed
from gatewise.gaternet import GaterNet
from gatewise.insertion import gates_in
from gatewise.places import evaluation_mode
from gatewise.training import pixel_hits

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Removal:
    """What leaving gates out costs.

    Attributes:
        paths: of the gates that were left out.
        images: how many were counted.
        accuracy_with: of the network as it is.
        accuracy_without: of the network without them.
    """

    paths: tuple[str, ...]
    images: int
    accuracy_with: float
    accuracy_without: float


def idle_gates(summaries: Iterable[GateSummary], share: float = 0.95) -> tuple[str, ...]:
    """Return the gates of whose values at least this share is near the identity."""
    _validation.check_number_between(0, 1, share=share)
    return tuple(summary.path for summary in summaries if summary.near_identity >= share)


def removal_cost(model: nn.Module, paths: Sequence[str], batches: Batches) -> Removal:
    """Return the accuracy of `model` with and without some of its gates, on the same batches, in eval mode.

    Where labels are masks it is the share of rightly classified pixels, the mean over images.

    A path that is no gate is refused with ValueError, and no batch at all too.
    """
    gates = gates_in(model)
    chosen = {_validation.check_one_of("gate", path, gates): gates[path] for path in paths}
    device = next(model.parameters()).device
    hits = torch.zeros(2, dtype=torch.float64)
    count = 0
    with evaluation_mode(model), torch.no_grad():
        for images, labels in batches:
            right = _right(model(images.to(device)), labels).sum()
            hits[0] += right
            if chosen:  # without any, the network is the same
                with gates_bypassed(chosen):
                    right = _right(model(images.to(device)), labels).sum()
            hits[1] += right
            count += len(labels)
    if not count:
        raise errors.InvalidValueError("there are no images to count; an iterator may be used up already.")
    return Removal(tuple(paths), count, *(hits / count).tolist())


@dataclass(frozen=True)
class Exchange:
    """What gates of another class cost.

    Attributes:
        classes: which were tried, K of them.
        own: accuracy on their images with each image's own gates.
        accuracy: on the images of each class (row) with the typical gates of each (column), (K, K). A class's typical
            gates are those that open for more than half of its images.
    """

    classes: tuple[int, ...]
    own: float
    accuracy: Tensor

    @property
    def same(self) -> float:
        """Accuracy with the typical gates of an image's own class, the mean over classes."""
        return float(self.accuracy.diagonal().mean())

    @property
    def other(self) -> float:
        """Accuracy with those of another class, the mean over pairs of classes; not a number for a single class."""
        return float(self.accuracy[~torch.eye(len(self.classes), dtype=torch.bool)].mean())


def exchange_gates(net: GaterNet, patterns: GatePatterns, batches: Batches, most: int = 20) -> Exchange:
    """Return the accuracy on the images of each class with the typical gates of each class.

    Each image is run once for each class, so only the first `most` classes that have images are tried.
    """
    _validation.check_integer_at_least(1, most=most)
    classes = patterns.images_by_class.nonzero().flatten()[:most]
    device = next(net.parameters()).device
    typical = (patterns.rate_by_class[classes] > 0.5).float().to(device)
    place = torch.full_like(patterns.images_by_class, -1)
    place[classes] = torch.arange(len(classes))
    hits, counts = torch.zeros(len(classes), len(classes) + 1, dtype=torch.float64), torch.zeros(len(classes))
    with evaluation_mode(net), torch.no_grad():
        for batch, of in batches:
            chosen = place[of.cpu()] >= 0
            images, labels = batch[chosen.to(batch.device)].to(device), of.cpu()[chosen]
            if not len(labels):
                continue
            counts += place[labels].bincount(minlength=len(classes))
            patterns_to_try = [None, *(gates.expand(len(images), -1) for gates in typical)]
            for column, gates in enumerate(patterns_to_try):
                right = _right(net(images, gates=gates), labels)
                hits[:, column] += place[labels[right]].bincount(minlength=len(classes))
    own, accuracy = hits[:, 0].sum() / counts.sum(), hits[:, 1:] / counts.unsqueeze(1)
    return Exchange(tuple(classes.tolist()), float(own), accuracy)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return for each image whether it was classified rightly, or of which share the pixels that count were, (N,)."""
    if labels.dim() == 1:
        return logits.argmax(1).cpu() == labels.cpu()
    return pixel_hits(logits, labels.to(logits.device)).cpu()
