"""Multi-label classification: any number of classes per image."""

# pyright: basic

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation, statistics
from gatewise.data import Dataset, SegmentationDataset
from gatewise.gaternet.teaching import label_divergence
from gatewise.training.tasks.base import BatchResults, Mistake, Score, Task
from gatewise.training.tasks.classify import MACRO_F1, WEIGHTS
from gatewise.training.tasks.registry import register_task

MAP, MICRO_F1, AUC = Score("map", "mAP"), Score("micro_f1", "micro F1"), Score("auc", "AUC")
_WORK = 5e9  # most values that a bootstrap sums, by which the number of resamples is limited
_FEWEST = 999


@register_task("multilabel")
class MultiLabel(Task):
    """Predict for each class whether an image has it, with binary cross-entropy; the score is mAP.

    mAP is the mean over classes of average precision, the sum over an image's rank of (R_n - R_(n-1)) P_n. Further
    scores: AUC, the mean over classes of the area under the ROC curve, and F1 at a probability of 0.5, over all
    decisions (micro) and as the mean over classes (macro). Means leave out classes without positive images.

    Args:
        classes: class names.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it.
        class_weights: none, or balanced to weight positive images of a class by its negative over its positive
            training images.

    Attributes:
        weights: weights of positive images, (classes,), or None.
    """

    summary = "any number of classes per image"
    scores = (MAP, AUC, MICRO_F1, MACRO_F1)
    labels = "classes"
    pipeline_tag = "image-classification"
    class_per_image = False
    hit = Score("label_accuracy", "accuracy of all labels")

    def __init__(
        self, classes: Sequence[str], *, mixup: float = 0.0, cutmix: float = 0.0, class_weights: str = "none"
    ) -> None:
        super().__init__(classes)
        _validation.check_one_of(f"class_weights of task {self.name}", class_weights, WEIGHTS)
        self.mixup, self.cutmix, self.class_weights = mixup, cutmix, class_weights
        self.weights: Tensor | None = None

    @property
    def image_groups(self) -> tuple[str, ...]:
        return self.classes

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:
        if self.mixup or self.cutmix:
            self.mix = partial(_mixed, self.mixup, self.cutmix)
        if self.class_weights == "balanced":
            positive = _shares(dataset).clamp(1e-4, 1 - 1e-4)
            self.weights = (1 - positive) / positive

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits.device)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), pos_weight=weights)

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return label_divergence(logits, teacher, temperature)

    def predicted(self, logits: Tensor) -> Tensor:
        return (logits > 0).float()

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the fraction of an image's labels that is predicted correctly: (N, K), (N, K) -> (N,)."""
        return (self.predicted(logits) == labels).float().mean(1)

    def constant(self, dataset: Dataset | SegmentationDataset) -> tuple[str, Tensor] | None:
        return "the share of each class", _shares(dataset).clamp(1e-6, 1 - 1e-6).logit()

    def new_results(self, device: torch.device) -> BatchResults:  # noqa: ARG002
        return _MultiLabelResults(self.classes)

    def why_undefined(self) -> str:
        return f"no validation image has a label, so {self.score.title} is not defined. Choose another split."

    def by_image(self, record: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([record["logits"], record["labels"].float()], 2)

    def bootstrap(self, images: Tensor, baseline: Tensor, groups: Tensor | None = None) -> statistics.Estimate:
        resamples = int(min(9999, max(_FEWEST, _WORK / (2 * images.numel()))))
        return statistics.redrawn_bootstrap(partial(label_score, self.score), images, baseline, groups, resamples)

    def images_by_class(self, record: Mapping[str, Tensor]) -> Tensor | None:
        return record["labels"].long().sum(0)

    def mistakes(self, record: Mapping[str, Tensor]) -> list[Mistake]:
        """Return the images with a wrong label at a probability of 0.5, those with the highest loss first."""
        logits, labels = record["logits"], record["labels"].float()
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        wrong = ((logits > 0) != (labels > 0)).any(1).nonzero().flatten().tolist()
        found = [
            Mistake(index, self._listed(labels[index] > 0), self._listed(logits[index] > 0), float(losses[index]))
            for index in wrong
        ]
        return sorted(found, key=lambda mistake: -mistake.badness)

    def _listed(self, chosen: Tensor) -> str:
        return ", ".join(self.classes[index] for index in chosen.nonzero().flatten().tolist()) or "none"

    def prediction(self, logits: Tensor, picture: Any, *, top_k: int, out: Path | None) -> dict[str, Any]:  # noqa: ARG002
        best = logits.float().sigmoid().topk(min(top_k, len(logits)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"labels": [{"class": self.classes[index], "score": score} for index, score in pairs]}

    @classmethod
    def describe(cls, prediction: Mapping[str, Any]) -> str:
        shown = [f"{label['class']} {100 * label['score']:.1f} %" for label in prediction["labels"]]
        likely = [text for text, label in zip(shown, prediction["labels"], strict=True) if label["score"] >= 0.5]
        return ", ".join(likely) or f"no label of 50 % or more; most probable {shown[0]}"


def _shares(dataset: Any) -> Tensor:
    """Return the share of training images that have each class, (classes,)."""
    return dataset.train.labels.float().mean(0)


def _mixed(mixup: float, cutmix: float, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images pairwise, and their labels (N, K) in the same shares."""
    count = len(images)
    mix = _validation.import_optional("timm.data", "mixup").Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=count)
    mixed, shares = mix(images, torch.arange(count, device=images.device))  # shares: (N, N), of each image in each
    return mixed, shares @ labels


class _MultiLabelResults(BatchResults):
    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes

    def update(self, logits: Tensor, labels: Tensor) -> None:
        losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        self.keep(logits=logits.float().cpu(), labels=labels.to(torch.uint8).cpu(), losses=losses.mean(1).cpu())

    def results(self) -> dict[str, Any]:
        record = self.record()
        values = torch.stack([record["logits"], record["labels"].float()], 2)
        once = torch.ones(1, len(values), dtype=torch.float64)
        precision = average_precision(values, once)[0].tolist()
        return {
            **{score.name: float(label_score(score, values, once)) for score in MultiLabel.scores},
            "average_precision_by_class": {
                name: None if value != value else value for name, value in zip(self.classes, precision, strict=True)
            },
            "loss": float(torch.cat(self.kept["losses"]).mean()),
        }

    def record(self) -> dict[str, Tensor]:
        return {name: torch.cat(self.kept[name]) for name in ("logits", "labels")}


def label_score(score: Score, values: Tensor, counts: Tensor) -> Tensor:
    """Return a score of each resample, (resamples,).

    Args:
        score: the score.
        values: logit and label of each image and class, (images, K, 2).
        counts: how often each image is drawn, (resamples, images), float64.
    """
    if score is MAP:
        return average_precision(values, counts).nanmean(1)
    if score is AUC:
        return area_under_curve(values, counts).nanmean(1)
    predicted, labels = values[..., 0] > 0, values[..., 1] > 0
    parts = (predicted & labels, labels, predicted)
    found, total, claimed = (counts @ part.double() for part in parts)  # (resamples, K)
    if score is MICRO_F1:
        return 2 * found.sum(1) / (total + claimed).sum(1)
    return torch.where(total > 0, 2 * found / (total + claimed), torch.nan).nanmean(1)


def _ranked(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for one class, images from the highest logit to the lowest.

    Args:
        values: logit and label of each image, (images, 2).
        counts: how often each image is drawn, (resamples, images).

    Returns:
        How often each positive and each negative image is drawn, (resamples, images) each, and for each image the last
        one with the same logit, (images,).
    """
    logits, order = values[:, 0].sort(descending=True, stable=True)
    positive = (values[order, 1] > 0).double()
    last = torch.searchsorted(-logits, -logits, right=True) - 1
    drawn = counts[:, order]
    return drawn * positive, drawn * (1 - positive), last


def average_precision(values: Tensor, counts: Tensor) -> Tensor:
    """Return average precision of each resample and class, (resamples, K); NaN without positive images.

    >>> values = torch.tensor([[[3.0, 1.0]], [[2.0, 0.0]], [[1.0, 1.0]]])  # 1 / 2 * (1 / 1 + 2 / 3)
    >>> average_precision(values, torch.ones(1, 3, dtype=torch.float64))
    tensor([[0.8333]], dtype=torch.float64)
    """
    columns: list[Tensor] = []
    for of_class in values.unbind(1):
        positive, negative, last = _ranked(of_class, counts)
        found, claimed = (part.cumsum(1)[:, last] for part in (positive, positive + negative))
        precision = found / claimed.clamp(min=1e-12)
        columns.append((positive * precision).sum(1) / positive.sum(1))
    return torch.stack(columns, 1)


def area_under_curve(values: Tensor, counts: Tensor) -> Tensor:
    """Return the area under the ROC curve of each resample and class, (resamples, K); NaN if one side has no images.

    It is the probability that a positive image has a higher logit than a negative one; equal ones count half.

    >>> values = torch.tensor([[[3.0, 1.0]], [[2.0, 0.0]], [[1.0, 1.0]]])
    >>> area_under_curve(values, torch.ones(1, 3, dtype=torch.float64))
    tensor([[0.5000]], dtype=torch.float64)
    """
    columns: list[Tensor] = []
    for of_class in values.unbind(1):
        positive, negative, last = _ranked(of_class, counts)
        passed = negative.cumsum(1)[:, last]  # negatives with at least this logit
        first = torch.searchsorted(last, last)  # first image with the same logit
        above = torch.cat([torch.zeros_like(negative[:, :1]), negative.cumsum(1)], 1)[:, first]
        below = negative.sum(1, keepdim=True) - (above + passed) / 2
        columns.append((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))
    return torch.stack(columns, 1)
