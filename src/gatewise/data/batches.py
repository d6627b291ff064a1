"""Batches of one split, determined by seed and epoch, so that a resumed training gets the same batches."""

# pyright: basic

import math
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.stop_signals import stop_signals
from gatewise.data.augmentation import Augmentation
from gatewise.data.band_image import BandImage
from gatewise.data.broken import with_advice
from gatewise.data.images import EncodedImages, EncodedSource, Images

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BatchParams:
    """The random choices for one training batch.

    Attributes:
        samples: indices of the images, (B,).
        offsets: offsets of `shift` in rows and columns, (2, B).
        flips: whether to flip each image, (B,), bool.
        number: seed of the batch's other random numbers, such as those of timm's policies.
    """

    samples: Tensor
    offsets: Tensor
    flips: Tensor
    number: int


class Batches:
    """Batches of one split: normalised float images (N, C, H, W) in channels_last memory format, and labels (N,).

    The order, shifts and flips of a training epoch depend only on `seed` and the epoch, so a resumed training gets the
    same batches as an uninterrupted one. Training drops the last incomplete batch.

    Args:
        images: the split; all of it is copied to `device`.
        batch_size: images per batch over all processes.
        mean: mean per channel on the scale 0 to 255, (C,).
        std: standard deviation per channel, on the same scale, (C,).
        device: device of the batches.
        share: (rank, number of processes): each process gets its part of every training batch and of the evaluation.
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
        """Copy pixels and labels to the device."""
        if not isinstance(self.images, Images):
            raise errors.InvalidTypeError(
                f"Batches needs images in memory, got {type(self.images).__name__}. "
                f"Use StreamedBatches for encoded images."
            )
        self.pixels, self.labels = self.images.pixels.to(self.device), self.images.labels.to(self.device)

    @property
    def steps(self) -> int:
        """Number of batches in a training epoch."""
        return len(self.images) // self.batch_size

    def training(self, epoch: int, *, seed: int, augmentation: Augmentation, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled and augmented batches of one epoch, starting with batch `start`."""
        for draw in self._draws(epoch, seed, augmentation, start):
            index = draw.samples.to(self.device)
            yield self._normalised(_augmented(self.pixels[index], draw, augmentation)), self.labels[index]

    def evaluation(self) -> Iterator[Batch]:
        """Yield this process's images in order, without augmentation."""
        pixels, labels = (tensor[self._own].split(self.batch_size) for tensor in (self.pixels, self.labels))
        for images, targets in zip(pixels, labels, strict=True):
            if len(targets):
                yield self._normalised(images), targets

    @property
    def _own(self) -> slice:
        """The images that this process evaluates: equally many full batches for each process, the rest for the last."""
        rank, processes = self.share
        each = math.ceil(len(self.images) / self.batch_size / processes) * self.batch_size
        return slice(rank * each, (rank + 1) * each)

    def _draws(self, epoch: int, seed: int, augmentation: Augmentation, start: int) -> Iterator[BatchParams]:
        """Yield the random choices for each batch of an epoch; those before `start` are drawn and dropped."""
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
    """Batches whose images are decoded and augmented one by one in worker processes while the network trains.

    Args:
        *args: as for `Batches`.
        workers: number of worker processes, 0 for none; the batches do not depend on it.
        **options: as for `Batches`.
    """

    def __init__(self, *args: Any, workers: int = 0, **options: Any) -> None:
        _validation.check_integer_at_least(0, workers=workers)
        self.workers = workers
        super().__init__(*args, **options)

    def _hold(self) -> None:
        self.labels = self.images.labels.to(self.device)  # images are decoded when needed

    @property
    def _files(self) -> EncodedSource:
        return self.images.files

    def training(self, epoch: int, *, seed: int, augmentation: Augmentation, start: int = 0) -> Iterator[Batch]:
        yield from self._loaded(list(self._draws(epoch, seed, augmentation, start)), augmentation)

    def evaluation(self) -> Iterator[Batch]:
        batches = torch.arange(len(self.labels))[self._own].split(self.batch_size)
        zeros = torch.zeros(2, self.batch_size, dtype=torch.long), torch.zeros(self.batch_size, dtype=torch.bool)
        draws = [BatchParams(samples, *zeros, number=0) for samples in batches if len(samples)]
        yield from self._loaded(draws, Augmentation())

    def _loaded(self, draws: list[BatchParams], augmentation: Augmentation) -> Iterator[Batch]:
        decoded = self._read(_DecodedBatches(self.images, augmentation), draws)
        for draw, images in zip(draws, decoded, strict=True):
            labels = self.labels[draw.samples.to(self.device)]
            yield self._normalised(images.to(self.device, non_blocking=True)), labels

    def _read(self, dataset: Any, order: list[Any]) -> Iterator[Any]:
        """Yield `dataset[entry]` for each entry of `order`, computed by the workers; raise a `str` as `DataError`."""
        loader = torch.utils.data.DataLoader(
            dataset,
            sampler=order,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.device.type == "cuda",
        )
        for item in loader:
            if isinstance(item, str):
                raise errors.DataError(with_advice(item, self._files))
            yield item


class _DecodedBatches(torch.utils.data.Dataset):
    """Map `BatchParams` to images (B, C, H, W), uint8, or to an error message.

    An error is returned rather than raised, because a worker process would wrap it in its own traceback.
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
        image = self.images.whole(index) if self.augmentation.crop else BandImage.of(self.images[index])
        return image.varied(self._of_picture)


def seed_generators(number: int) -> None:
    """Seed the global generators of Python, NumPy and torch, from which timm and dropout draw."""
    import numpy as np

    number %= 2**63
    random.seed(number)
    np.random.seed([number % 2**32, number // 2**32 % 2**32])
    torch.manual_seed(number)


def _leave_signals_to_the_parent(worker: int) -> None:  # noqa: ARG001
    for number in set(stop_signals()) - {signal.SIGTERM}:  # which are sent to all processes of a terminal
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _augmented(images: Tensor, draw: BatchParams, augmentation: Augmentation) -> Tensor:
    """Return a batch shifted and flipped as drawn: (B, C, H, W) -> (B, C, H, W)."""
    if augmentation.padding:
        images = shift(images, draw.offsets.to(images.device), augmentation.padding)
    if augmentation.flip:
        images = torch.where(draw.flips.to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)
    return images


def shift(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Return each zero-padded image cropped to its size at an offset: (N, C, H, W), (2, N) -> (N, C, H, W).

    Args:
        images: (N, C, H, W).
        offsets: row and column of the crop in the padded image, (2, N), from 0 to 2 * padding; `padding` changes
            nothing.
        padding: zeros on each side, in pixels.

    >>> shift(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[2], [1]]), 1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    height, width = images.shape[2:]
    framed = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, offsets[0], offsets[1]]
