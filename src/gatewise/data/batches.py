"""Batches of one split: the same for the same seed and epoch, wherever an interrupted training goes on."""

# pyright: basic

import math
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise import _validation, errors
from gatewise.data.augmentation import Augmentation
from gatewise.data.decode import picture_of, pixels_of
from gatewise.data.images import EncodedImages, Images

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BatchParams:
    """One training batch before its pixels: which images, and what chance does to each.

    Attributes:
        samples: indices, (B,).
        offsets: rows and columns by which each image is moved, (2, B).
        flips: (B,).
        number: of the batch in the whole training, from which policies seed themselves.
    """

    samples: Tensor
    offsets: Tensor
    flips: Tensor
    number: int


class Batches:
    """Batches of one split as (N, C, H, W) float maps, normalised, in channels_last layout.

    In training every epoch has its own order, shifts and flips, which depend on `seed` and the epoch alone: a
    resumed training sees what an undisturbed one saw. A last, smaller batch is left out of training.

    Args:
        images: the split, moved to `device` as a whole.
        batch_size: samples in a batch over all processes.
        mean: per channel, on the scale 0 to 255.
        std: likewise.
        device: where batches are made.
        share: (rank, processes): which slice of each training batch, and which evaluation batches, this process gets.
    """

    def __init__(
        self,
        images: Any,
        batch_size: int,
        mean: Tensor,
        std: Tensor,
        *,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        _validation.check_integer_at_least(1, batch_size=batch_size)
        self.images = images
        self.device = torch.device(device)
        self.batch_size = min(batch_size, len(images))
        self.share = share
        self._scale = (1 / std).to(device).reshape(1, -1, 1, 1)
        self._shift = (-mean / std).to(device).reshape(1, -1, 1, 1)
        self._hold()

    def _hold(self) -> None:
        """Bring to the device what is kept there: pixels and labels."""
        if not isinstance(self.images, Images):
            raise errors.InvalidTypeError("Batches needs images in memory; use StreamedBatches for encoded ones.")
        self.pixels, self.labels = self.images.pixels.to(self.device), self.images.labels.to(self.device)

    @property
    def steps(self) -> int:
        """Batches in a training epoch."""
        return len(self.images) // self.batch_size

    def training(self, epoch: int, *, seed: int, augmentation: Augmentation, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled and augmented batches of one epoch, from batch `start` on."""
        for draw in self._draws(epoch, seed, augmentation, start):
            index = draw.samples.to(self.device)
            yield self._normalised(_augmented(self.pixels[index], draw, augmentation)), self.labels[index]

    def evaluation(self) -> Iterator[Batch]:
        """Yield all images in their own order, as they are; of several processes, each its own images."""
        pixels, labels = (tensor[self._own].split(self.batch_size) for tensor in (self.pixels, self.labels))
        for images, theirs in zip(pixels, labels, strict=True):
            if len(theirs):
                yield self._normalised(images), theirs

    @property
    def _own(self) -> slice:
        """Which images this process evaluates: as many whole batches as the others, the last process what is left."""
        rank, processes = self.share
        each = math.ceil(len(self.images) / self.batch_size / processes) * self.batch_size
        return slice(rank * each, (rank + 1) * each)

    def _draws(self, epoch: int, seed: int, augmentation: Augmentation, start: int) -> Iterator[BatchParams]:
        """Yield what each batch of an epoch is made of; batches before `start` are drawn and dropped."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        rank, processes = self.share
        mine = slice(rank, None, processes)
        for step in range(self.steps):
            samples = order[step * self.batch_size : (step + 1) * self.batch_size]
            offsets = torch.randint(0, 2 * augmentation.padding + 1, (2, len(samples)), generator=generator)
            flips = torch.rand(len(samples), generator=generator) < 0.5
            if step >= start:
                number = (seed * 1_000_003 + epoch) * self.steps + step
                yield BatchParams(samples[mine], offsets[:, mine], flips[mine], number * processes + rank)

    def _normalised(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, floats, self._scale).contiguous(memory_format=torch.channels_last)


class StreamedBatches(Batches):
    """The same batches, with images decoded and augmented one by one in `workers` processes while the network trains.

    The result does not depend on the number of workers; 0 works in this process.
    """

    def __init__(self, *args: Any, workers: int = 0, **options: Any) -> None:
        _validation.check_integer_at_least(0, workers=workers)
        self.workers = workers
        super().__init__(*args, **options)

    def _hold(self) -> None:
        self.labels = self.images.labels.to(self.device)  # images stay where they are

    def training(self, epoch: int, *, seed: int, augmentation: Augmentation, start: int = 0) -> Iterator[Batch]:
        yield from self._loaded(list(self._draws(epoch, seed, augmentation, start)), augmentation)

    def evaluation(self) -> Iterator[Batch]:
        batches = torch.arange(len(self.labels))[self._own].split(self.batch_size)
        none = torch.zeros(2, self.batch_size, dtype=torch.long), torch.zeros(self.batch_size, dtype=torch.bool)
        draws = [BatchParams(samples, *none, number=0) for samples in batches if len(samples)]
        yield from self._loaded(draws, Augmentation())

    def _loaded(self, draws: list[BatchParams], augmentation: Augmentation) -> Iterator[Batch]:
        decoded = self._read(_DecodedBatches(self.images, augmentation), draws)
        for draw, images in zip(draws, decoded, strict=True):
            labels = self.labels[draw.samples.to(self.device)]
            yield self._normalised(images.to(self.device, non_blocking=True)), labels

    def _read(self, dataset: Any, order: list[Any]) -> Iterator[Any]:
        """Yield what `dataset` makes of each entry of `order`, in the workers; a message is raised as `DataError`."""
        loader = torch.utils.data.DataLoader(
            dataset,
            sampler=order,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.device.type == "cuda",
        )
        for found in loader:
            if isinstance(found, str):
                raise errors.DataError(found)
            yield found


class _DecodedBatches(torch.utils.data.Dataset):
    """From a draw to its images (B, C, H, W), uint8, or to the message why one cannot be had.

    A message is returned rather than raised, because a worker process would wrap it in its own traceback.
    """

    def __init__(self, images: Images | EncodedImages, augmentation: Augmentation) -> None:
        self.images, self.augmentation = images, augmentation
        self._of_picture = augmentation.of_picture(images.shape[1:]) if augmentation.per_image else None

    def __getitem__(self, draw: BatchParams) -> Tensor | str:
        seed_generators(draw.number)
        try:
            images = torch.stack([self._image(index) for index in draw.samples.tolist()])
        except errors.DataError as error:
            return str(error)
        return _augmented(images, draw, self.augmentation)

    def _image(self, index: int) -> Tensor:
        if self._of_picture is None:
            return self.images[index]
        picture = self.images.picture(index) if self.augmentation.crop else picture_of(self.images[index])
        return pixels_of(self._of_picture(picture))[: self.images.shape[0]]  # grey became three equal channels


def seed_generators(number: int) -> None:
    """Seed the global generators of Python, NumPy and torch, from which timm and dropout draw."""
    import numpy as np

    number %= 2**63
    random.seed(number)
    np.random.seed([number % 2**32, number // 2**32 % 2**32])
    torch.manual_seed(number)


def _leave_signals_to_the_parent(worker: int) -> None:  # noqa: ARG001
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _augmented(images: Tensor, draw: BatchParams, augmentation: Augmentation) -> Tensor:
    """Return a batch moved and mirrored as drawn: (B, C, H, W) -> (B, C, H, W)."""
    if augmentation.padding:
        images = shift(images, draw.offsets.to(images.device), augmentation.padding)
    if augmentation.flip:
        images = torch.where(draw.flips.to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)
    return images


def shift(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Return each image moved within a frame of zeros: (N, C, H, W), (2, N) -> (N, C, H, W).

    A move of `padding` leaves the image where it is; 0 shows `padding` rows of the frame above it.

    >>> shift(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[2], [1]]), 1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    height, width = images.shape[2:]
    framed = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, offsets[0], offsets[1]]
