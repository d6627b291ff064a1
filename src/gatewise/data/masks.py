"""From the bytes of a mask file to the class of each pixel, or one line that names the file."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise import _checks
from gatewise.data.decode import open_image
from gatewise.data.images import Encoded

IGNORED = 255  # in a mask: a pixel that neither the loss nor the score counts
_INDEXED = ("1", "L", "P", "I;16", "I;16B", "I")  # Pillow's modes of one number a pixel
_LOOKED_AT = 256  # masks of a split at most, at equal distances, whose values are read before a training


def decode_mask(where: str, content: bytes | None) -> Tensor:
    """Return an encoded mask as class indices, (H, W), int32; of a palette image the indices, not the colours.

    Refused with `DataError`, which begins with `where`: no image, colours instead of indices, and JPEG and GIF, which
    change indices.
    """
    import numpy as np

    image = open_image(where, content, "mask")
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
        values: of the classes in the files; None counts from 0.

    >>> Meaning(("road", "car", "void"), ignored=2).kept
    ('road', 'car')
    >>> Meaning(("road", "car", "void"), ignored=2, foreground="car")(torch.tensor([[0, 1, 2]]), "a.png")
    tensor([[  0,   1, 255]], dtype=torch.uint8)
    """

    classes: tuple[str, ...]
    ignored: int = IGNORED
    foreground: str | None = None
    values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.foreground is not None:
            _checks.one_of("foreground class", self.foreground, self._counted)
        if self.foreground is None and len(self._counted) < 2:
            raise _checks.DataError(f"there is one class, {', '.join(self._counted)}; expected at least two.")
        if len(self.classes) > IGNORED:
            raise _checks.DataError(f"there are {len(self.classes)} classes; expected at most {IGNORED}.")

    @property
    def _values(self) -> tuple[int, ...]:
        return self.values or tuple(range(len(self.classes)))

    @property
    def _counted(self) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.classes, self._values, strict=True) if value != self.ignored)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the classes to tell apart: those that count, or the foreground alone."""
        return self._counted if self.foreground is None else (self.foreground,)

    @functools.cached_property
    def _indices(self) -> Tensor:
        """Class index of each value in a file up to the highest, or -1 where it stands for nothing."""
        indices = torch.full((max(*self._values, self.ignored) + 1,), -1, dtype=torch.int16)
        for name, value in zip(self.classes, self._values, strict=True):
            if name in self._counted:
                indices[value] = self._counted.index(name) if self.foreground is None else int(name == self.foreground)
        indices[self.ignored] = IGNORED
        return indices

    def __call__(self, values: Tensor, where: str) -> Tensor:
        """Return the class index of each pixel, (H, W), uint8, 255 where it does not count."""
        highest = len(self._indices) - 1
        indices = self._indices[values.clamp(0, highest).long()]
        wrong = values[(indices < 0) | (values < 0) | (values > highest)]
        if len(wrong):
            raise _checks.DataError(
                f"{where}: value {int(wrong[0])} in {len(wrong)} pixels; expected {self._expected} "
                f"for {len(self.classes)} classes, or {self.ignored} for what does not count. "
                f"Set ignore_index, or name all classes in classes.txt."
            )
        return indices.to(torch.uint8)

    @property
    def _expected(self) -> str:
        return " or ".join(map(str, self.values)) if self.values else f"0 to {len(self.classes) - 1}"


def meaning_of(
    masks: Sequence[Encoded], names: Sequence[str], ignored: int = IGNORED, foreground: str | None = None
) -> Meaning:
    """Return what the values in masks stand for, of which 256 of each split are looked at.

    Values of 0 and 255 alone, as in masks of salient objects, are two classes; otherwise they are class numbers. Where
    the classes are named and not two, nothing is looked at.
    """
    if names and len(names) != 2:
        return Meaning(tuple(names), ignored, foreground)
    values = torch.cat([_values_in(split) for split in masks]).unique().tolist()
    if values == [0, IGNORED]:
        nothing = IGNORED + 1 if ignored == IGNORED else ignored
        return Meaning(tuple(names) or ("background", "foreground"), nothing, foreground, values=(0, IGNORED))
    if names:
        return Meaning(tuple(names), ignored, foreground)
    highest = max((value for value in values if value != ignored), default=0)
    if highest >= IGNORED:
        raise _checks.DataError(
            f"{masks[0].where(0)} and other masks have values up to {highest}; expected class indices below {IGNORED}. "
            f"If that value marks what does not count, set ignore_index to it."
        )
    return Meaning(tuple(str(value) for value in range(highest + 1)), ignored, foreground)


def _values_in(masks: Encoded) -> Tensor:
    looked_at = (decode_mask(masks.where(index), masks.content(index)) for index in spread(len(masks), _LOOKED_AT))
    return torch.cat([mask.unique() for mask in looked_at]).unique()


def named(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the indices in a mask: those of the classes, or background before a single one.

    >>> named(["car"]), named(["sky", "road"])
    (('background', 'car'), ('sky', 'road'))
    """
    return tuple(classes) if len(classes) > 1 else ("background", *classes)


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` indices below `count`, at equal distances.

    >>> spread(9, 3), spread(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
