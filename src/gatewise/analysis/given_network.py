"""A network that was trained elsewhere, with the images of a loader, as pages and benchmarks read it."""

# pyright: basic

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.loaders import Loader, first_batches
from gatewise.core.types import main_output
from gatewise.data import IGNORED, evenly_spaced
from gatewise.data.decode import picture_of
from gatewise.graph import evaluation_mode
from gatewise.inference.wrappers import unwrapped
from gatewise.training import Task, task_class
from gatewise.training.runs import Run


@dataclass(frozen=True)
class HeldImages:
    """The images of a network without a run, in memory: batches (N, C, *S) of one or several sizes."""

    batches: Sequence[tuple[Tensor, Tensor | None]]

    def __len__(self) -> int:
        return sum(len(images) for images, _ in self.batches)

    def __getitem__(self, index: int) -> Tensor:
        for images, _ in self.batches:
            if index < len(images):
                return images[index]
            index -= len(images)
        raise IndexError(index)

    @property
    def drawable(self) -> bool:
        """Whether the images are pictures: with height and width."""
        return self.batches[0][0].dim() == 4

    @cached_property
    def _range(self) -> tuple[float, float]:
        low = min(float(images.min()) for images, _ in self.batches)
        return low, max(float(images.max()) for images, _ in self.batches)

    def pictures(self, images: Tensor) -> Tensor:
        """Return images as grey or RGB in [0, 1]: stretched from the smallest to the largest value of all images."""
        low, high = self._range
        shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
        return ((shown.float().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1)

    def picture(self, index: int) -> Any:
        """Return one image as a PIL image in RGB."""
        return picture_of((255 * self.pictures(self[index].unsqueeze(0))[0]).round().to(torch.uint8))


class GivenNetwork:
    """A network and the images that are shown to it; a page reads it like a `Run`.

    Args:
        owner: name of the caller, for the error messages.
        model: the network.
        loader: batches of images, with or without labels; see `batches_of`. It is read once.
        classes: names of the classes; None numbers them.
        count: number of images that are kept in memory; None keeps all.

    Attributes:
        model: the network.
        name: name of its class.
        images: the images.
        task: the task of which the labels are; None if the loader has no labels of classes.
        remark: why there is no task, a sentence; "" if there is one.
    """

    slug = "network"
    missing = ""

    def __init__(
        self, owner: str, model: Any, loader: Loader, *, classes: Sequence[str] | None = None, count: int | None = None
    ) -> None:
        if count is not None:
            _validation.check_integer_at_least(1, images=count)
        self.model = unwrapped(owner, model)
        self.name = type(self.model).__name__
        self.images = HeldImages(first_batches(loader, count, owner))
        self.device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self._labels = [_as_classes(labels) for _, labels in self.images.batches]
        self.task, self.remark = self._task(owner, classes)

    def _task(self, owner: str, classes: Sequence[str] | None) -> tuple[Task | None, str]:
        """Return the task that fits labels and outputs, or the reason why none does."""
        if any(labels is None for _, labels in self.images.batches):
            return None, "The loader has no labels."
        labels = [batch for batch in self._labels if batch is not None]
        if len(labels) < len(self._labels):
            return None, "The labels are no integers, so they are no classes of images or pixels."
        with evaluation_mode(self.model), torch.no_grad():
            output = main_output(self.model(self.images.batches[0][0].to(self.device)))
        shape, per_pixel = tuple(output.shape), labels[0].dim() == 3
        outputs = shape[1] if len(shape) > 1 else 1
        if (
            labels[0].dim() not in {1, 3}
            or shape[:1] + shape[2:] != labels[0].shape
            or (outputs == 1 and not per_pixel)
        ):
            return None, f"Labels {tuple(labels[0].shape)} are no classes of images or pixels for outputs {shape}."
        names = [f"class {number}" for number in range(outputs)] if classes is None else [*classes]
        if len(names) != outputs:
            raise errors.InvalidValueError(
                f"{owner}: the network has {outputs} outputs and {len(names)} classes are given. Give a name for each."
            )
        counted = torch.cat([batch.flatten() for batch in labels])
        counted = counted[counted != IGNORED] if per_pixel else counted
        most = max(outputs, 2) - 1  # a single output of a mask separates two classes
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) <= most:
            raise errors.InvalidValueError(
                f"{owner}: labels must be between 0 and {most} for {outputs} outputs, got {int(counted.min())} to "
                f"{int(counted.max())}. Check the loader."
            )
        return task_class("segment" if per_pixel else "classify")(names), ""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels; empty without a task."""
        return [] if self.task is None else list(self.task.classes)

    @property
    def image_classes(self) -> list[str]:
        """Names of the classes of images; empty if an image has no class."""
        return self.classes if self.task is not None and self.task.class_per_image else []

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and their labels or masks; without a task all labels are 0."""
        for (images, _), labels in zip(self.images.batches, self._labels, strict=True):
            known = torch.zeros(len(images), dtype=torch.long) if self.task is None or labels is None else labels
            yield images.to(self.device), known.to(self.device)

    def by_class(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and labels; all labels are 0 if images have no class."""
        for images, labels in self.batches():
            yield images, labels if self.image_classes else labels.new_zeros(len(labels))

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return a few images of one size, and their labels or masks.

        Of images with classes the first of each of the first `count` classes, otherwise `count` evenly spaced ones.
        """
        batches = [*self.batches()]
        alike = [(images, labels) for images, labels in batches if images.shape[1:] == batches[0][0].shape[1:]]
        images, labels = (torch.cat(parts) for parts in zip(*alike, strict=True))
        chosen = [*evenly_spaced(len(images), count)]
        if self.image_classes:
            chosen = [int((labels == label).nonzero()[0]) for label in labels.unique()[:count].tolist()]
        return images[chosen], labels[chosen]

    def pictures(self, images: Tensor) -> Tensor:
        """Return images as pictures, (N, 1 or 3, H, W) in [0, 1]."""
        return self.images.pictures(images)


Subject: TypeAlias = Run | GivenNetwork  # what a page is about


def _as_classes(labels: Tensor | None) -> Tensor | None:
    """Return labels as int64, (N,) or (N, H, W), with 255 for pixels that do not count; None if they are no classes."""
    if labels is None or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    labels = labels.long()
    if labels.dim() == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return labels.where(labels >= 0, IGNORED) if labels.dim() == 3 else labels
