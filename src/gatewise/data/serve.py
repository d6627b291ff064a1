"""The batches that suit a split: from memory, streamed, or with masks."""

from typing import Any

from gatewise.data.augmentation import Augmentation
from gatewise.data.batches import Batches, StreamedBatches
from gatewise.data.images import EncodedImages, Images
from gatewise.data.pair_batches import PairBatches
from gatewise.data.pairs import Pairs


def make_batches(
    images: Images | EncodedImages | Pairs, *args: Any, augmentation: Augmentation, workers: int = 0, **options: Any
) -> Batches:
    """Return the batches that suit a split and what is done to its images; other arguments are those of `Batches`."""
    if isinstance(images, Pairs):
        return PairBatches(images, *args, workers=workers, **options)
    if isinstance(images, Images) and not augmentation.per_image:
        return Batches(images, *args, **options)
    return StreamedBatches(images, *args, workers=workers, **options)
