"""Measure the accuracy of a network without some of its gates, or with the gates of another class."""

# pyright: basic

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.patterns import GatePatterns
from gatewise.analysis.recording import gates_bypassed
from gatewise.core import _validation
from gatewise.core.types import main_output
from gatewise.gaternet import GaterNet
from gatewise.graph import evaluation_mode
from gatewise.insertion.insert import gates_in

Batches = Iterable[tuple[Tensor, Tensor]]
Hits = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Removal:
    """Accuracy of a network with and without some of its gates.

    Attributes:
        paths: paths of the gates that were removed.
        images: number of images.
        accuracy_with: accuracy with all gates.
        accuracy_without: accuracy without these gates.
    """

    paths: tuple[str, ...]
    images: int
    accuracy_with: float
    accuracy_without: float


def idle_gates(summaries: Iterable[GateSummary], share: float = 0.95) -> tuple[str, ...]:
    """Return the paths of the gates with at least this share of values near the identity."""
    _validation.check_number_between(0, 1, share=share)
    return tuple(summary.path for summary in summaries if summary.near_identity >= share)


def same_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether the largest logit of each image is that of its class: (N, K), (N,) -> (N,)."""
    return logits.argmax(1) == labels


def removal_cost(model: nn.Module, paths: Sequence[str], batches: Batches, hits: Hits = same_class) -> Removal:
    """Return the accuracy of `model` with and without some of its gates, on the same batches, in eval mode.

    Args:
        model: the network.
        paths: paths of the gates.
        batches: images with labels.
        hits: function from logits and labels to which images are correct, or to which fraction, (N,).

    Raises:
        InvalidValueError: if a path is not the path of a gate, or if there are no batches.
    """
    gates = gates_in(model)
    chosen = {_validation.check_one_of("gate", path, gates): gates[path] for path in paths}
    device = next(model.parameters()).device
    totals = torch.zeros(2, dtype=torch.float64)
    count = 0
    with evaluation_mode(model), torch.no_grad():
        for images, cpu_labels in batches:
            labels = cpu_labels.to(device)
            correct = hits(main_output(model(images.to(device))), labels).sum().cpu()
            totals[0] += correct
            if chosen:  # otherwise the network is the same
                with gates_bypassed(chosen):
                    correct = hits(main_output(model(images.to(device))), labels).sum().cpu()
            totals[1] += correct
            count += len(labels)
    if not count:
        raise errors.InvalidValueError("there are no images to count; an iterator may be used up already.")
    return Removal(tuple(paths), count, *(totals / count).tolist())


@dataclass(frozen=True)
class Exchange:
    """Accuracy of a GaterNet with the gates of another class.

    Attributes:
        classes: the K classes that were tried.
        own: accuracy on their images with each image's own gates.
        accuracy: accuracy on the images of each class (row) with the typical gates of each class (column), (K, K).
            The typical gates of a class are those that open for more than half of its images.
    """

    classes: tuple[int, ...]
    own: float
    accuracy: Tensor

    @property
    def same(self) -> float:
        """Accuracy with the typical gates of an image's own class, averaged over classes."""
        return float(self.accuracy.diagonal().mean())

    @property
    def other(self) -> float:
        """Accuracy on images of one class when the gates are fixed to the typical gates of another class.

        It is averaged over ordered pairs of different classes, and NaN if there is only one class.
        """
        return float(self.accuracy[~torch.eye(len(self.classes), dtype=torch.bool)].mean())


def exchange_gates(
    net: GaterNet, patterns: GatePatterns, batches: Batches, hits: Hits = same_class, *, most: int = 20
) -> Exchange:
    """Return the accuracy on the images of each class with the typical gates of each class.

    Each image runs once for each class, so only the first `most` classes with images are tried.

    Args:
        net: the network.
        patterns: counts of its gates on the same images.
        batches: images with labels.
        hits: as for `removal_cost`.
        most: number of classes.
    """
    _validation.check_integer_at_least(1, most=most)
    classes = patterns.images_by_class.nonzero().flatten()[:most]
    device = next(net.parameters()).device
    typical = (patterns.rate_by_class[classes] > 0.5).float().to(device)
    place = torch.full_like(patterns.images_by_class, -1)
    place[classes] = torch.arange(len(classes))
    totals, counts = torch.zeros(len(classes), len(classes) + 1, dtype=torch.float64), torch.zeros(len(classes))
    with evaluation_mode(net), torch.no_grad():
        for batch, batch_labels in batches:
            chosen = place[batch_labels.cpu()] >= 0
            images, labels = batch[chosen.to(batch.device)].to(device), batch_labels.cpu()[chosen]
            if not len(labels):
                continue
            counts += place[labels].bincount(minlength=len(classes))
            patterns_to_try = [None, *(gates.expand(len(images), -1) for gates in typical)]
            for column, gates in enumerate(patterns_to_try):
                correct = hits(main_output(net(images, gates=gates)), labels.to(device)).cpu().double()
                totals[:, column] += place[labels].bincount(weights=correct, minlength=len(classes))
    own, accuracy = totals[:, 0].sum() / counts.sum(), totals[:, 1:] / counts.unsqueeze(1)
    return Exchange(tuple(classes.tolist()), float(own), accuracy)
