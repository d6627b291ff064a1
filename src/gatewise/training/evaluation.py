"""What a trained network does on a split: its score, and the work of one that chooses its filters."""

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
    """What was found.

    Attributes:
        results: score, loss and the like; for a GaterNet also the means of its open fraction and executed MACs.
        record: of each image.
        images: how many there were.
        opened: how many of them opened each gate, (gates,); None where there is no gater.
    """

    results: dict[str, Any]
    record: dict[str, Tensor]
    images: int
    opened: Tensor | None


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], tally: BatchResults, processes: Processes | None = None
) -> Evaluation:
    """Run a network in eval mode over images; it is left in that mode.

    Where processes are given, each runs its own images, and all return what was found over the images of all.
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
