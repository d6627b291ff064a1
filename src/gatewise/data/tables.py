"""Read images and labels from tables in the Hugging Face layout, from parquet files or the hub."""

# pyright: basic

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.data.images import EncodedImages, EncodedSource

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}
Split = tuple[EncodedImages, tuple[str, ...]]


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


def read_parquet(folder: Path, image_size: int | None) -> dict[str, Split]:
    """Return both splits of a folder with parquet files, at any depth: train*, and validation*, val* or test*.

    Raises:
        DataError: a split is missing, a file or label is invalid, or the files have different class names.
    """
    return {split: _read_split(split_files(folder, split), image_size) for split in SPLITS}


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the parquet files of a split at any depth: those with the first prefix in `SPLITS` that has files."""
    parquet = sorted(folder.rglob("*.parquet"))
    for prefix in SPLITS[split]:
        if files := [file for file in parquet if file.name.startswith(prefix)]:
            return files
    existing = parquet or sorted(folder.iterdir())
    found = ", ".join(file.name for file in existing[:5]) + (", ..." if len(existing) > 5 else "")
    expected = " or ".join(f"{prefix}*.parquet" for prefix in SPLITS[split])
    expected = expected if parquet else f"train/CLASS/ and val/CLASS/ with images, or {expected}"
    raise errors.DataError(f"{folder} has no {split} split: expected {expected}, found {found or 'nothing'}.")


def _read_split(files: list[Path], image_size: int | None) -> Split:
    parts = [_read_file(file) for file in files]
    names = parts[0][2]
    for file, part in zip(files, parts, strict=True):
        if part[2] != names:
            raise errors.DataError(f"{file}: expected the same class names in the same order as in {files[0]}.")
    tables = [(str(file), part[0]) for file, part in zip(files, parts, strict=True)]
    labels = [label for part in parts for label in part[1]]
    return EncodedImages(EncodedRows(tables), labels, image_size), class_names(str(files[0]), labels, names)


def read_table(file: Path) -> Any:
    """Read one parquet file; raise `DataError` with its name if that fails."""
    parquet = _validation.import_optional("pyarrow.parquet", "reading parquet files")
    try:
        return parquet.read_table(file)
    except Exception as error:
        raise errors.DataError(f"{file}: not a valid parquet file: {str(error).splitlines()[0]}") from None


def _read_file(file: Path) -> tuple[Any, list[int], tuple[str, ...]]:
    """Return the image column, labels and class names of one parquet file; the names are () if it has none."""
    table = read_table(file)
    image, label = columns(str(file), table.column_names)
    labels = table[label].to_pylist()
    check_labels(str(file), labels)
    return table[image], labels, _metadata_names(str(file), table, label)


def _metadata_names(where: str, table: Any, label: str) -> tuple[str, ...]:
    """Return the class names in a table's Hugging Face metadata, or () if there are none."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(metadata)
    except (ValueError, RecursionError):
        raise errors.DataError(f"{where}: its Hugging Face metadata is not valid JSON. Recreate the file.") from None
    for key in ("info", "features", label, "names"):
        names = (names.get(key) or {}) if isinstance(names, dict) else names
    if not names:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise errors.DataError(
            f"{where}: expected a list of class names in its metadata, got {_validation.safe_repr(names)}."
        )
    return tuple(names)


def read_hub(name: str, image_size: int | None) -> dict[str, Split]:
    """Return both splits of a data set that `datasets` can load.

    Rows are read from the library's memory-mapped cache, so the data may be larger than memory.

    Args:
        name: name of a data set on the hub, or a folder in its layout.
        image_size: see `EncodedImages`.

    Raises:
        DataError: the data set cannot be loaded, or a split, column or label is missing or invalid.
    """
    datasets = _validation.import_optional("datasets", f"the hub's data set {name!r}", extra="hub")
    try:
        found: Any = datasets.load_dataset(name)
    except Exception as error:  # its network and file layers can raise any error
        reason = " ".join(str(error).split())[:200]
        raise errors.DataError(f"datasets cannot load {name!r} ({type(error).__name__}: {reason}).") from None
    splits = {}
    for split, names in SPLITS.items():
        key = next((key for key in names if key in found), None)
        if key is None:
            keys = ", ".join(found)
            raise errors.DataError(f"{name} has no {split} split: expected {' or '.join(names)}, found {keys}.")
        where, rows = f"{name}, {key}", found[key]
        image, label = columns(where, rows.column_names)
        labels = rows[label][:]
        check_labels(where, labels)
        rows = rows.cast_column(image, datasets.Image(decode=False))
        feature = rows.features[label]
        listed_names = class_names(where, labels, tuple(getattr(feature, "names", None) or ()))
        encoded = EncodedRows([(where, _Column(rows, image))])
        splits[split] = EncodedImages(encoded, labels, image_size), listed_names
    return splits


class _Column:
    """One column of a `datasets` table, read row by row."""

    def __init__(self, rows: Any, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row][self.name]


def columns(where: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    if image is None or label is None:
        hint = " For masks set task to segment." if "mask" in names else ""
        raise errors.DataError(f"{where}: expected columns 'image' and 'label', found {listed(names)}.{hint}")
    return image, label


def listed(names: Sequence[str]) -> str:
    """Return column names as text for an error message: at most 20, each truncated to 60 characters."""
    shown = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:20]]
    return ", ".join(" ".join(name.split()) for name in shown) + (", ..." if len(names) > 20 else "")


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
