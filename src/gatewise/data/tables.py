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
from gatewise.data.reading import Reading

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
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


def columns(where: str, names: Sequence[str], reading: Reading) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    wanted = {"image": (reading.image_column, IMAGE_COLUMNS), "label": (reading.label_column, LABEL_COLUMNS)}
    found: list[str] = []
    for kind, (given, known) in wanted.items():
        usual = [given] if given is not None else list(known)
        name = next((name for name in usual if name in names), None)
        if name is None and given is None and kind == "label":  # the only other column
            left = [name for name in names if name not in found]
            name = left[0] if len(left) == 1 and left[0] not in MASK_COLUMNS else None
        if name is None:
            hint = " For masks set task to segment." if "mask" in names else f" Or set {kind}_column."
            expected = repr(given) if given is not None else "columns 'image' and 'label'"
            raise errors.DataError(f"{where}: expected {expected}, found {_validation.listed(names)}.{hint}")
        found.append(name)
    return found[0], found[1]


def further_columns(names: Sequence[str], reading: Reading) -> list[str]:
    """Return the columns that the division reads: `group`, and those of COLUMN=VALUE."""
    options = (reading.group, reading.validation_split, reading.test_split)
    asked = {option.partition("=")[0] for option in options if isinstance(option, str)}
    return [name for name in names if name in asked]


def has_image_column(file: Path) -> bool:
    """Return whether a parquet file contains images, not their names; also if it cannot be read."""
    if file.suffix.lower() != ".parquet":
        return False
    parquet = _validation.import_optional("pyarrow.parquet", "reading parquet files")
    try:
        schema = parquet.read_schema(file)
    except Exception:  # the reader of the images reports it
        return True
    return any(kind in str(field.type) for field in schema for kind in ("struct", "binary"))
