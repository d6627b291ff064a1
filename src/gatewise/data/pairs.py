"""One split of images with a class for each pixel, and what a training must know of two of them."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise import _checks
from gatewise.data.augmentation import Augmentation, parse_augmentation
from gatewise.data.decode import pixels_of
from gatewise.data.images import Encoded, mean_and_deviation
from gatewise.data.masks import IGNORED, Meaning, decode_mask, named, spread

_SAMPLE = 512  # images from which a split's mean and deviation are estimated


class Pairs:
    """One split: images and their masks, encoded, or decoded once.

    Args:
        images: encoded.
        masks: encoded, in the same order.
        meaning: of the masks' values.
        side: length to which the shorter side is scaled; None leaves images as they are.
        crop: side of the square that a training step sees; None takes the size of the first image.
    """

    def __init__(
        self,
        images: Encoded,
        masks: Encoded,
        meaning: Meaning,
        *,
        side: int | None = None,
        crop: int | None = None,
    ) -> None:
        self.images, self.masks, self.meaning, self.side, self.crop = images, masks, meaning, side, crop
        self._held: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.images)

    @property
    def held(self) -> bool:
        """Whether the pairs are decoded already."""
        return bool(self._held)

    def hold(self) -> None:
        """Decode all pairs now."""
        self._held = [self._decoded(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, (3, H, W), and its mask, (H, W), both uint8."""
        return self._held[index] if self._held else self._decoded(index)

    def picture(self, index: int) -> Any:
        """Return one image as a PIL image in RGB, of its own size."""
        return self.images.picture(index)

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(3, H, W) of the first image; others may have another."""
        _, height, width = self[0][0].shape
        return 3, height, width

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of what a training step sees of an image."""
        return (self.crop, self.crop) if self.crop else self.shape[1:]

    def mask(self, index: int) -> Tensor:
        """Return one mask alone, of its own size or, where the pairs are held, scaled."""
        if self._held:
            return self._held[index][1]
        where = self.masks.where(index)
        return self.meaning(decode_mask(where, self.masks.content(index)), where)

    def _decoded(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask, where = self.images.picture(index), self.mask(index), self.masks.where(index)
        if tuple(mask.shape) != (image.height, image.width):
            raise _checks.DataError(
                f"{where}: the mask is {mask.shape[1]}x{mask.shape[0]}, but its image {self.images.where(index)} is "
                f"{image.width}x{image.height}; expected the same size."
            )
        return scaled_to(self.side, pixels_of(image), mask)


def scaled_to(side: int | None, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale an image (3, H, W) and its mask (H, W) so that the shorter side is `side`; None leaves them."""
    height, width = mask.shape
    if side is None or min(height, width) == side:
        return pixels, mask
    factor = side / min(height, width)
    return resized(pixels, mask, (round(height * factor), round(width * factor)))


def resized(pixels: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale an image (3, H, W) bilinearly with antialiasing, and its mask (H, W) to the nearest pixel's class.

    No side becomes shorter than two pixels, which torch cannot scale to.
    """
    size = max(2, size[0]), max(2, size[1])
    transforms = _checks.optional_module("torchvision.transforms.v2.functional", "scaling images")
    nearest = _checks.optional_module("torchvision.transforms", "scaling images").InterpolationMode.NEAREST_EXACT
    return (
        transforms.resize_image(pixels, list(size), antialias=True),
        transforms.resize_image(mask.unsqueeze(0), list(size), interpolation=nearest)[0],
    )


@dataclass(frozen=True)
class PairDataset:
    """Two splits of images and masks.

    Attributes:
        name: what `load_pairs` was given.
        train: pairs to learn from.
        validation: pairs to measure on.
    """

    name: str
    train: Pairs
    validation: Pairs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the network's maps."""
        return self.train.meaning.kept

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a whole image, the first for validation."""
        return self.validation.shape[1:]

    def augmentation(self, text: str) -> Augmentation:
        """Return what `text` (see `parse_augmentation`) means for these images; auto is scale, crop and flip."""
        geometry, policy = parse_augmentation(text)
        if policy or "shift" in geometry:
            raise _checks.InvalidValueError(
                f"augmentation {text!r} is for images with one label; for masks take scale, crop and flip, joined by +."
            )
        if "auto" in geometry:
            geometry = frozenset({"scale", "crop", "flip"})
        if self.train.crop is not None and "crop" not in geometry:
            raise _checks.InvalidValueError(
                f"crop_size is {self.train.crop}, but augmentation {text!r} crops nothing. Add crop, or leave it out."
            )
        if "scale" in geometry and "crop" not in geometry:
            raise _checks.InvalidValueError(f"augmentation {text!r} makes images of many sizes; add crop to it.")
        return Augmentation(crop="crop" in geometry, flip="flip" in geometry, scale="scale" in geometry)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation per channel of the training images, on the scale 0 to 255.

        512 images at equal distances are looked at, or all if there are fewer.
        """
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return mean_and_deviation(self.train[index][0].unsqueeze(0) for index in spread(len(self.train), _SAMPLE))

    @functools.cached_property
    def frequencies(self) -> Tensor:
        """How often each class fills a pixel, in the training images in which it occurs at all.

        That is, pixels of the class over all pixels that count in those images (Eigen and Fergus, ICCV 2015), 0 for a
        class that is nowhere; (classes,), or (2,) for background and foreground. All masks are read for it.
        """
        count = len(named(self.classes))
        own, present = torch.zeros(2, count, dtype=torch.float64)
        for index in range(len(self.train)):
            mask = self.train.mask(index)
            pixels = mask[mask != IGNORED].long().bincount(minlength=count)
            own += pixels
            present += torch.where(pixels > 0, pixels.sum(), 0)
        return (own / present.clamp(min=1)).float()
