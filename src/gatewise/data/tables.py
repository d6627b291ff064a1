"""Tables of images: their columns, rows with encoded images, and labels."""

# pyright: basic

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.data.images import EncodedSource

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MASK_COLUMNS = ("mask", "label", "annotation", "segmentation")


class EncodedRows(EncodedSource):
    """Images in rows of tables, each the bytes of a file or {"bytes": ..., "path": ...}.

    Args:
        tables: the parts of the split in order, each with its name for error messages and its image column.
    """

    def __init__(self, tables: Sequence[tuple[str, Any]]) -> None:
        self._tables = tables
        self._ends = torch.tensor([len(rows) for _, rows in tables]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _row(self, index: int) -> tuple[str, int, Any]:
        part = int(torch.searchsorted(self._ends, index, right=True))
        name, rows = self._tables[part]
        return name, index - int(self._ends[part - 1]) if part else index, rows

    def where(self, index: int) -> str:
        name, row, _ = self._row(index)
        return f"{name}, row {row}"

    def content(self, index: int) -> bytes | None:
        _, row, rows = self._row(index)
        value = rows[row]
        value = value.as_py() if hasattr(value, "as_py") else value
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes") or (read_bytes(Path(path)) if path and Path(path).is_file() else None)
        if value is not None and not isinstance(value, bytes):
            shown = f"{type(value).__name__} {str(value)[:50]!r}"
            raise errors.DataError(f"{self.where(index)}: expected the bytes of an image file, got {shown}.")
        return value


def columns(where: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    if image is None or label is None:
        hint = " For masks set task to segment." if "mask" in names else ""
        raise errors.DataError(
            f"{where}: expected columns 'image' and 'label', found {_validation.listed(names)}.{hint}"
        )
    return image, label


def check_labels(where: str, labels: Sequence[object]) -> None:
    """Raise `DataError` if a label is not a non-negative integer."""
    for row, label in enumerate(labels):
        if isinstance(label, dict | bytes | list):
            raise errors.DataError(
                f"{where}, row {row}: expected a non-negative integer as label, got an image or a list, perhaps a mask."
            )
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise errors.DataError(
                f"{where}, row {row}: expected a non-negative integer as label, got {_validation.safe_repr(label)}."
            )


def class_names(where: str, labels: Sequence[int], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names, or the numbers of the classes if `names` is ().

    Raises:
        DataError: all images have the same class, or a label has no name.
    """
    if len(set(labels)) < 2:
        raise errors.DataError(f"{where}: expected at least two classes, but all {len(labels)} images have one class.")
    highest = max(labels)
    if names and highest >= len(names):
        raise errors.DataError(f"{where}: expected labels below {len(names)} (one per class name), got {highest}.")
    return names or tuple(str(label) for label in range(highest + 1))
