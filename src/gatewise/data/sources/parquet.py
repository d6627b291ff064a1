"""Folders of parquet files in the Hugging Face layout, with labels or masks."""

# pyright: basic

import json
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.folders import Location
from gatewise.data.masks import named_classes
from gatewise.data.sources.registry import (
    SPLITS,
    LabelledSource,
    LabelledSplit,
    MaskedSource,
    MaskedSplit,
    register_source,
)
from gatewise.data.tables import IMAGE_COLUMNS, MASK_COLUMNS, EncodedRows, check_labels, class_names, columns


@register_source("parquet", help="a folder with train*.parquet and val*.parquet", order=50)
class Parquet(LabelledSource, MaskedSource):
    """A folder with parquet files at any depth: train*, and validation*, valid*, val* or test*.

    The encoded images are kept in memory; `hub:FOLDER`, which memory-maps them, is for larger data.
    """

    def matches(self, location: Location) -> bool:
        return location.is_folder and bool(location.with_suffix(".parquet"))

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        return {split: _labelled(_split_files(location, split)) for split in SPLITS}

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        classes = named_classes(location.path)
        return {split: _masked(_split_files(location, split), classes) for split in SPLITS}


def _split_files(location: Location, split: str) -> list[Path]:
    """Return the files of a split: those with the first prefix in `SPLITS` that has files."""
    files = location.with_suffix(".parquet")
    for prefix in SPLITS[split]:
        if chosen := [file for file in files if file.name.startswith(prefix)]:
            return chosen
    expected = " or ".join(f"{prefix}*.parquet" for prefix in SPLITS[split])
    found = _validation.listed([file.name for file in files], most=5)
    raise errors.DataError(f"{location} has no {split} split: expected {expected}, found {found}.")


def _labelled(files: list[Path]) -> LabelledSplit:
    parts = [_read_file(file) for file in files]
    names = parts[0][2]
    for file, part in zip(files, parts, strict=True):
        if part[2] != names:
            raise errors.DataError(f"{file}: expected the same class names in the same order as in {files[0]}.")
    tables = [(str(file), part[0]) for file, part in zip(files, parts, strict=True)]
    labels = [label for part in parts for label in part[1]]
    return LabelledSplit(EncodedRows(tables), labels, class_names(str(files[0]), labels, names))


def _read_table(file: Path) -> Any:
    parquet = _validation.import_optional("pyarrow.parquet", "reading parquet files")
    with as_data_error(f"{file}:", "not a valid parquet file"):
        return parquet.read_table(file)


def _read_file(file: Path) -> tuple[Any, list[int], tuple[str, ...]]:
    """Return the image column, labels and class names of one parquet file; the names are () if it has none."""
    table = _read_table(file)
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


def _masked(files: list[Path], classes: tuple[str, ...]) -> MaskedSplit:
    tables = [(str(file), _read_table(file)) for file in files]
    parts: list[list[tuple[str, Any]]] = []
    for what, known in (("image", IMAGE_COLUMNS), ("mask", MASK_COLUMNS)):
        parts.append([(where, table[_column(where, table, what, known)]) for where, table in tables])
    if not any(len(table) for _, table in tables):
        raise errors.DataError(f"{files[0]} has no rows; expected images and masks.")
    images, masks = map(EncodedRows, parts)
    return MaskedSplit(images, masks, classes)


def _column(where: str, table: Any, what: str, known: tuple[str, ...]) -> str:
    found = next((name for name in known if name in table.column_names), None)
    if found is None:
        found = _validation.listed(table.column_names)
        raise errors.DataError(f"{where}: expected columns 'image' and 'mask', found {found}; {what} is missing.")
    if not any(kind in str(table.schema.field(found).type) for kind in ("struct", "binary", "string")):
        raise errors.DataError(
            f"{where}: expected image files in column {found!r}, found {table.schema.field(found).type}. "
            f"For one label per image set task to classify."
        )
    return found
