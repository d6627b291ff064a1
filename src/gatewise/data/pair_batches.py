"""Batches of images with masks, augmented together and determined by seed and epoch."""

# pyright: basic

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.data.augmentation import Augmentation
from gatewise.data.batches import Batch, Batches, BatchParams, StreamedBatches, seed_generators
from gatewise.data.images import EncodedImages, EncodedSource, Images
from gatewise.data.masks import IGNORED, with_background
from gatewise.data.pairs import SegmentationSplit, resized

_VALUES = 2**26  # most logits of one evaluation batch
SCALES = (0.5, 2.0)  # range of the random scale factor, as in GCNet's segmentation recipe


class SegmentationBatches(StreamedBatches):
    """Batches of normalised images (N, C, H, W) with masks (N, H, W), int64, 255 for ignored pixels.

    Training batches contain crops. Evaluation batches contain uncropped images, consecutive ones of the same size.

    Args:
        pairs: the split, whose `crop_size` is the size of training crops.
        *args: as for `StreamedBatches`.
        workers: as for `StreamedBatches`.
        **options: as for `StreamedBatches`.
    """

    def __init__(self, pairs: SegmentationSplit, *args: Any, workers: int = 0, **options: Any) -> None:
        self.pairs = pairs
        super().__init__(pairs, *args, workers=workers, **options)
        self._fill = (-self._shift / self._scale).round().to("cpu", torch.uint8)[0]  # mean colour, (C, 1, 1)

    def _hold(self) -> None:
        pass

    @property
    def _files(self) -> EncodedSource:
        return self.pairs.images

    def training(self, epoch: int, *, seed: int, augmentation: Augmentation, start: int = 0) -> Iterator[Batch]:
        draws = list(self._draws(epoch, seed, augmentation, start))
        for pixels, masks in self._read(_RandomCrops(self.pairs, augmentation, self._fill), draws):
            yield self._normalised(pixels.to(self.device, non_blocking=True)), masks.to(self.device).long()

    def evaluation(self) -> Iterator[Batch]:
        waiting: list[tuple[Tensor, Tensor]] = []
        for pair in self._read(_WholeImages(self.pairs), list(range(len(self.pairs))[self._own])):
            most = min(
                self.batch_size, max(1, _VALUES // (pair[1].numel() * len(with_background(self.pairs.meaning.kept))))
            )
            if waiting and (len(waiting) >= most or pair[1].shape != waiting[0][1].shape):
                yield self._collate(waiting)
                waiting = []
            waiting.append(pair)
        if waiting:
            yield self._collate(waiting)

    def _collate(self, pairs: list[tuple[Tensor, Tensor]]) -> Batch:
        pixels, masks = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return self._normalised(pixels.to(self.device)), masks.to(self.device).long()


class _WholeImages(torch.utils.data.Dataset):
    """Map an index to a pair, or to an error message: a worker process would wrap an exception in its own traceback."""

    def __init__(self, pairs: SegmentationSplit) -> None:
        self.pairs = pairs

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | str:
        try:
            return self.pairs[index]
        except errors.DataError as error:
            return str(error)


class _RandomCrops(_WholeImages):
    """Map `BatchParams` to augmented images (B, C, H, W) and masks (B, H, W), both uint8, or to an error message."""

    def __init__(self, pairs: SegmentationSplit, augmentation: Augmentation, fill: Tensor) -> None:
        super().__init__(pairs)
        self.augmentation, self.fill = augmentation, fill

    def __getitem__(self, draw: BatchParams) -> tuple[Tensor, Tensor] | str:
        seed_generators(draw.number)
        try:
            drawn = zip(draw.samples.tolist(), draw.flips.tolist(), strict=True)
            pairs = [self._augmented(index, flips=flips) for index, flips in drawn]
        except errors.DataError as error:
            return str(error)
        pixels, masks = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return pixels, masks

    def _augmented(self, index: int, *, flips: bool) -> tuple[Tensor, Tensor]:
        pixels, mask = self.pairs[index]
        if self.augmentation.scale:
            factor = math.exp(_between(*map(math.log, SCALES)))
            height, width = mask.shape
            pixels, mask = resized(pixels, mask, (round(height * factor), round(width * factor)))
        if self.augmentation.crop:
            pixels, mask = cropped(pixels, mask, self.pairs.crop_size, self.fill, (_between(0, 1), _between(0, 1)))
        elif tuple(mask.shape) != self.pairs.shape[1:]:
            sizes = [f"{shape[-1]}x{shape[-2]}" for shape in (mask.shape, self.pairs.shape)]
            raise errors.DataError(
                f"{self.pairs.images.where(index)}: the image is {sizes[0]}, but {self.pairs.images.where(0)} is "
                f"{sizes[1]}; add crop to augmentation."
            )
        if self.augmentation.flip and flips:
            pixels, mask = pixels.flip(2), mask.flip(1)
        return pixels, mask


def cropped(
    pixels: Tensor, mask: Tensor, size: tuple[int, int], fill: Tensor, at: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return a crop of an image and its mask, padded along axes where the image is smaller than the crop.

    Args:
        pixels: the image, (C, H, W).
        mask: its mask, (H, W).
        size: (height, width) of the crop.
        fill: colour of the padding, (C, 1, 1); its mask is 255.
        at: vertical and horizontal position of the crop in the image, or of the image in the crop, from 0 (top, left)
            to 1.

    >>> cropped(torch.tensor([[[1, 2, 3]]]), torch.tensor([[4, 5, 6]]), (2, 2), torch.tensor([[[9]]]), (0.0, 1.0))
    (tensor([[[2, 3],
             [9, 9]]]), tensor([[  5,   6],
            [255, 255]]))
    """
    part, labels = fill.expand(-1, *size).clone(), mask.new_full(size, IGNORED)
    taken, placed = [], []
    for own, wanted, share in zip(mask.shape, size, at, strict=True):
        left = abs(own - wanted)
        start, length = min(left, int(share * (left + 1))), min(own, wanted)  # all starts are equally likely
        taken.append(slice(start, start + length) if own > wanted else slice(0, length))
        placed.append(slice(0, length) if own >= wanted else slice(start, start + length))
    part[:, placed[0], placed[1]] = pixels[:, taken[0], taken[1]]
    labels[placed[0], placed[1]] = mask[taken[0], taken[1]]
    return part, labels


def _between(low: float, high: float) -> float:
    """Return a uniform random number, drawn from torch's global generator."""
    return low + (high - low) * float(torch.rand(()))


def make_batches(
    images: Images | EncodedImages | SegmentationSplit,
    *args: Any,
    augmentation: Augmentation,
    workers: int = 0,
    **options: Any,
) -> Batches:
    """Return batches of the class that fits a split and its augmentation.

    Args:
        images: the split.
        *args: as for `Batches`.
        augmentation: if it needs PIL images, images in memory are augmented one by one too.
        workers: as for `StreamedBatches`.
        **options: as for `Batches`.
    """
    if isinstance(images, SegmentationSplit):
        return SegmentationBatches(images, *args, workers=workers, **options)
    if isinstance(images, Images) and not augmentation.per_image:
        return Batches(images, *args, **options)
    return StreamedBatches(images, *args, workers=workers, **options)
