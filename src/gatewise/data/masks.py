"""From the bytes of a mask file to the class of each pixel, or one line that names the file."""

import functools
import io
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise import _checks
from gatewise.data.images import EncodedImages

IGNORED = 255  # in a mask: a pixel that neither the loss nor the score counts
_INDEXED = ("1", "L", "P", "I;16", "I;16B", "I")  # Pillow's modes of one number a pixel
_LOOKED_AT = 256  # masks of a split at most, at equal distances, whose values are read before a training


def decode_mask(where: str, content: bytes | None) -> Tensor:
    """Return an encoded mask as class indices, (H, W), int32; of a palette image the indices, not the colours.

    Refused with `DataError`, which begins with `where`: no image, colours instead of indices, and JPEG and GIF, which
    change indices.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise _checks.DataError(f"{where}: no image bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures
            image = Image.open(io.BytesIO(content))
            image.load()
    except Exception as error:  # decoders of foreign bytes raise whatever those lead to
        reason = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise _checks.DataError(f"{where}: truncated or unreadable mask ({reason}).") from None
    if image.format in {"JPEG", "MPO", "GIF"}:
        raise _checks.DataError(f"{where}: saved as {image.format}, which changes class indices; expected PNG.")
    if image.mode not in _INDEXED:
        raise _checks.DataError(
            f"{where}: a mask of mode {image.mode}, colours and not classes; expected one class index a pixel "
            f"(modes L, P, 1 or I;16). Map each colour to its class first."
        )
    return torch.from_numpy(np.asarray(image).astype(np.int32))


@dataclass(frozen=True)
class Meaning:
    """What the values in mask files stand for.

    Attributes:
        classes: names of all classes in the files, in the order of their values.
        ignored: the value of pixels that do not count, which may also be one of the classes.
        foreground: the one class to find; the others are then background.

    >>> Meaning(("road", "car", "void"), ignored=2).kept
    ('road', 'car')
    >>> Meaning(("road", "car", "void"), ignored=2, foreground="car")(torch.tensor([[0, 1, 2]]), "a.png")
    tensor([[  0,   1, 255]], dtype=torch.uint8)
    """

    classes: tuple[str, ...]
    ignored: int = IGNORED
    foreground: str | None = None

    def __post_init__(self) -> None:
        if self.foreground is not None:
            _checks.one_of("foreground class", self.foreground, self._counted)
        if self.foreground is None and len(self._counted) < 2:
            raise _checks.DataError(f"there is one class, {', '.join(self._counted)}; expected at least two.")
        if len(self.classes) > IGNORED:
            raise _checks.DataError(f"there are {len(self.classes)} classes; expected at most {IGNORED}.")

    @property
    def _counted(self) -> tuple[str, ...]:
        return tuple(name for value, name in enumerate(self.classes) if value != self.ignored)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the classes to tell apart: those that count, or the foreground alone."""
        return self._counted if self.foreground is None else (self.foreground,)

    @functools.cached_property
    def _indices(self) -> Tensor:
        """Class index of each value in a file."""
        values = [value for value in range(len(self.classes)) if value != self.ignored]
        indices = torch.full((len(self.classes),), IGNORED, dtype=torch.uint8)
        if self.foreground is None:
            indices[values] = torch.arange(len(values), dtype=torch.uint8)
        else:
            indices[values] = 0
            indices[self.classes.index(self.foreground)] = 1
        return indices

    def __call__(self, values: Tensor, where: str) -> Tensor:
        """Return the class index of each pixel, (H, W), uint8, 255 where it does not count."""
        known = (values >= 0) & (values < len(self.classes))
        wrong = values[~known & (values != self.ignored)]
        if len(wrong):
            raise _checks.DataError(
                f"{where}: value {int(wrong[0])} in {len(wrong)} pixels; expected 0 to {len(self.classes) - 1} "
                f"for {len(self.classes)} classes, or {self.ignored} for what does not count. "
                f"Set ignore_index, or name all classes in classes.txt."
            )
        return torch.where(known, self._indices[values.clamp(0, len(self.classes) - 1).long()], IGNORED)


def number_of_classes(masks: EncodedImages, ignored: int) -> int:
    """Return one more than the highest value in the masks, 256 of which are looked at, apart from `ignored`."""
    highest = 0
    for index in spread(len(masks), _LOOKED_AT):
        values = decode_mask(masks.where(index), masks.content(index))
        counted = values[values != ignored]
        highest = max(highest, int(counted.max()) if len(counted) else 0)
    if highest >= IGNORED:
        raise _checks.DataError(
            f"{masks.where(0)} and other masks have values up to {highest}; expected class indices below {IGNORED}. "
            f"If that value marks what does not count, set ignore_index to it."
        )
    return highest + 1


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` indices below `count`, at equal distances.

    >>> spread(9, 3), spread(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
