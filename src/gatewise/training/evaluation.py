"""Evaluate a network on a split: its scores and, for a GaterNet, its open fraction and executed MACs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.gaternet import GaterNet
from gatewise.training.distributed import Processes
from gatewise.training.tasks import BatchResults


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        results: scores and loss; for a GaterNet also the means of its open fraction and executed MACs.
        record: tensors with one row per image, as `BatchResults.record` returns them.
        images: number of images.
        opened: number of images that opened each gate, (gates,); None without a gater.
    """

    results: dict[str, Any]
    record: dict[str, Tensor]
    images: int
    opened: Tensor | None


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], tally: BatchResults, processes: Processes | None = None
) -> Evaluation:
    """Evaluate a network on batches of images and labels; afterwards it is in eval mode.

    Args:
        model: a network, or a `GaterNet`.
        batches: images (B, C, H, W) with labels (B,) or (B, H, W).
        tally: empty results of the task, updated here.
        processes: if given, each process evaluates its own images, and all return the result over all images.
    """
    model.eval()
    work, opened, count = list[Tensor](), list[Tensor](), 0
    for images, labels in batches:
        count += len(images)
        if isinstance(model, GaterNet):
            output, gates = model.forward_with_gates(images)
            work.append(torch.stack([model.open_fraction(gates).double(), model.executed_macs(gates)], 1))
            opened.append((gates > 0.5).sum(0))
        else:
            output = model(images)
        tally.update(output, labels)
    if processes is not None and processes.count > 1:
        tally.merge(processes)
        parts = processes.all_gather_object((count, [w.cpu() for w in work], [o.cpu() for o in opened]))
        count = sum(part[0] for part in parts)
        work, opened = ([tensor for part in parts for tensor in part[index]] for index in (1, 2))
    results = tally.results()
    if work:
        results["open_fraction"], results["executed_macs"] = torch.cat(work).mean(0).tolist()
    return Evaluation(results, tally.record(), count, torch.stack(opened).sum(0) if opened else None)
