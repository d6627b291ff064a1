"""A sample of the training images, from which statistics and routes are computed."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from gatewise.data import Augmentation, Batches


@dataclass(frozen=True)
class Sample:
    """Training images in a fixed random order, without augmentation; it can be read several times.

    Attributes:
        batches: the training images.
        seed: seed of the order.
        images: number of images, rounded up to whole batches and at most one epoch.
    """

    batches: Batches
    seed: int
    images: int = 2048

    @property
    def count(self) -> int:
        """Number of images, of all processes together."""
        return min(self._steps, self.batches.steps) * self.batches.batch_size

    @property
    def _steps(self) -> int:
        return math.ceil(self.images / self.batches.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        drawn = self.batches.training(0, seed=self.seed, augmentation=Augmentation())
        return (images for images, _ in itertools.islice(drawn, self._steps))
