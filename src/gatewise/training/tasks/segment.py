"""Segmentation: one class per pixel."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation, statistics
from gatewise.core.files import write_atomically
from gatewise.data import IGNORED, Dataset, DataSource, PairSource, SegmentationDataset, scaled_to, with_background
from gatewise.data.band_image import BandImage
from gatewise.data.colours import class_colours, coloured
from gatewise.gaternet.teaching import class_divergence, label_divergence
from gatewise.gates.spec import ModelSpec
from gatewise.models import LABELS_PIXELS, SEGMENTER
from gatewise.training.distributed import mean_over_processes
from gatewise.training.tasks.base import BatchResults, Mistake, Score, Task
from gatewise.training.tasks.registry import register_task

_SHOWN = 5  # classes of a mask that `describe` shows
_MEAN_IOU, _IOU, _DICE = Score("miou", "mIoU"), Score("iou", "IoU"), Score("dice", "Dice")
_PIXEL_ACCURACY = Score("pixel_accuracy", "pixel accuracy")


@register_task("segment")
class Segmentation(Task):
    """Predict one class per pixel; the score is mIoU, or IoU if there is one class against the background.

    Further scores: Dice, 2 I / (I + U) for the pixels I in the intersection and U in the union of mask and prediction
    (of the class against the background, else the mean over classes), and the accuracy of pixels.

    Args:
        classes: class names.
        label_smoothing: fraction of the target that is spread evenly over all classes.
        class_weights: none, or median_frequency to give rare classes more weight in the loss.

    Attributes:
        weights: class weights of the loss, (classes,), or None.
    """

    summary = "one class per pixel"
    scores = (_MEAN_IOU, _IOU, _DICE, _PIXEL_ACCURACY)
    pipeline_tag = "image-segmentation"
    latency_batch = 8
    class_per_image = False
    class_per_pixel = True
    any_size = True
    files = "masks"

    def __init__(self, classes: Sequence[str], *, label_smoothing: float = 0.0, class_weights: str = "none") -> None:
        super().__init__(classes)
        _validation.check_one_of("class_weights of task segment", class_weights, ("none", "median_frequency"))
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.weights: Tensor | None = None

    @classmethod
    def source(
        cls,
        data: DataSource,
        *,
        crop_size: int | None = None,
        ignore_index: int = IGNORED,
        class_names: str | None = None,
        foreground: str | None = None,
        mask_threshold: float | None = None,
    ) -> PairSource:
        return PairSource(
            data=data.data,
            image_size=data.image_size,
            loading=data.loading,
            reading=data.reading,
            crop_size=crop_size,
            ignore_index=ignore_index,
            class_names=class_names,
            foreground=foreground,
            mask_threshold=mask_threshold,
        )

    @classmethod
    def network(cls, spec: ModelSpec) -> ModelSpec:
        """Return the segmenter with a backbone that is given by its name; networks for masks stay as they are."""
        if spec.model in LABELS_PIXELS or spec.function:
            return spec
        return ModelSpec(SEGMENTER, {"backbone": spec.model, **spec.model_options}, spec.gates)

    @property
    def default_score(self) -> Score:
        return _IOU if self.outputs == 1 else _MEAN_IOU

    @property
    def score(self) -> Score:
        """The main score; IoU and mIoU name the same, that of one class or of several."""
        return self.default_score if self.metric in (None, _IOU, _MEAN_IOU) else self.metric  # type: ignore[return-value]

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return 1, self.outputs, *size

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:
        if self.class_weights == "median_frequency" and isinstance(dataset, SegmentationDataset):
            self.weights = _median_frequency(dataset.frequencies)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits.device)
        return pixel_loss(logits, targets, weights, self.label_smoothing, mean_over_processes)

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return (label_divergence if self.outputs == 1 else class_divergence)(logits, teacher, temperature)

    def predicted(self, logits: Tensor) -> Tensor:
        return pixel_classes(logits)

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the pixel accuracy of each image over pixels that are not ignored: (N, K, H, W), (N, H, W) -> (N,)."""
        counted = labels != IGNORED
        correct = ((pixel_classes(logits) == labels) & counted).flatten(1).sum(1)
        return correct / counted.flatten(1).sum(1).clamp(min=1)

    def new_results(self, device: torch.device) -> BatchResults:
        return _SegmentationResults(self.classes, device)

    def why_undefined(self) -> str:
        return (
            f"no validation mask has a pixel of {', '.join(self.classes)}, so {self.score.title} is not defined. "
            f"Choose another class or split."
        )

    def by_image(self, record: Mapping[str, Tensor]) -> Tensor:
        return record["overlaps"]

    def bootstrap(self, images: Tensor, baseline: Tensor, groups: Tensor | None = None) -> statistics.Estimate:
        score = partial(overlap_score, self.score, self.outputs == 1)
        return statistics.redrawn_bootstrap(score, images, baseline, groups)

    def mistakes(self, record: Mapping[str, Tensor]) -> list[Mistake]:
        """Return all images, those with the lowest score first."""
        once = torch.ones(1, 1, dtype=torch.float64)
        scores = [
            float(overlap_score(self.score, self.outputs == 1, one.unsqueeze(0), once)) for one in record["overlaps"]
        ]
        ranked = sorted((score, index) for index, score in enumerate(scores) if score == score)
        return [
            Mistake(index, "", f"{self.score.title} {self.score.text(score)}", 1 - score) for score, index in ranked
        ]

    def pixels(self, image: BandImage, config: Mapping[str, Any]) -> Tensor:
        pixels = image.pixels()
        return scaled_to(config.get("scale"), pixels, pixels[0])[0]

    def prediction(self, logits: Tensor, picture: Any, *, top_k: int, out: Path | None) -> dict[str, Any]:  # noqa: ARG002
        """Write the mask and overlay of an image; return their paths and the fraction of pixels of each class."""
        from PIL import Image

        assert out is not None
        classes = with_background(self.classes)
        size = picture.height, picture.width
        upsampled = nn.functional.interpolate(logits.unsqueeze(0).float(), size, mode="bilinear")
        mask = pixel_classes(upsampled)[0].cpu()
        colours = class_colours(len(classes))
        indexed = Image.fromarray(mask.to(torch.uint8).numpy())
        indexed.putpalette(colours.flatten().tolist())
        overlay = Image.blend(picture, Image.fromarray(coloured(mask, colours).numpy()), 0.5)
        if len(classes) == 2:  # keep the background uncoloured
            overlay = Image.composite(overlay, picture, Image.fromarray((mask > 0).numpy()))
        paths = {kind: out.with_name(f"{out.name}_{kind}.png") for kind in ("mask", "overlay")}
        for path, image in zip(paths.values(), (indexed, overlay), strict=True):
            write_atomically(path, _png(image))
        shares = map(float, mask.flatten().bincount(minlength=len(classes)) / mask.numel())
        return {**{k: str(path) for k, path in paths.items()}, "shares": dict(zip(classes, shares, strict=True))}

    @classmethod
    def describe(cls, prediction: Mapping[str, Any]) -> str:
        most = sorted(prediction["shares"].items(), key=lambda item: -item[1])[:_SHOWN]
        shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in most if share)
        return f"{shown}; {prediction['overlay']}"


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


class _SegmentationResults(BatchResults):
    """Accumulates pixel counts; memory grows with the images by two numbers per image and class."""

    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        metrics = _validation.import_optional("torchmetrics", "evaluation")
        self.names = with_background(classes)
        self.binary = len(classes) == 1
        options: dict[str, Any] = {"task": "multiclass", "num_classes": len(self.names), "ignore_index": IGNORED}
        options |= {"validate_args": False, "sync_on_compute": False}  # masks are checked when they are read
        absent = {"zero_division": float("nan")}  # IoU of a class that is neither in a mask nor predicted
        self.iou = metrics.JaccardIndex(**options, average="none", **absent).to(device)
        self.accuracy = metrics.Accuracy(**options, average="micro").to(device)
        super().__init__(self.iou, self.accuracy)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        predicted, logits = pixel_classes(logits), logits.float()
        self.iou.update(predicted, labels)
        self.accuracy.update(predicted, labels)
        count = float((labels != IGNORED).sum())
        self.keep(
            there=labels[labels != IGNORED].bincount(minlength=len(self.names)).cpu() > 0,
            overlaps=overlaps(predicted, labels, len(self.names)).cpu(),
            loss=torch.tensor([float(pixel_loss(logits, labels)) * count, count], dtype=torch.float64),
        )

    def results(self) -> dict[str, Any]:
        iou = self.iou.compute()
        there = torch.stack(self.kept["there"]).any(0)  # classes that occur in the masks
        if not there[1 if self.binary else slice(None)].any():
            iou[:] = torch.nan  # without a pixel of any class to find, no score is defined
        score = {_IOU.name: float(iou[1])} if self.binary else {_MEAN_IOU.name: float(iou.nanmean())}
        by_class = {
            name: None if value != value else value for name, value in zip(self.names, iou.tolist(), strict=True)
        }
        total, count = map(float, torch.stack(self.kept["loss"]).sum(0))
        everything = torch.cat(self.kept["overlaps"])
        once = torch.ones(1, len(everything), dtype=torch.float64)
        dice = float(overlap_score(_DICE, self.binary, everything, once))
        return {
            **score,
            _DICE.name: float("nan") if math.isnan(next(iter(score.values()))) else dice,
            _PIXEL_ACCURACY.name: float(self.accuracy.compute()),
            "iou_by_class": by_class,
            "loss": total / max(1.0, count),
        }

    def record(self) -> dict[str, Tensor]:
        return {"overlaps": torch.cat(self.kept["overlaps"])}


def overlaps(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return intersection and union in pixels of each image and class: (N, H, W), (N, H, W) -> (N, classes, 2), int64.

    >>> overlaps(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]), 2)
    tensor([[[1, 2],
             [1, 2]]])
    """
    images = torch.arange(len(labels), device=labels.device).reshape(-1, 1, 1)
    cells = (images * classes + labels.clamp(max=classes - 1)) * classes + predicted
    confusion = cells[labels != IGNORED].bincount(minlength=len(labels) * classes**2).reshape(-1, classes, classes)
    intersection = confusion.diagonal(dim1=1, dim2=2)
    return torch.stack([intersection, confusion.sum(1) + confusion.sum(2) - intersection], 2)


def overlap_score(score: Score, binary: bool, values: Tensor, counts: Tensor) -> Tensor:
    """Return a score of each resample, (resamples,).

    Args:
        score: the score.
        binary: whether there is one class against the background.
        values: intersection and union of each image and class in pixels, (images, K, 2); see `overlaps`.
        counts: how often each image is drawn, (resamples, images), float64.

    >>> values, once = torch.tensor([[[1, 2], [3, 4]]]), torch.ones(1, 1, dtype=torch.float64)
    >>> [round(float(overlap_score(score, False, values, once)), 3) for score in (_MEAN_IOU, _DICE, _PIXEL_ACCURACY)]
    [0.625, 0.762, 0.8]
    """
    drawn = (counts @ values.double().flatten(1)).reshape(len(counts), *values.shape[1:])
    common, either = drawn[..., 0], drawn[..., 1]
    if score is _PIXEL_ACCURACY:
        return 2 * common.sum(-1) / (common + either).sum(-1)
    by_class = 2 * common / (common + either) if score is _DICE else common / either  # NaN: neither there nor predicted
    return by_class[..., 1] if binary else by_class.nanmean(-1)


def pixel_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    shared: Callable[[Tensor], Tensor] = lambda divisor: divisor,
) -> Tensor:
    """Return the mean cross-entropy over the pixels that are not ignored, weighted by class.

    Args:
        logits: (N, K, H, W); with K = 1, the logit of foreground against background.
        targets: class indices, (N, H, W), 255 for ignored pixels; if all are ignored the loss is 0.
        weights: class weights, (K,), or (2,) if K = 1.
        label_smoothing: fraction of the target that is spread evenly over all classes.
        shared: function from the sum of weights to its mean over processes, so that all pixels have equal weight.

    >>> two = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    >>> pixel_loss(two, torch.tensor([[[1]]])), pixel_loss(two[:, 1:], torch.tensor([[[1]]]))
    (tensor(0.3133), tensor(0.3133))
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)  # sigmoid(x) = softmax([0, x])[1]
    total = nn.functional.cross_entropy(
        logits.float(), targets, weights, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    counted = (targets != IGNORED).float()
    divisor = (counted if weights is None else counted * weights[targets.clamp(max=len(weights) - 1)]).sum()
    return total / shared(divisor).clamp(min=1e-8)


def pixel_classes(logits: Tensor) -> Tensor:
    """Return the predicted class of each pixel: (N, K, H, W) -> (N, H, W)."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def _median_frequency(frequencies: Tensor) -> Tensor:
    """Return class weights median(f) / f for class frequencies f, or 0 if f is 0 (Eigen and Fergus, ICCV 2015)."""
    occurs = frequencies > 0
    return torch.where(occurs, frequencies[occurs].median() / frequencies.clamp(min=1e-12), 0.0)
