"""Images and labels in one file of NumPy, as MedMNIST and Keras distribute them."""

# pyright: basic

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.folders import Location
from gatewise.data.layout import split_of
from gatewise.data.reading import Kind, OtherReading
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source

_IMAGES, _LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")


@register_source("arrays", help="a file *.npz with train_images, train_labels, ...", order=42)
class Arrays(LabelledSource):
    """An .npz with arrays SPLIT_images and SPLIT_labels, x_SPLIT and y_SPLIT, or images and labels."""

    def matches(self, location: Location) -> bool:
        return _file(location) is not None

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        import numpy as np

        file = _file(location) or location.path
        advice = "Expected arrays without objects."
        with as_data_error(file, "cannot be read", advice), np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        splits: dict[str, dict[str, Any]] = {}
        for name, array in arrays.items():
            kind, words = _meaning(name)
            if not kind:
                continue
            split = split_of(words) or "train"
            if kind in splits.setdefault(split, {}):
                raise errors.DataError(
                    f"{file}: two arrays are the {kind} of {split}, in {_validation.listed(list(arrays))}. Rename one."
                )
            splits[split][kind] = array
        complete = {split: parts for split, parts in splits.items() if len(parts) == 2}
        if "train" not in complete and not (complete and isinstance(location.reading, OtherReading)):
            raise errors.DataError(
                f"{file}: expected arrays train_images and train_labels (or x_train and y_train, images and labels), "
                f"found {_validation.listed(list(arrays))}."
            )
        for split in splits.keys() - complete.keys():
            _leave_out(location, split, *splits[split])
        return {
            split: LabelledSplit(
                _pixels(file, parts["images"]), _labels(file, parts["labels"], location.labels), shown=split
            )
            for split, parts in complete.items()
        }


def _leave_out(location: Location, split: str, present: str) -> None:
    """Say that test images without labels are not used; raise `DataError` for other splits with one array."""
    missing = "labels" if present == "images" else "images"
    if split != "test":
        raise errors.DataError(f"{location}: {split} has {present} and no {missing}. Add {split}_{missing}.")
    location.say(f"test has no {missing} and is not used")


def _file(location: Location) -> Path | None:
    """Return the one .npz at a location."""
    if location.is_folder:
        found = location.with_suffix(".npz")
        return found[0] if len(found) == 1 and not any(location.image_counts().values()) else None
    return location.path if location.text.lower().endswith(".npz") and location.path.is_file() else None


def _meaning(name: str) -> tuple[str, str]:
    """Return "images" or "labels" and the other words of an array's name; "" if it is neither."""
    words = name.lower().split("_")
    for kind, known in (("images", _IMAGES), ("labels", _LABELS)):
        if found := [word for word in words if word in known]:
            return kind, "_".join(word for word in words if word != found[0])
    return "", ""


def _pixels(file: Path, array: Any) -> Tensor:
    """Return (N, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if array.dtype != "uint8" or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise errors.DataError(
            f"{file}: expected images (N, H, W) or (N, H, W, 3) of type uint8, got {array.shape} of type "
            f"{array.dtype}. Convert them."
        )
    pixels = torch.from_numpy(array)
    return pixels.unsqueeze(1) if array.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _labels(file: Path, array: Any, kind: Kind) -> list[Any]:
    """Return (N,) or (N, 1) as numbers, and (N, L) as lists of numbers, or of indices if the label is no number."""
    if array.ndim and array.size == len(array):
        return array.reshape(len(array)).tolist()
    if array.ndim == 2 and kind == "number":
        return array.tolist()
    if array.ndim != 2 or not ((array == 0) | (array == 1)).all():
        raise errors.DataError(
            f"{file}: expected labels (N,), or (N, L) of 0 and 1 (one column for each class), got {array.shape} of "
            f"type {array.dtype}. For several numbers of an image add --task regress."
        )
    return [row.nonzero()[0].tolist() for row in array]
