"""The tasks: classification (one class per image) and segmentation (one class per pixel), each with loss and score."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.data import IGNORED, Dataset, SegmentationDataset, with_background
from gatewise.training.distributed import Processes, mean_over_processes
from gatewise.training.recipe import Recipe

TITLES = {"accuracy": "accuracy", "miou": "mIoU", "iou": "IoU"}  # display names of the scores


class BatchResults(ABC):
    """Accumulates the results of one evaluation, batch by batch.

    Attributes:
        kept: tensors kept from each batch, by name.
        metrics: torchmetrics whose states are sums; after `merge` they cover all processes.
    """

    def __init__(self, *metrics: Any) -> None:
        self.kept: dict[str, list[Tensor]] = {}
        self.metrics = metrics

    def keep(self, **tensors: Tensor) -> None:
        """Append tensors of one batch to `kept`."""
        for name, tensor in tensors.items():
            self.kept.setdefault(name, []).append(tensor)

    def merge(self, processes: Processes) -> None:
        """Add the results of the other processes, in the order of their ranks."""
        # `metric_state` is a documented property of torchmetrics; its states are set as attributes, as it does itself.
        sums = [{name: value.cpu() for name, value in metric.metric_state.items()} for metric in self.metrics]
        own = {name: [tensor.cpu() for tensor in tensors] for name, tensors in self.kept.items()}
        parts = processes.all_gather_object((sums, own))
        for index, metric in enumerate(self.metrics):
            for name, value in metric.metric_state.items():
                total = torch.stack([part[0][index][name] for part in parts]).sum(0)
                setattr(metric, name, total.to(value.device))
        names = dict.fromkeys(name for part in parts for name in part[1])
        self.kept = {name: [tensor for part in parts for tensor in part[1].get(name, [])] for name in names}

    @abstractmethod
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Return the score under its name, the loss and further metrics, as JSON values."""

    @abstractmethod
    def record(self) -> dict[str, Tensor]:
        """Return the tensors per image that a comparison of runs needs."""


class Task(ABC):
    """Loss, score and output shape of a recipe's task on a data set.

    Attributes:
        score: the main score of a run, a key of `TITLES`.
        maps: number of logits per image or pixel.
    """

    score: str
    maps: int

    def __init__(self, recipe: Recipe, dataset: Any) -> None:
        self.recipe, self.classes = recipe, dataset.classes
        self.maps = len(self.classes)

    @abstractmethod
    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of the logits for a batch of one image of `size` (height, width)."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean training loss of a batch, a scalar."""

    @abstractmethod
    def num_correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the number of correctly classified images; for masks, an image counts as its pixel accuracy."""

    @abstractmethod
    def new_results(self, device: torch.device) -> BatchResults:
        """Return empty results for one evaluation."""


class Classification(Task):
    """One class per image; the main score is accuracy."""

    score = "accuracy"

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:  # noqa: ARG002
        return 1, self.maps

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)

    def num_correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == labels).sum()

    def new_results(self, device: torch.device) -> BatchResults:
        return _ClassificationResults(self.maps, device)


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
        return {"accuracy": float(self.accuracy.compute()), "loss": float(torch.cat(self.kept["losses"]).mean())}

    def record(self) -> dict[str, Tensor]:
        return {name: torch.cat(self.kept[name]).cpu() for name in ("predictions", "labels")}


class Segmentation(Task):
    """One class per pixel, or foreground and background; the main score is mIoU, or the IoU of the foreground."""

    def __init__(self, recipe: Recipe, dataset: SegmentationDataset) -> None:
        super().__init__(recipe, dataset)
        self.binary = self.maps == 1
        self.score = "iou" if self.binary else "miou"
        self.dataset = dataset

    @functools.cached_property
    def weights(self) -> Tensor | None:
        """Class weights of the loss, (classes,), or None."""
        return _median_frequency(self.dataset) if self.recipe.class_weights == "median_frequency" else None

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return 1, self.maps, *size

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits.device)
        return pixel_loss(logits, targets, weights, self.recipe.label_smoothing, mean_over_processes)

    def num_correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return pixel_hits(logits, labels).sum()

    def new_results(self, device: torch.device) -> BatchResults:
        return _SegmentationResults(self.classes, device)


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
        score: dict[str, Any] = {"iou": float(iou[1])} if self.binary else {"miou": float(iou.nanmean())}
        by_class = {
            name: None if value != value else value for name, value in zip(self.names, iou.tolist(), strict=True)
        }
        total, count = map(float, torch.stack(self.kept["loss"]).sum(0))
        return {
            **score,
            "iou_by_class": by_class,
            "pixel_accuracy": float(self.accuracy.compute()),
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


def pixel_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the pixel accuracy of each image over pixels that are not ignored: (N, K, H, W), (N, H, W) -> (N,)."""
    counted = labels != IGNORED
    correct = ((pixel_classes(logits) == labels) & counted).flatten(1).sum(1)
    return correct / counted.flatten(1).sum(1).clamp(min=1)


def pixel_classes(logits: Tensor) -> Tensor:
    """Return the predicted class of each pixel: (N, K, H, W) -> (N, H, W)."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def _median_frequency(dataset: SegmentationDataset) -> Tensor:
    """Return class weights median(f) / f for class frequencies f, or 0 if f is 0 (Eigen and Fergus, ICCV 2015)."""
    frequencies = dataset.frequencies
    occurs = frequencies > 0
    return torch.where(occurs, frequencies[occurs].median() / frequencies.clamp(min=1e-12), 0.0)


_TASKS: Mapping[str, type[Task]] = {"classify": Classification, "segment": Segmentation}


def make_task(recipe: Recipe, dataset: Dataset | SegmentationDataset) -> Task:
    """Return the recipe's task for a data set."""
    return _TASKS[recipe.task](recipe, dataset)
