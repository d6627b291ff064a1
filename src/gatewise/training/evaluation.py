"""Evaluate a network on a split: its scores and, for a GaterNet, its open fraction and executed MACs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.gaternet import depend_on_image, run_with_gates
from gatewise.training.distributed import Processes
from gatewise.training.tasks import BatchResults


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        scores: results of the task: its main score, further scores and the loss.
        work: of a GaterNet, means of open fraction and executed MACs, and the fraction of the gates that depend on the
            image; {} for other networks.
        record: tensors with one row per image, as `BatchResults.record` returns them.
        images: number of images.
        opened: number of images that opened each gate, (gates,); None without a gater.
        warnings: lines about gates that do not learn.
    """

    scores: dict[str, Any]
    work: dict[str, float]
    record: dict[str, Tensor]
    images: int
    opened: Tensor | None
    warnings: tuple[str, ...] = ()

    @property
    def results(self) -> dict[str, Any]:
        """Scores and work."""
        return {**self.scores, **self.work}


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
        output, gates = run_with_gates(model, images)
        if gates is not None:
            net: Any = model
            work.append(torch.stack([net.open_fraction(gates).double(), net.executed_macs(gates)], 1))
            opened.append((gates > 0.5).sum(0))
        tally.update(output, labels)
    if processes is not None and processes.count > 1:
        tally.merge(processes)
        parts = processes.all_gather_object((count, [w.cpu() for w in work], [o.cpu() for o in opened]))
        count = sum(part[0] for part in parts)
        work, opened = ([tensor for part in parts for tensor in part[index]] for index in (1, 2))
    means: dict[str, float] = {}
    if work:
        means["open_fraction"], means["executed_macs"] = torch.cat(work).mean(0).tolist()
    total = torch.stack(opened).sum(0) if opened else None
    if total is not None:
        means["dependent_gates"] = float(depend_on_image(total, count).double().mean())
    return Evaluation(tally.results(), means, tally.record(), count, total)
