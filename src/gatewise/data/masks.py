"""Decode mask files to class indices, and infer the classes that the values in masks stand for."""

# pyright: basic

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_text
from gatewise.core.schema import of_file
from gatewise.data.decode import open_image
from gatewise.data.images import EncodedSource

IGNORED = 255  # class index of pixels that are excluded from loss and score
_BINARY = ("background", "foreground")
_INDEXED = ("1", "L", "P", "I;16", "I;16B", "I")  # Pillow's modes with one integer per pixel
_SAMPLED_MASKS = 256  # most masks of a split that are read to infer the classes
_SOFT_VALUES = 3  # fewest values between the lowest and the highest in soft masks
_EMPTY = 8  # masks that would have so many more classes than values have other values than classes


def decode_mask(where: str, content: bytes | None, *, soft: bool = False) -> Tensor:
    """Decode a mask to its pixel values, (H, W), int32; for palette images the indices, not the colours.

    Args:
        where: name of the mask, with which an error message begins.
        content: the bytes of the file.
        soft: whether values are brightness, which is also read from colours, JPEG, GIF and floating-point pixels.

    Raises:
        DataError: the content is not an image, has colours instead of indices, or is JPEG or GIF, which change indices.
    """
    import numpy as np

    image = open_image(where, content, "mask")
    if soft:
        deep = image.mode.startswith(("I", "F"))
        return torch.from_numpy(np.asarray(image if deep else image.convert("L")).astype(np.float32))
    if image.format in {"JPEG", "MPO", "GIF"}:
        raise errors.DataError(
            f"{where}: saved as {image.format}, which changes class indices; expected PNG. For one class against the "
            f"background add --mask-threshold 128."
        )
    if image.mode not in _INDEXED:
        raise errors.DataError(
            f"{where}: expected a mask with one class index per pixel (modes L, P, 1 or I;16), got mode {image.mode} "
            f"with colours. Map each colour to its class first, or for one class against the background add "
            f"--mask-threshold 128."
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
        threshold: value from which a pixel belongs to the second of two classes; None for class indices.

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
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.foreground is not None:
            _validation.check_one_of("foreground class", self.foreground, self._counted)
        if self.foreground is None and len(self._counted) < 2:
            raise errors.DataError(f"expected at least two classes in the masks, got {', '.join(self._counted)}.")
        if len(self.classes) > IGNORED:
            raise errors.DataError(f"expected at most {IGNORED} classes in the masks, got {len(self.classes)}.")

    @classmethod
    def of_config(cls, file: object, config: Mapping[str, Any]) -> Self | None:
        """Return the mapping of the training in a `config.json`, or None in those of older versions.

        Raises:
            DataError: the entry "masks" is invalid.
        """
        stored = config.get("masks")
        return None if stored is None else of_file(file, stored, cls)

    def check_names(self, where: object, names: Sequence[str]) -> None:
        """Raise `DataError` if the values of other masks have other names; the last ones may be missing."""
        if tuple(names) != self.classes[: len(names)]:
            raise errors.DataError(
                f"{where} names the mask values {_validation.listed(names, 5)}, the network was trained with "
                f"{_validation.listed(self.classes, 5)}, in this order. Give masks with the values of the training."
            )

    def warn_of_values(self, masks: EncodedSource, say: Callable[[str], None]) -> None:
        """Warn if up to 256 masks of a split have ignored pixels, and otherwise only the first class."""
        if self.threshold is not None:
            return
        found = set[int]()
        for index in evenly_spaced(len(masks), _SAMPLED_MASKS):
            found.update(decode_mask(masks.where(index), masks.content(index)).unique().tolist())
            if found - {0, self.ignored}:
                return
        if len(found) == 2:
            say(
                f"warning: {masks.where(0)} and other masks of its split have only the values 0 ({self.classes[0]}) "
                f"and {self.ignored} (ignored), so no pixel counts as {' or '.join(self.classes[1:3])}; if "
                f"{self.ignored} means a class, write the value of the class"
            )

    def decode(self, where: str, content: bytes | None) -> Tensor:
        """Decode a mask to values that `__call__` takes, (H, W); see `decode_mask`."""
        if self.threshold is None:
            return decode_mask(where, content)
        return (decode_mask(where, content, soft=True) >= self.threshold).int()

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
    masks: Sequence[EncodedSource],
    names: Sequence[str],
    ignored: int = IGNORED,
    foreground: str | None = None,
    threshold: float | None = None,
) -> MaskEncoding:
    """Infer the mapping from mask values to classes from up to 256 evenly spaced masks of each split.

    If the only values are 0 and 255, as in masks of salient objects, they are background and foreground; otherwise
    values are class indices. With names for other than two classes, no mask is read.

    Args:
        masks: the masks of each split.
        names: class names in the order of the values, or ().
        ignored: value of ignored pixels.
        foreground: see `MaskEncoding`.
        threshold: value from which a pixel is foreground; None for class indices.

    Raises:
        DataError: a mask cannot be read, its values are too high for class indices, or it looks soft.
        InvalidValueError: a threshold is combined with other than two names, or with a value to ignore.
    """
    if threshold is not None:
        return _thresholded(names, ignored, foreground, threshold)
    if names and len(names) != 2:
        return MaskEncoding(tuple(names), ignored, foreground)
    sampled = [_sampled(split) for split in masks]
    values = torch.cat([sample.values for sample in sampled]).unique().tolist()
    if values == [0, IGNORED]:
        unused = IGNORED + 1 if ignored == IGNORED else ignored
        return MaskEncoding(tuple(names) or _BINARY, unused, foreground, values=(0, IGNORED))
    if names:
        return MaskEncoding(tuple(names), ignored, foreground)
    _check_indices(masks, sampled, [value for value in values if value != ignored])
    highest = max((value for value in values if value != ignored), default=0)
    if highest >= IGNORED:
        raise errors.DataError(
            f"{masks[0].where(0)} and other masks have values up to {highest}; expected class indices below {IGNORED}. "
            f"If that value marks ignored pixels, set ignore_index to it."
        )
    return MaskEncoding(tuple(str(value) for value in range(highest + 1)), ignored, foreground)


def _thresholded(names: Sequence[str], ignored: int, foreground: str | None, threshold: float) -> MaskEncoding:
    if names and len(names) != 2:
        raise errors.InvalidValueError(
            f"mask_threshold makes two classes, background and foreground, got {len(names)} names. Give two."
        )
    if ignored != IGNORED:
        raise errors.InvalidValueError(
            f"ignore_index {ignored} has no meaning with mask_threshold: every value is above or below it. Omit one."
        )
    return MaskEncoding(tuple(names) or _BINARY, ignored, foreground, threshold=threshold)


@dataclass(frozen=True)
class _Sample:
    """What sampled masks contain.

    Attributes:
        values: all values, sorted.
        between: number of pixels with neither the lowest nor the highest value.
        flat: those of them whose right and lower neighbours have the same value.
        extreme: number of pixels with one of these two values.
        soft: number of masks with several values between them.
        first: index of the first such mask, or -1.
    """

    values: Tensor
    between: int
    flat: int
    extreme: int
    soft: int
    first: int


def _sampled(masks: EncodedSource) -> _Sample:
    """Return what up to 256 masks contain."""
    found, between, flat, extreme, soft, first = [], 0, 0, 0, 0, -1
    for index in evenly_spaced(len(masks), _SAMPLED_MASKS):
        mask = decode_mask(masks.where(index), masks.content(index))
        values = mask.unique()
        found.append(values)
        inside = (mask > 0) & (mask < IGNORED)
        if int(((values > 0) & (values < IGNORED)).sum()) >= _SOFT_VALUES:
            soft, first = soft + 1, first if first >= 0 else index
        between, extreme = between + int(inside.sum()), extreme + int((~inside).sum())
        same = (mask[:-1, :-1] == mask[1:, :-1]) & (mask[:-1, :-1] == mask[:-1, 1:])
        flat += int((same & inside[:-1, :-1]).sum())
    return _Sample(torch.cat(found).unique(), between, flat, extreme, soft, first)


def _check_indices(masks: Sequence[EncodedSource], sampled: Sequence[_Sample], values: Sequence[int]) -> None:
    """Raise `DataError` if values without names look like brightness.

    Regions of class indices are flat. Soft edges are not: hardly a pixel there is equal to its neighbours, in both
    directions.
    """
    between, flat, extreme = (sum(getattr(one, name) for one in sampled) for name in ("between", "flat", "extreme"))
    soft = [(split, one) for split, one in zip(masks, sampled, strict=True) if one.soft]
    if soft and max(values, default=0) >= IGNORED // 2 and 2 * flat < between:
        split, one = soft[0]
        others = sum(one.soft for _, one in soft) - 1
        raise errors.DataError(
            f"{split.where(one.first)} and {others} others have {len(values):,} values, 0 and {IGNORED} in "
            f"{100 * extreme / (between + extreme):.0f} % of pixels: masks with soft edges? Add --mask-threshold 128, "
            f"or name classes in classes.txt."
        )
    listed = _validation.listed(list(map(str, values)), 8)
    if 0 in values and _EMPTY * len(values) < max(values) + 1 <= IGNORED:
        raise errors.DataError(
            f"{masks[0].where(0)} and other masks have only the values {listed}, which would be "
            f"{max(values) + 1} classes. Add --mask-threshold 128 for one class against the background, "
            f"or number the classes from 0 without gaps, or name them all in classes.txt."
        )


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
