"""Classification: one class per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.data import Dataset, SegmentationDataset
from gatewise.data.band_image import BandImage
from gatewise.training.tasks.base import BatchResults, Score, Task
from gatewise.training.tasks.registry import register_task

ACCURACY = Score("accuracy", "accuracy")


@register_task("classify")
class Classification(Task):
    """Predict one class per image with cross-entropy; the score is accuracy.

    Args:
        classes: class names.
        label_smoothing: fraction of the target that is spread evenly over all classes.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it.
    """

    summary = "one class per image"
    scores = (ACCURACY,)
    pipeline_tag = "image-classification"

    def __init__(
        self, classes: Sequence[str], *, label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0
    ) -> None:
        super().__init__(classes)
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:  # noqa: ARG002
        if self.mixup or self.cutmix:  # the loss smooths the labels, not timm
            mixup = _validation.import_optional("timm.data", "mixup").Mixup
            self.mix = mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=self.outputs)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def predicted(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def new_results(self, device: torch.device) -> BatchResults:
        return _ClassificationResults(self.outputs, device)

    def by_image(self, record: Mapping[str, Tensor]) -> Tensor:
        return record["predictions"] == record["labels"]

    def pixels(self, image: BandImage, config: Mapping[str, Any]) -> Tensor:
        return image.fitted(*config["image_size"]).pixels()

    def prediction(self, logits: Tensor, picture: Any, *, top_k: int, out: Path | None) -> dict[str, Any]:  # noqa: ARG002
        best = logits.softmax(0).topk(min(top_k, len(logits)))
        pairs = zip(best.indices, best.values, strict=True)
        return {"classes": {self.classes[int(index)]: float(share) for index, share in pairs}}

    @classmethod
    def describe(cls, prediction: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction["classes"].items())


class _ClassificationResults(BatchResults):
    def __init__(self, classes: int, device: torch.device) -> None:
        metrics = _validation.import_optional("torchmetrics", "evaluation")
        self.accuracy = metrics.Accuracy("multiclass", num_classes=classes, sync_on_compute=False)
        super().__init__(self.accuracy.to(device))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        predictions = logits.argmax(1)
        self.accuracy.update(predictions, labels)
        self.keep(predictions=predictions, labels=labels, losses=losses)

    def results(self) -> dict[str, Any]:
        return {ACCURACY.name: float(self.accuracy.compute()), "loss": float(torch.cat(self.kept["losses"]).mean())}

    def record(self) -> dict[str, Tensor]:
        return {name: torch.cat(self.kept[name]).cpu() for name in ("predictions", "labels")}
