"""Quantise exported files, and score them before and after."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise.exporting.agreement import agreement, as_pair
from gatewise.exporting.formats.registry import Exported
from gatewise.training.runs import Run, stored_task


@dataclass(frozen=True)
class Int8:
    """What quantisation needs.

    Attributes:
        ranges: batches of images over which the range of each activation is measured.
        compared: images on which the files before and after are compared.
        run: run whose score is computed before and after.
    """

    ranges: Iterable[Tensor]
    compared: Iterable[Tensor]
    run: Run | None = None

    def results(self, plain: Exported, quantised: Exported) -> dict[str, Any]:
        """Return how far a file is from that before: difference of the logits, other gates, and the scores of a run."""
        found = agreement(plain, quantised, self.compared)
        differences = {"int8_difference": found["difference"], "other_gates": found["flipped"] / found["images"]}
        if self.run is None:
            return differences
        scores = {"float32": _score(plain, self.run), "int8": _score(quantised, self.run)}
        return {"score": self.run.score.name, **scores, **differences}


def _score(exported: Exported, run: Run) -> float:
    """Return the main metric of the run on all its validation images, from the output of an exported file."""
    evaluation = stored_task(exported.file, exported.details).new_results(torch.device("cpu"))
    for images, labels in run.batches():
        evaluation.update(as_pair(exported(images))[0], labels)
    return evaluation.results()[run.score.name]
