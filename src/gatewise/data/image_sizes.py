"""The size of images that are of different sizes, if none was chosen."""

# pyright: basic

import contextlib
from collections.abc import Sequence
from statistics import median

from torch import Tensor

from gatewise import errors
from gatewise.data.images import EncodedSource
from gatewise.data.masks import evenly_spaced
from gatewise.data.raster import size_of

_SAMPLED = 256  # most files of a split whose headers are read
_LARGEST, _STEP = 224, 8  # pixels


def chosen_side(splits: Sequence[EncodedSource | Tensor]) -> tuple[int | None, str]:
    """Return the side to which images of different sizes are scaled, and a note; (None, "") if all are of one size.

    It is the median of the shorter sides of the training images, rounded down to a multiple of 8, and at most 224.

    Args:
        splits: the images of each split; the first are for training.
    """
    sizes = [_sizes(images) for images in splits if not isinstance(images, Tensor)]
    seen = sorted({size for of_split in sizes for size in of_split})
    if len(seen) < 2 or not sizes[0]:
        return None, ""
    side = max(_STEP, min(_LARGEST, int(median(map(min, sizes[0]))) // _STEP * _STEP))
    (width, height), (wide, high) = seen[0], seen[-1]
    return side, (
        f"images have different sizes ({width}x{height}, {wide}x{high}, ...): each is scaled, and its centre cropped, "
        f"to {side}x{side}; --image-size chooses another size"
    )


def _sizes(images: EncodedSource) -> list[tuple[int, int]]:
    """Return (width, height) of evenly spaced images, as they are read."""
    sizes: list[tuple[int, int]] = []
    for index in evenly_spaced(len(images), _SAMPLED):
        with contextlib.suppress(errors.DataError):  # reported when the image is decoded
            sizes.append(size_of(images.where(index), images.content(index)))
    return sizes
