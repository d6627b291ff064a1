"""Classification: one class per image."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation, statistics
from gatewise.data import Dataset, SegmentationDataset
from gatewise.training.tasks.base import ACCURACY, BatchResults, Mistake, Score, Task
from gatewise.training.tasks.registry import register_task

BALANCED_ACCURACY = Score("balanced_accuracy", "balanced accuracy")
MACRO_F1 = Score("macro_f1", "macro F1")
ECE = Score("ece", "expected calibration error", higher_is_better=False)
WEIGHTS = ("none", "balanced")
_BINS = 15  # of confidences, equally wide
_UNEVEN = 10  # images of the largest class over those of the smallest, from which accuracy says little


@register_task("classify")
class Classification(Task):
    """Predict one class per image with cross-entropy; the score is accuracy.

    Further scores: balanced accuracy, the mean over classes of the share of a class's images that is found, and macro
    F1, the mean over classes of F1. Both leave out classes without images. The expected calibration error is the mean
    over images of |accuracy - mean confidence| in the bin of an image's confidence, of 15 equally wide bins.

    Args:
        classes: class names.
        label_smoothing: fraction of the target that is spread evenly over all classes.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it.
        class_weights: none, or balanced to weight the loss of an image of class k by n / (K n_k), where n_k of the n
            training images are of class k.

    Attributes:
        weights: class weights of the loss, (classes,), or None.
    """

    summary = "one class per image"
    scores = (ACCURACY, BALANCED_ACCURACY, MACRO_F1, ECE)
    pipeline_tag = "image-classification"

    def __init__(
        self,
        classes: Sequence[str],
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        class_weights: str = "none",
    ) -> None:
        super().__init__(classes)
        _validation.check_one_of(f"class_weights of task {self.name}", class_weights, WEIGHTS)
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.class_weights = class_weights
        self.weights: Tensor | None = None

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:
        if self.mixup or self.cutmix:  # the loss smooths the labels, not timm
            mixup = _validation.import_optional("timm.data", "mixup").Mixup
            self.mix = mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=self.outputs)
        if self.class_weights == "balanced":
            counts = self._counts(dataset).float()
            self.weights = counts.sum() / (len(counts) * counts.clamp(min=1))

    def _counts(self, dataset: Any) -> Tensor:
        """Return the number of training images of each class."""
        return dataset.train.labels.bincount(minlength=self.outputs)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.weights is None:
            return nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        weights = self.weights.to(logits.device)
        total = nn.functional.cross_entropy(
            logits.float(), targets, weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / len(logits)  # the mean weight of all training images is 1

    def predicted(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def constant(self, dataset: Dataset | SegmentationDataset) -> tuple[str, Tensor] | None:
        largest = int(self._counts(dataset).argmax())
        return repr(self.classes[largest]), nn.functional.one_hot(torch.tensor(largest), self.outputs).float()

    def advice(self, dataset: Dataset | SegmentationDataset) -> str:
        counts = self._counts(dataset)
        if self.score is not ACCURACY or int(counts.max()) < _UNEVEN * int(counts.min()):
            return ""
        return "--metric balanced_accuracy judges all classes alike, --class-weights balanced trains so"

    def new_results(self, device: torch.device) -> BatchResults:
        return _ClassificationResults(self.classes, device)

    def by_image(self, record: Mapping[str, Tensor]) -> Tensor:
        if self.score is ACCURACY:
            return record["predictions"] == record["labels"]
        if self.score is ECE:
            return confidence_pairs(record)
        return torch.stack([record["predictions"], record["labels"]], 1)

    def bootstrap(self, images: Tensor, baseline: Tensor, groups: Tensor | None = None) -> statistics.Estimate:
        if self.score is ECE:
            return statistics.redrawn_bootstrap(calibration_error, images, baseline, groups)
        if self.score in {BALANCED_ACCURACY, MACRO_F1}:
            score = partial(class_score, self.score, self.outputs)
            return statistics.redrawn_bootstrap(score, images, baseline, groups)
        return super().bootstrap(images, baseline, groups)

    def confusion(self, record: Mapping[str, Tensor]) -> Tensor | None:
        if "predictions" not in record:  # a derived task with a record of its own
            return None
        cells = record["labels"] * self.outputs + record["predictions"]
        return cells.bincount(minlength=self.outputs**2).reshape(self.outputs, self.outputs)

    def calibration(self, record: Mapping[str, Tensor]) -> Tensor | None:
        return calibration_bins(confidence_pairs(record)) if "confidences" in record else None

    def images_by_class(self, record: Mapping[str, Tensor]) -> Tensor | None:
        return record["labels"].bincount(minlength=self.outputs) if "labels" in record else None

    def mistakes(self, record: Mapping[str, Tensor]) -> list[Mistake]:
        """Return the images with a wrong class, those with the most certain answer first."""
        if "predictions" not in record:
            return []
        wrong = [int(index) for index in (record["predictions"] != record["labels"]).nonzero()]
        found = [
            Mistake(
                index,
                self.classes[int(record["labels"][index])],
                f"{self.classes[int(record['predictions'][index])]} {100 * float(record['confidences'][index]):.0f} %",
                float(record["confidences"][index]),
            )
            for index in wrong
        ]
        return sorted(found, key=lambda mistake: -mistake.badness)

    def prediction(self, logits: Tensor, picture: Any, *, top_k: int, out: Path | None) -> dict[str, Any]:  # noqa: ARG002
        best = logits.softmax(0).topk(min(top_k, len(logits)))
        pairs = zip(best.indices, best.values, strict=True)
        return {"classes": {self.classes[int(index)]: float(share) for index, share in pairs}}

    @classmethod
    def describe(cls, prediction: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction["classes"].items())


class _ClassificationResults(BatchResults):
    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        metrics = _validation.import_optional("torchmetrics", "evaluation")
        self.classes = classes
        self.accuracy = metrics.Accuracy("multiclass", num_classes=len(classes), sync_on_compute=False)
        super().__init__(self.accuracy.to(device))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        predictions = logits.argmax(1)
        self.accuracy.update(predictions, labels)
        confidences = logits.float().softmax(1).amax(1)
        self.keep(predictions=predictions, labels=labels, losses=losses, confidences=confidences)

    def results(self) -> dict[str, Any]:
        record = self.record()
        pairs, once = torch.stack([record["predictions"], record["labels"]], 1), torch.ones(1, len(record["labels"]))
        found, total, _ = class_counts(pairs, once.double(), len(self.classes))
        shares = [float(share) for share in (found / total)[0]]
        recall = {name: None if share != share else share for name, share in zip(self.classes, shares, strict=True)}
        return {
            ACCURACY.name: float(self.accuracy.compute()),
            **{score.name: float(class_score(score, len(self.classes), pairs, once.double()))
               for score in (BALANCED_ACCURACY, MACRO_F1)},
            ECE.name: float(calibration_error(confidence_pairs(record), once.double())),
            "recall_by_class": recall,
            "loss": float(torch.cat(self.kept["losses"]).mean()),
        }  # fmt: skip

    def record(self) -> dict[str, Tensor]:
        return {name: torch.cat(self.kept[name]).cpu() for name in ("predictions", "labels", "confidences")}


def class_counts(pairs: Tensor, counts: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each resample and class the number of images that are found, that there are, and that are predicted.

    Args:
        pairs: predicted class and class of each image, (images, 2).
        counts: how often each image is drawn, (resamples, images), float64.
        classes: number of classes.

    >>> class_counts(torch.tensor([[0, 0], [0, 1]]), torch.ones(1, 2, dtype=torch.float64), 2)[0]
    tensor([[1., 0.]], dtype=torch.float64)
    """
    predictions, labels = pairs.unbind(1)
    empty = counts.new_zeros(len(counts), classes)
    found = empty.index_add(1, labels, counts * (predictions == labels))
    return found, empty.index_add(1, labels, counts), empty.index_add(1, predictions, counts)


def class_score(score: Score, classes: int, pairs: Tensor, counts: Tensor) -> Tensor:
    """Return balanced accuracy or macro F1 of each resample, (resamples,); see `class_counts`.

    Classes without images are left out.

    >>> pairs, once = torch.tensor([[0, 0], [0, 0], [0, 1]]), torch.ones(1, 3, dtype=torch.float64)
    >>> class_score(BALANCED_ACCURACY, 3, pairs, once), class_score(MACRO_F1, 3, pairs, once)
    (tensor([0.5000], dtype=torch.float64), tensor([0.4000], dtype=torch.float64))
    """
    found, total, predicted = class_counts(pairs, counts, classes)
    by_class = found / total if score is BALANCED_ACCURACY else 2 * found / (total + predicted)
    return torch.where(total > 0, by_class, torch.nan).nanmean(1)


def confidence_pairs(record: Mapping[str, Tensor]) -> Tensor:
    """Return for each image whether the predicted class is right, and its probability, (images, 2), float64."""
    return torch.stack([(record["predictions"] == record["labels"]).double(), record["confidences"].double()], 1)


def _bins(pairs: Tensor) -> Tensor:
    return (pairs[:, 1] * _BINS).long().clamp(0, _BINS - 1)


def calibration_error(pairs: Tensor, counts: Tensor) -> Tensor:
    """Return the expected calibration error of each resample, sum over bins |correct - confidence| / n, (resamples,).

    Args:
        pairs: see `confidence_pairs`.
        counts: how often each image is drawn, (resamples, images), float64.

    >>> pairs = torch.tensor([[1.0, 0.9], [0.0, 0.9], [1.0, 0.6]], dtype=torch.float64)
    >>> calibration_error(pairs, torch.ones(1, 3, dtype=torch.float64))  # (|1 - 1.8| + |1 - 0.6|) / 3
    tensor([0.4000], dtype=torch.float64)
    """
    differences = counts * (pairs[:, 0] - pairs[:, 1])
    of_bins = counts.new_zeros(len(counts), _BINS).index_add(1, _bins(pairs), differences)
    return of_bins.abs().sum(1) / counts.sum(1)


def calibration_bins(pairs: Tensor) -> Tensor:
    """Return number of images, mean confidence and accuracy of each bin of confidences, (bins, 3); NaN where empty."""
    empty, bins = pairs.new_zeros(_BINS), _bins(pairs)
    images = empty.index_add(0, bins, torch.ones_like(pairs[:, 0]))
    means = [empty.index_add(0, bins, column) / images for column in (pairs[:, 1], pairs[:, 0])]
    return torch.stack([images, *means], 1)
