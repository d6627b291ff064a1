"""Regression: one or more numbers per image."""

# pyright: basic

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import statistics
from gatewise.data import Dataset, SegmentationDataset
from gatewise.gaternet.teaching import squared_distance
from gatewise.training.tasks.base import BatchResults, Mistake, Score, Task
from gatewise.training.tasks.registry import register_task

MAE = Score("mae", "mean absolute error", is_fraction=False, higher_is_better=False, lowest=0.0)
RMSE = Score("rmse", "root mean squared error", is_fraction=False, higher_is_better=False, lowest=0.0)
R2 = Score("r2", "R²", is_fraction=False, highest=1.0)
_TARGETS = "targets"  # entry of config.json


@register_task("regress")
class Regression(Task):
    """Predict one or more numbers per image with the smooth L1 loss; the score is the mean absolute error.

    The network's outputs are the numbers minus their mean over the training images, divided by their standard
    deviation; scores, predictions and exported files are in the unit of the labels. Scores are means over numbers;
    R² is 1 - sum of squared errors / sum of squared deviations from the mean.

    Args:
        classes: names of the numbers.

    Attributes:
        mean: mean of each number, (numbers,).
        std: standard deviation of each number, (numbers,).
    """

    summary = "numbers per image"
    scores = (MAE, RMSE, R2)
    labels = "number"
    pipeline_tag = "image-classification"  # the hub has no tag for numbers, and puts them there
    class_per_image = False
    output = "values"
    outputs_are = "numbers"
    hit = MAE
    groups_are = ("range", "ranges")
    use = 'values = logits * torch.tensor(net.config["targets"]["std"]) + torch.tensor(net.config["targets"]["mean"])'

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.mean, self.std = torch.zeros(self.outputs), torch.ones(self.outputs)

    @property
    def image_groups(self) -> tuple[str, ...]:
        """Four ranges of each number, divided at its mean and one standard deviation below and above."""
        ranges = ("below {:.4g}", "{:.4g} to {:.4g}", "{:.4g} to {:.4g}", "above {:.4g}")
        return tuple(
            f"{name} {text.format(*bounds[max(0, part - 1) : part + 1])}"
            for name, bounds in zip(self.classes, self._bounds().tolist(), strict=True)
            for part, text in enumerate(ranges)
        )

    def groups_of(self, labels: Tensor) -> Tensor:
        parts = (labels.cpu().unsqueeze(2) >= self._bounds()).sum(2)  # (N, numbers)
        return nn.functional.one_hot(parts, 4).flatten(1).to(labels.device)

    def _bounds(self) -> Tensor:
        """Return the bounds of the ranges of each number, (numbers, 3)."""
        return torch.stack([self.mean - self.std, self.mean, self.mean + self.std], 1)

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:
        labels: Tensor = dataset.train.labels  # type: ignore[union-attr]  # pyright: ignore
        self.mean = labels.mean(0)
        self.std = labels.std(0, correction=0)
        if not (self.std > 0).all():
            number = int((self.std <= 0).nonzero()[0])
            raise errors.DataError(
                f"{dataset.name}: all training images have the same {self.classes[number]}, {self.mean[number]:g}. "
                f"Choose another --label-column."
            )

    def stored(self) -> dict[str, Any]:
        return {_TARGETS: {"mean": self.mean.tolist(), "std": self.std.tolist()}}

    def restore(self, config: Mapping[str, Any]) -> None:
        if (targets := config.get(_TARGETS)) is not None:
            self.mean, self.std = (torch.tensor(targets[name]) for name in ("mean", "std"))

    def readable(self, logits: Tensor) -> Tensor:
        """Return the numbers in the unit of the labels, (N, numbers)."""
        return logits.float() * self.std.to(logits.device) + self.mean.to(logits.device)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        standardised = (targets - self.mean.to(targets.device)) / self.std.to(targets.device)
        return nn.functional.smooth_l1_loss(logits.float(), standardised)

    def translated(self, logits: Tensor, source: Task) -> Tensor:
        assert isinstance(source, Regression)
        scale, shift = source.std / self.std, (source.mean - self.mean) / self.std
        return logits * scale.to(logits.device) + shift.to(logits.device)

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return squared_distance(logits, teacher, temperature)

    def predicted(self, logits: Tensor) -> Tensor:
        return self.readable(logits)

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the absolute error of each image, the mean over numbers: (N, K), (N, K) -> (N,)."""
        return (self.predicted(logits) - labels).abs().mean(1)

    def constant(self, dataset: Dataset | SegmentationDataset) -> tuple[str, Tensor] | None:
        labels: Tensor = dataset.train.labels  # type: ignore[union-attr]  # pyright: ignore
        middle, name = (labels.median(0).values, "median") if self.score is MAE else (labels.mean(0), "mean")
        shown = ", ".join(f"{value:.4g}" for value in middle.tolist())
        return f"the {name} of the labels, {shown},", (middle - self.mean) / self.std

    def new_results(self, device: torch.device) -> BatchResults:  # noqa: ARG002
        return _RegressionResults(self)

    def why_undefined(self) -> str:
        return (
            f"all validation images have the same number, so {self.score.title} is not defined. Choose another split."
        )

    def by_image(self, record: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([record["predictions"], record["labels"]], 2).double()

    def bootstrap(self, images: Tensor, baseline: Tensor, groups: Tensor | None = None) -> statistics.Estimate:
        return statistics.redrawn_bootstrap(partial(number_score, self.score), images, baseline, groups)

    def mistakes(self, record: Mapping[str, Tensor]) -> list[Mistake]:
        """Return all images, those with the largest error first, in standard deviations and averaged over numbers."""
        errors_ = ((record["predictions"] - record["labels"]).abs() / self.std).mean(1)
        return [
            Mistake(index, _shown(record["labels"][index]), _shown(record["predictions"][index]), float(errors_[index]))
            for index in errors_.argsort(descending=True).tolist()
        ]

    def prediction(self, logits: Tensor, picture: Any, *, top_k: int, out: Path | None) -> dict[str, Any]:  # noqa: ARG002
        values = dict(zip(self.classes, self.readable(logits).tolist(), strict=True))
        return {"value": values if len(values) > 1 else next(iter(values.values()))}

    @classmethod
    def describe(cls, prediction: Mapping[str, Any]) -> str:
        value = prediction["value"]
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {number:.4g}" for name, number in value.items())
        return f"{value:.4g}"


def _shown(numbers: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers.tolist())


class _RegressionResults(BatchResults):
    def __init__(self, task: Regression) -> None:
        super().__init__()
        self.task = task

    def update(self, logits: Tensor, labels: Tensor) -> None:
        loss = len(labels) * self.task.loss(logits, labels)
        self.keep(predictions=self.task.predicted(logits).cpu(), labels=labels.cpu(), loss=loss.cpu().reshape(1))

    def results(self) -> dict[str, Any]:
        record = self.record()
        values = self.task.by_image(record)
        once = torch.ones(1, len(values), dtype=torch.float64)
        errors_ = (values[..., 0] - values[..., 1]).abs().mean(0).tolist()
        by_number = {"mae_by_number": dict(zip(self.task.classes, errors_, strict=True))} if len(errors_) > 1 else {}
        return {
            **{score.name: float(number_score(score, values, once)) for score in Regression.scores},
            **by_number,
            "loss": float(torch.cat(self.kept["loss"]).sum() / len(values)),
        }

    def record(self) -> dict[str, Tensor]:
        return {name: torch.cat(self.kept[name]) for name in ("predictions", "labels")}


def number_score(score: Score, values: Tensor, counts: Tensor) -> Tensor:
    """Return a score of each resample, the mean over numbers, (resamples,).

    Args:
        score: the score.
        values: prediction and label of each image and number, (images, K, 2), float64.
        counts: how often each image is drawn, (resamples, images), float64.

    >>> values = torch.tensor([[[1.0, 2.0]], [[4.0, 4.0]]], dtype=torch.float64)  # errors -1 and 0
    >>> once = torch.ones(1, 2, dtype=torch.float64)
    >>> [round(float(number_score(score, values, once)), 3) for score in (MAE, RMSE, R2)]
    [0.5, 0.707, 0.5]
    """
    predictions, labels = values.unbind(2)
    drawn = counts.sum(1, keepdim=True)
    if score is MAE:
        return (counts @ (predictions - labels).abs() / drawn).mean(1)
    squared = counts @ (predictions - labels).square() / drawn
    if score is RMSE:
        return squared.sqrt().mean(1)
    centred = labels - labels.mean(0)  # else the difference of large squares loses digits
    deviation = counts @ centred.square() / drawn - (counts @ centred / drawn).square()
    return torch.where(deviation > 0, 1 - squared / deviation.clamp(min=1e-300), torch.nan).mean(1)
