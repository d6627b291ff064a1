"""Decode mask files to class indices, and infer the classes that the values in masks stand for."""

# pyright: basic

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_text
from gatewise.data.decode import open_image
from gatewise.data.images import EncodedSource

IGNORED = 255  # class index of pixels that are excluded from loss and score
_INDEXED = ("1", "L", "P", "I;16", "I;16B", "I")  # Pillow's modes with one integer per pixel
_SAMPLED_MASKS = 256  # most masks of a split that are read to infer the classes


def decode_mask(where: str, content: bytes | None) -> Tensor:
    """Decode a mask to its pixel values, (H, W), int32; for palette images the indices, not the colours.

    Args:
        where: name of the mask, with which an error message begins.
        content: the bytes of the file.

    Raises:
        DataError: the content is not an image, has colours instead of indices, or is JPEG or GIF, which change indices.
    """
    import numpy as np

    image = open_image(where, content, "mask")
    if image.format in {"JPEG", "MPO", "GIF"}:
        raise errors.DataError(f"{where}: saved as {image.format}, which changes class indices; expected PNG.")
    if image.mode not in _INDEXED:
        raise errors.DataError(
            f"{where}: expected a mask with one class index per pixel (modes L, P, 1 or I;16), got mode {image.mode} "
            f"with colours. Map each colour to its class first."
        )
    return torch.from_numpy(np.asarray(image).astype(np.int32))


@dataclass(frozen=True)
class MaskEncoding:
    """Mapping from the values in mask files to class indices.

    Attributes:
        classes: names of all classes in the files, in the order of their values.
        ignored: value of pixels that are excluded from loss and score; a class with this value is dropped.
        foreground: name of the class to find; all other classes become background. None keeps all classes.
        values: value of each class in the files; None means 0, 1, 2, ...

    Raises:
        DataError: there are fewer than two classes, or more than 255.
        InvalidValueError: the foreground is not one of the classes.

    >>> MaskEncoding(("road", "car", "void"), ignored=2).kept
    ('road', 'car')
    >>> MaskEncoding(("road", "car", "void"), ignored=2, foreground="car")(torch.tensor([[0, 1, 2]]), "a.png")
    tensor([[  0,   1, 255]], dtype=torch.uint8)
    """

    classes: tuple[str, ...]
    ignored: int = IGNORED
    foreground: str | None = None
    values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.foreground is not None:
            _validation.check_one_of("foreground class", self.foreground, self._counted)
        if self.foreground is None and len(self._counted) < 2:
            raise errors.DataError(f"expected at least two classes in the masks, got {', '.join(self._counted)}.")
        if len(self.classes) > IGNORED:
            raise errors.DataError(f"expected at most {IGNORED} classes in the masks, got {len(self.classes)}.")

    @property
    def _values(self) -> tuple[int, ...]:
        return self.values or tuple(range(len(self.classes)))

    @property
    def _counted(self) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.classes, self._values, strict=True) if value != self.ignored)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the classes to predict: all that are not ignored, or only the foreground."""
        return self._counted if self.foreground is None else (self.foreground,)

    @functools.cached_property
    def _indices(self) -> Tensor:
        """Class index of each value in a file, -1 for values without a class; (highest value + 1,)."""
        indices = torch.full((max(*self._values, self.ignored) + 1,), -1, dtype=torch.int16)
        for name, value in zip(self.classes, self._values, strict=True):
            if name in self._counted:
                indices[value] = self._counted.index(name) if self.foreground is None else int(name == self.foreground)
        indices[self.ignored] = IGNORED
        return indices

    def __call__(self, values: Tensor, where: str) -> Tensor:
        """Return the class index of each pixel, 255 where it is ignored.

        Args:
            values: pixel values of a mask, (H, W).
            where: name of the mask, with which an error message begins.

        Returns:
            (H, W), uint8.

        Raises:
            DataError: a value has no class.
        """
        highest = len(self._indices) - 1
        indices = self._indices[values.clamp(0, highest).long()]
        unknown = values[(indices < 0) | (values < 0) | (values > highest)]
        if len(unknown):
            raise errors.DataError(
                f"{where}: value {int(unknown[0])} in {len(unknown)} pixels; expected {self._expected} "
                f"for {len(self.classes)} classes, or {self.ignored} for ignored pixels. "
                f"Set ignore_index, or name all classes in classes.txt."
            )
        return indices.to(torch.uint8)

    @property
    def _expected(self) -> str:
        return " or ".join(map(str, self.values)) if self.values else f"0 to {len(self.classes) - 1}"


def named_classes(folder: Path) -> tuple[str, ...]:
    """Return the class names in classes.txt (one per line, in the order of the values), or () without this file."""
    file = folder / "classes.txt"
    if not file.exists():
        return ()
    return checked_names(str(file), read_text(file).removeprefix("\ufeff").rstrip().splitlines())


def checked_names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return class names without surrounding spaces; raise `DataError` if one is empty or occurs twice."""
    names = tuple(name.strip() for name in names)
    for value, name in enumerate(names):
        if not name:
            raise errors.DataError(f"{where}: class {value} has no name. Give each mask value a name.")
        if name in names[:value]:
            raise errors.DataError(f"{where}: {name!r} is given twice. Give each class a different name.")
    return names


def infer_mask_encoding(
    masks: Sequence[EncodedSource], names: Sequence[str], ignored: int = IGNORED, foreground: str | None = None
) -> MaskEncoding:
    """Infer the mapping from mask values to classes from up to 256 evenly spaced masks of each split.

    If the only values are 0 and 255, as in masks of salient objects, they are background and foreground; otherwise
    values are class indices. With names for other than two classes, no mask is read.

    Args:
        masks: the masks of each split.
        names: class names in the order of the values, or ().
        ignored: value of ignored pixels.
        foreground: see `MaskEncoding`.

    Raises:
        DataError: a mask cannot be read, or its values are too high for class indices.
    """
    if names and len(names) != 2:
        return MaskEncoding(tuple(names), ignored, foreground)
    values = torch.cat([_values_in(split) for split in masks]).unique().tolist()
    if values == [0, IGNORED]:
        unused = IGNORED + 1 if ignored == IGNORED else ignored
        return MaskEncoding(tuple(names) or ("background", "foreground"), unused, foreground, values=(0, IGNORED))
    if names:
        return MaskEncoding(tuple(names), ignored, foreground)
    highest = max((value for value in values if value != ignored), default=0)
    if highest >= IGNORED:
        raise errors.DataError(
            f"{masks[0].where(0)} and other masks have values up to {highest}; expected class indices below {IGNORED}. "
            f"If that value marks ignored pixels, set ignore_index to it."
        )
    return MaskEncoding(tuple(str(value) for value in range(highest + 1)), ignored, foreground)


def _values_in(masks: EncodedSource) -> Tensor:
    sample = (
        decode_mask(masks.where(index), masks.content(index)) for index in evenly_spaced(len(masks), _SAMPLED_MASKS)
    )
    return torch.cat([mask.unique() for mask in sample]).unique()


def with_background(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the class indices in a mask; a single class is preceded by "background".

    >>> with_background(["car"]), with_background(["sky", "road"])
    (('background', 'car'), ('sky', 'road'))
    """
    return tuple(classes) if len(classes) > 1 else ("background", *classes)


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return up to `most` evenly spaced indices from 0 to `count` - 1.

    >>> evenly_spaced(9, 3), evenly_spaced(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
