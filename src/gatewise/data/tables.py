"""Images in tables of the Hugging Face layout, from parquet files or from the hub: rows of image bytes and labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gatewise import _checks
from gatewise.data.images import Encoded, EncodedImages
from gatewise.files import read_bytes

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}
Split = tuple[EncodedImages, tuple[str, ...]]


class EncodedRows(Encoded):
    """Images in rows, each the bytes of a file or {"bytes": ..., "path": ...}.

    Args:
        tables: parts of the split, one behind the other: what to call it in a message, and its rows.
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
            came = f"{type(value).__name__} {str(value)[:50]!r}"
            raise _checks.DataError(f"{self.where(index)}: the image is {came}; expected the bytes of a file.")
        return value


def read_parquet(folder: Path, image_size: int | None) -> dict[str, Split]:
    """Return both splits of a folder of parquet files, at any depth: train*, and validation*, val* or test*."""
    return {split: _read_split(split_files(folder, split), image_size) for split in SPLITS}


def split_files(folder: Path, split: str) -> list[Path]:
    """Return a split's parquet files at any depth, those of the first prefix in `SPLITS` that there is."""
    parquet = sorted(folder.rglob("*.parquet"))
    for prefix in SPLITS[split]:
        if files := [file for file in parquet if file.name.startswith(prefix)]:
            return files
    listed = parquet or sorted(folder.iterdir())
    found = ", ".join(file.name for file in listed[:5]) + (", ..." if len(listed) > 5 else "")
    wanted = " or ".join(f"{prefix}*.parquet" for prefix in SPLITS[split])
    wanted = wanted if parquet else f"train/CLASS/ and val/CLASS/ full of images, or {wanted}"
    raise _checks.DataError(f"{folder} has no {split} split: expected {wanted}, found {found or 'nothing'}.")


def _read_split(files: list[Path], image_size: int | None) -> Split:
    parts = [_read_file(file) for file in files]
    names = parts[0][2]
    for file, part in zip(files, parts, strict=True):
        if part[2] != names:
            raise _checks.DataError(f"{file}: its classes or their order differ from those of {files[0]}.")
    tables = [(str(file), part[0]) for file, part in zip(files, parts, strict=True)]
    labels = [label for part in parts for label in part[1]]
    return EncodedImages(EncodedRows(tables), labels, image_size), class_names(str(files[0]), labels, names)


def read_table(file: Path) -> Any:
    """Read one parquet file; one that cannot be read is refused with its name."""
    parquet = _checks.optional_module("pyarrow.parquet", "reading parquet files")
    try:
        return parquet.read_table(file)
    except Exception as error:
        raise _checks.DataError(f"{file}: cannot be read as parquet: {str(error).splitlines()[0]}") from None


def _read_file(file: Path) -> tuple[Any, list[int], tuple[str, ...]]:
    """Return the image column, labels and class names ((), where the file has none) of one parquet file."""
    table = read_table(file)
    image, label = columns(str(file), table.column_names)
    labels = table[label].to_pylist()
    check_labels(str(file), labels)
    return table[image], labels, _told_names(str(file), table, label)


def _told_names(where: str, table: Any, label: str) -> tuple[str, ...]:
    """Return the names that Hugging Face's metadata give to the classes, () where there are none."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        raise _checks.DataError(f"{where}: its Hugging Face metadata are no JSON. Write the file anew.") from None
    for key in ("info", "features", label, "names"):
        found = (found.get(key) or {}) if isinstance(found, dict) else found
    if not found:
        return ()
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _checks.DataError(
            f"{where}: the class names in its metadata are {_checks.shown(found)}; expected a list."
        )
    return tuple(found)


def read_hub(name: str, image_size: int | None) -> dict[str, Split]:
    """Return both splits of a data set that `datasets` can load: a name on the hub, or a folder of its layout.

    Its rows are read from the library's memory-mapped cache, so the set may be larger than memory.
    """
    datasets = _checks.optional_module("datasets", f"the hub's data set {name!r}", extra="hub")
    try:
        found: Any = datasets.load_dataset(name)
    except Exception as error:  # whatever its network and file layers raise
        reason = " ".join(str(error).split())[:200]
        raise _checks.DataError(f"datasets cannot load {name!r} ({type(error).__name__}: {reason}).") from None
    splits = {}
    for split, names in SPLITS.items():
        own = next((own for own in names if own in found), None)
        if own is None:
            listed = ", ".join(found)
            raise _checks.DataError(f"{name} has no {split} split: expected {' or '.join(names)}, found {listed}.")
        where, rows = f"{name}, {own}", found[own]
        image, label = columns(where, rows.column_names)
        labels = rows[label][:]
        check_labels(where, labels)
        rows = rows.cast_column(image, datasets.Image(decode=False))
        feature = rows.features[label]
        listed_names = class_names(where, labels, tuple(getattr(feature, "names", None) or ()))
        files = EncodedRows([(where, _Column(rows, image))])
        splits[split] = EncodedImages(files, labels, image_size), listed_names
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
        masks = " For masks, which have a class for each pixel, set task to segment." if "mask" in names else ""
        raise _checks.DataError(f"{where}: expected columns 'image' and 'label', found {listed(names)}.{masks}")
    return image, label


def listed(names: Sequence[str]) -> str:
    """Return names of columns as a refusal shows them, each cut where it is long."""
    shown = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:20]]
    return ", ".join(" ".join(name.split()) for name in shown) + (", ..." if len(names) > 20 else "")


def check_labels(where: str, labels: Sequence[object]) -> None:
    """Refuse labels that are not integers from 0."""
    for row, label in enumerate(labels):
        if isinstance(label, dict | bytes | list):
            raise _checks.DataError(
                f"{where}, row {row}: the label is an image or a list, perhaps a mask; expected one integer from 0."
            )
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise _checks.DataError(f"{where}, row {row}: label {_checks.shown(label)}; expected an integer from 0.")


def class_names(where: str, labels: Sequence[int], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given names, or numbers where there are none; refuse labels beyond them and a single class."""
    if len(set(labels)) < 2:
        raise _checks.DataError(f"{where}: all {len(labels)} images have one class; expected at least two.")
    highest = max(labels)
    if names and highest >= len(names):
        raise _checks.DataError(f"{where}: label {highest}, but only {len(names)} class names.")
    return names or tuple(str(label) for label in range(highest + 1))
