"""What gates are worth, by taking them away or exchanging them and counting again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise import _checks
from gatewise.analysis.gate_stats import GateSummary
from gatewise.analysis.patterns import GatePatterns
from gatewise.analysis.recording import gates_bypassed
from gatewise.gaternet import GaterNet
from gatewise.insertion import gates_in
from gatewise.places import evaluation_mode

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
    _checks.number_between(0, 1, share=share)
    return tuple(summary.path for summary in summaries if summary.near_identity >= share)


def removal_cost(model: nn.Module, paths: Sequence[str], batches: Batches) -> Removal:
    """Return the accuracy of `model` with and without some of its gates, on the same batches, in eval mode.

    A path that is no gate is refused with ValueError, and no batch at all too.
    """
    gates = gates_in(model)
    chosen = {_checks.one_of("gate", path, gates): gates[path] for path in paths}
    device = next(model.parameters()).device
    hits = torch.zeros(2, dtype=torch.long)
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
        raise _checks.InvalidValueError("there are no images to count; an iterator may be used up already.")
    return Removal(tuple(paths), count, *(hits.double() / count).tolist())


def accuracy_with_gates_of(net: GaterNet, patterns: GatePatterns, batches: Batches) -> Tensor:
    """Return the accuracy on the images of each class with the typical gates of each class: (of images, of gates).

    A class's typical gates are those that open for more than half of its images. The diagonal is a class with its own;
    what lies beside it is lost or kept by exchanging the gates of classes. A class without images gives rows that are
    not numbers.
    """
    classes = len(patterns.images_by_class)
    device = next(net.parameters()).device
    typical = (patterns.rate_by_class > 0.5).float().to(device)
    hits, counts = torch.zeros(classes, classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    with evaluation_mode(net), torch.no_grad():
        for images, labels in batches:
            counts += labels.cpu().bincount(minlength=classes)
            for number, gates in enumerate(typical):
                right = _right(net(images.to(device), gates=gates.expand(len(images), -1)), labels)
                hits[:, number] += labels.cpu()[right].bincount(minlength=classes)
    return hits / counts.unsqueeze(1)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1).cpu() == labels.cpu()
