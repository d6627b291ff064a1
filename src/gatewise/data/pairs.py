"""Data sets of images with masks: two splits, each decoded in memory or still encoded."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.augmentation import Augmentation, parse_augmentation
from gatewise.data.band_image import BandImage
from gatewise.data.images import EncodedSource, mean_and_deviation
from gatewise.data.masks import IGNORED, MaskEncoding, evenly_spaced, with_background
from gatewise.data.pixel_format import RGB, PixelFormat

if TYPE_CHECKING:
    from gatewise.data.division import Division

_SAMPLE = 512  # number of images from which mean and standard deviation are estimated


class SegmentationSplit:
    """One split of images with masks, encoded or decoded in memory.

    Args:
        images: encoded images.
        masks: encoded masks, in the same order.
        meaning: mapping from mask values to classes.
        side: length in pixels to which the shorter side is scaled; None keeps the size.
        crop: side in pixels of the square training crop; None uses the size of the first image.
        pixel_format: how files of images become channels.
    """

    def __init__(
        self,
        images: EncodedSource,
        masks: EncodedSource,
        meaning: MaskEncoding,
        *,
        side: int | None = None,
        crop: int | None = None,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        self.images, self.masks, self.meaning, self.side, self.crop = images, masks, meaning, side, crop
        self.pixel_format = pixel_format
        self._held: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.images)

    @property
    def held(self) -> bool:
        """Whether the pairs are decoded in memory."""
        return bool(self._held)

    def hold(self) -> None:
        """Decode all pairs and keep them in memory."""
        self._held = [self._decoded(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, (C, H, W), and its mask, (H, W), both uint8."""
        return self._held[index] if self._held else self._decoded(index)

    def picture(self, index: int) -> Any:
        """Return one image as a PIL image in RGB, in its original size."""
        return self._whole(index).shown()

    def _whole(self, index: int) -> BandImage:
        return self.pixel_format.decode(self.images.where(index), self.images.content(index))

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image; other images may differ in size."""
        channels, height, width = self[0][0].shape
        return channels, height, width

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of a training crop."""
        return (self.crop, self.crop) if self.crop else self.shape[1:]

    def mask(self, index: int) -> Tensor:
        """Return one mask, (H, W), uint8: in its original size, or scaled if the pairs are in memory."""
        if self._held:
            return self._held[index][1]
        where = self.masks.where(index)
        return self.meaning(self.meaning.decode(where, self.masks.content(index)), where)

    def _decoded(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask, where = self._whole(index).pixels(), self.mask(index), self.masks.where(index)
        if mask.shape != image.shape[1:]:
            raise errors.DataError(
                f"{where}: the mask is {mask.shape[1]}x{mask.shape[0]}, but its image {self.images.where(index)} is "
                f"{image.shape[2]}x{image.shape[1]}; expected the same size."
            )
        return scaled_to(self.side, image, mask)


def scaled_to(side: int | None, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale an image (C, H, W) and its mask (H, W) so that the shorter side has `side` pixels; None keeps the size."""
    height, width = mask.shape
    if side is None or min(height, width) == side:
        return pixels, mask
    factor = side / min(height, width)
    return resized(pixels, mask, (round(height * factor), round(width * factor)))


def resized(pixels: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale an image (C, H, W) bilinearly with antialiasing, and its mask (H, W) by nearest neighbour.

    Sides shorter than two pixels, which torch cannot scale to, become two pixels.
    """
    size = max(2, size[0]), max(2, size[1])
    transforms = _validation.import_optional("torchvision.transforms.v2.functional", "scaling images")
    nearest = _validation.import_optional("torchvision.transforms", "scaling images").InterpolationMode.NEAREST_EXACT
    return (
        transforms.resize_image(pixels, list(size), antialias=True),
        transforms.resize_image(mask.unsqueeze(0), list(size), interpolation=nearest)[0],
    )


@dataclass(frozen=True)
class SegmentationDataset:
    """A data set of images with masks, with two splits.

    Attributes:
        name: the source given to `load_pairs`.
        train: training pairs.
        validation: validation pairs.
        test: pairs that are scored once, after the training; None if there are none.
        notes: what was found and left out while reading, a line each.
        training_notes: those of the notes that concern a training only.
        division: which pair is in which split; None if that is not known.
    """

    name: str
    train: SegmentationSplit
    validation: SegmentationSplit
    test: SegmentationSplit | None = None
    notes: tuple[str, ...] = ()
    training_notes: tuple[str, ...] = ()
    division: "Division | None" = None

    @property
    def pixel_format(self) -> PixelFormat:
        """How files of images become channels."""
        return self.train.pixel_format

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the network's output channels."""
        return self.train.meaning.kept

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return self.train.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first validation image, uncropped."""
        return self.validation.shape[1:]

    def augmentation(self, text: str) -> Augmentation:
        """Return the augmentation that `text` (see `parse_augmentation`) specifies; auto means scale, crop and flip.

        Raises:
            InvalidValueError: `text` is invalid, contains shift or a policy, or lacks the crop that scale or
                `crop_size` needs.
        """
        geometry, policy = parse_augmentation(text)
        if policy or "shift" in geometry:
            raise errors.InvalidValueError(
                f"augmentation {text!r} is for images with one label; for masks use scale, crop and flip, joined by +."
            )
        if "auto" in geometry:
            geometry = frozenset({"scale", "crop", "flip"})
        if self.train.crop is not None and "crop" not in geometry:
            raise errors.InvalidValueError(
                f"crop_size is {self.train.crop}, but augmentation {text!r} has no crop. Add crop, or omit crop_size."
            )
        if "scale" in geometry and "crop" not in geometry:
            raise errors.InvalidValueError(f"augmentation {text!r} makes images of different sizes. Add crop.")
        return Augmentation(crop="crop" in geometry, flip="flip" in geometry, scale="scale" in geometry)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation per channel of the training images, on the scale 0 to 255: (C,), (C,).

        They are estimated from up to 512 evenly spaced images.
        """
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return mean_and_deviation(
            self.train[index][0].unsqueeze(0) for index in evenly_spaced(len(self.train), _SAMPLE)
        )

    @functools.cached_property
    def frequencies(self) -> Tensor:
        """Frequency of each class: its pixels over all pixels that are not ignored, in training images that contain it.

        The frequency is 0 for a class without pixels (Eigen and Fergus, ICCV 2015). Shape (classes,), or (2,) for
        background and foreground. The first access reads all masks.
        """
        count = len(with_background(self.classes))
        of_class, of_images = torch.zeros(2, count, dtype=torch.float64)
        for index in range(len(self.train)):
            mask = self.train.mask(index)
            pixels = mask[mask != IGNORED].long().bincount(minlength=count)
            of_class += pixels
            of_images += torch.where(pixels > 0, pixels.sum(), 0)
        return (of_class / of_images.clamp(min=1)).float()
