"""Data sets of labelled images: two splits, each decoded in memory or still encoded."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.data.augmentation import Augmentation, parse_augmentation
from gatewise.data.band_image import BandImage
from gatewise.data.pixel_format import RGB, PixelFormat
from gatewise.data.reading import Kind

if TYPE_CHECKING:
    from gatewise.data.division import Division

_SAMPLE = 2048  # number of images from which mean and standard deviation of a streamed split are estimated


@dataclass(frozen=True)
class Images:
    """One split, decoded in memory.

    Attributes:
        pixels: (N, C, H, W), uint8.
        labels: class indices (N,), int64; or as `gatewise.data.labels.targets` returns them.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def picture(self, index: int) -> Any:
        """Return one image as a PIL image in RGB."""
        return self.whole(index).shown()

    def whole(self, index: int) -> BandImage:
        """Return one image, uncropped."""
        return BandImage.of(self.pixels[index])


class EncodedSource(ABC):
    """Encoded image files, images or masks, that are read and decoded when they are needed."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def content(self, index: int) -> bytes | None:
        """Return the encoded bytes of one image, or None if there are none."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Return the name of one image for error messages: its file, or its file and row."""

    def label_where(self, index: int) -> str:
        """Return the name of the label of one image for error messages; by default that of the image."""
        return self.where(index)

    def file(self, index: int) -> str | None:  # noqa: ARG002
        """Return the path of the file that contains only this image, or None."""
        return None

    def subset(self, chosen: Sequence[int]) -> "EncodedSource":
        """Return the images with these indices, in this order."""
        return _Subset(self, chosen)


class _Subset(EncodedSource):
    """Some images of another source."""

    def __init__(self, source: EncodedSource, chosen: Sequence[int]) -> None:
        self._source, self._chosen = source, list(chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def content(self, index: int) -> bytes | None:
        return self._source.content(self._chosen[index])

    def where(self, index: int) -> str:
        return self._source.where(self._chosen[index])

    def label_where(self, index: int) -> str:
        return self._source.label_where(self._chosen[index])

    def file(self, index: int) -> str | None:
        return self._source.file(self._chosen[index])


class EncodedImages:
    """One split of labelled images that are decoded when they are needed.

    Attributes:
        files: the images.
        labels: as `gatewise.data.labels.targets` returns them.
        image_size: side in pixels to which an image is scaled and cropped; None keeps its size, which must then be the
            same for all.
        pixel_format: how files become channels.
    """

    def __init__(
        self,
        files: EncodedSource,
        labels: Tensor | Sequence[int],
        image_size: int | None,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        self.files = files
        self.pixel_format = pixel_format
        self.labels = torch.as_tensor(labels)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image, (C, H, W), uint8; raise `DataError` if its size differs from that of the first."""
        image = self._fitted(index)
        if tuple(image.shape) != self.shape:
            sizes = [f"{shape[2]}x{shape[1]}" for shape in (image.shape, self.shape)]
            raise errors.DataError(
                f"{self.files.where(index)}: the image is {sizes[0]}, but {self.files.where(0)} is {sizes[1]}; "
                f"set image_size to scale and crop all to one size."
            )
        return image

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, and of all others."""
        channels, height, width = self._fitted(0).shape
        return channels, height, width

    def _fitted(self, index: int) -> Tensor:
        image = self.whole(index)
        return (image if self.image_size is None else image.fitted(self.image_size, self.image_size)).pixels()

    def whole(self, index: int) -> BandImage:
        """Return one image in its original size."""
        return self.pixel_format.decode(self.files.where(index), self.files.content(index))

    def picture(self, index: int) -> Any:
        """Return one image as a PIL image in RGB, in its original size."""
        return self.whole(index).shown()

    def decoded(self) -> Images:
        """Decode all images."""
        pixels = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        for index in range(len(self)):
            pixels[index] = self[index]
        return Images(pixels, self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set of labelled images with two splits.

    Attributes:
        name: the source given to `load_dataset`.
        classes: class names, in the order of the labels.
        train: training images.
        validation: validation images.
        padding: largest shift of training images, in pixels and in each direction.
        flip: whether horizontal flips keep the label valid (not so for digits).
        pixel_format: how files of images become channels; None for images that are no files.
        test: images that are scored once, after the training; None if there are none.
        labels: what a label is.
        delimiter: text between several labels of one image in a table; None if there is none.
        notes: what was found and left out while reading, a line each.
        training_notes: those of the notes that concern a training only.
        division: which image is in which split; None if that is not known.
    """

    name: str
    classes: tuple[str, ...]
    train: Images | EncodedImages
    validation: Images | EncodedImages
    padding: int
    flip: bool
    pixel_format: PixelFormat | None = None
    test: Images | EncodedImages | None = None
    labels: Kind = "class"
    delimiter: str | None = None
    notes: tuple[str, ...] = ()
    training_notes: tuple[str, ...] = ()
    division: "Division | None" = None

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return self.train.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.train.shape[1:]

    def augmentation(self, text: str) -> Augmentation:
        """Return the augmentation that `text` (see `parse_augmentation`) specifies for these images.

        "auto" means shift (crop for encoded images), and flip if `self.flip` is set. A policy without a geometry is
        added to "auto".

        Raises:
            InvalidValueError: `text` is invalid, contains scale, which is only for masks, or a policy for other images
                than grey and RGB ones.
        """
        geometry, policy = parse_augmentation(text)
        if policy and self.channels not in (1, 3):
            raise errors.InvalidValueError(
                f"augmentation {text!r}: {policy} changes grey and RGB images, these have {self.channels} bands. Use "
                f"crop, shift and flip."
            )
        if "scale" in geometry:
            raise errors.InvalidValueError(
                f"augmentation {text!r}: scale is only for masks. Use crop, which scales too."
            )
        if "auto" in geometry or not geometry:
            move = "crop" if isinstance(self.train, EncodedImages) else "shift"
            geometry = {move, "flip"} if self.flip else {move}
        padding = self.padding if "shift" in geometry else 0
        return Augmentation(padding, "crop" in geometry, "flip" in geometry, policy=policy)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation per channel of the training images, on the scale 0 to 255: (C,), (C,).

        For an encoded split they are estimated from up to 2,048 evenly spaced images.
        """
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.train, Images):
            return mean_and_deviation(self.train.pixels.split(4096))
        chosen = torch.linspace(0, len(self.train) - 1, min(len(self.train), _SAMPLE)).long()
        return mean_and_deviation(self.train[int(index)].unsqueeze(0) for index in chosen)


def mean_and_deviation(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel over batches (N, C, H, W); the deviation is at least 1."""
    totals, count = torch.zeros(()), 0
    for part in parts:
        values = part.to(torch.float64)
        totals = totals + torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        count += values[:, 0].numel()
    mean, square = totals / count
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().clamp(min=1).float()
