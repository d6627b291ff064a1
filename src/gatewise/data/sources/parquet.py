"""Folders of parquet files in the Hugging Face layout, with labels or masks."""

# pyright: basic

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.folders import Location
from gatewise.data.layout import split_of_file
from gatewise.data.masks import named_classes
from gatewise.data.reading import Reading
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, MaskedSource, MaskedSplit, register_source
from gatewise.data.tables import IMAGE_COLUMNS, MASK_COLUMNS, EncodedRows, columns, further_columns


@register_source("parquet", help="a folder with train*.parquet, and val*.parquet if it is divided", order=50)
class Parquet(LabelledSource, MaskedSource):
    """A folder with parquet files at any depth, whose names begin with the name of a split; or one parquet file.

    The encoded images are kept in memory; `hub:FOLDER`, which memory-maps them, is for larger data.
    """

    has_columns = True

    def matches(self, location: Location) -> bool:
        return bool(_files(location))

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        splits = _split_files(location)
        first = splits["train"][0]
        _leave_out_test(location, splits, columns(str(first), _names(first), location.reading)[1:])
        return {split: _labelled(files, location) for split, files in splits.items()}

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        classes = named_classes(location.path)
        splits = _split_files(location)
        _leave_out_test(location, splits, MASK_COLUMNS)
        return {split: _masked(files, classes) for split, files in splits.items()}


def _files(location: Location) -> list[Path]:
    """Return the parquet files at a location, which may be one itself."""
    if location.is_folder:
        return location.with_suffix(".parquet")
    return [location.path] if location.text.lower().endswith(".parquet") and location.path.is_file() else []


def _split_files(location: Location) -> dict[str, list[Path]]:
    """Return the files of each split; files without the name of a split are train if no file has one."""
    files = _files(location)
    splits: dict[str, list[Path]] = {}
    for file in files:
        if (split := split_of_file(location, file)) is not None:
            splits.setdefault(split, []).append(file)
    if not splits:
        return {"train": files}
    if "train" not in splits:
        found = _validation.listed([file.name for file in files], most=5)
        raise errors.DataError(f"{location} has no train split: expected train*.parquet, found {found}.")
    return splits


def _leave_out_test(location: Location, splits: dict[str, list[Path]], labels: Sequence[str]) -> None:
    """Leave out a test split that has none of the columns of labels."""
    if "test" in splits and not set(labels).intersection(_names(splits["test"][0])):
        location.say(f"{splits['test'][0].name} has no labels and is not used")
        del splits["test"]


def _labelled(files: list[Path], location: Location) -> LabelledSplit:
    parts = [_read_file(file, location.reading) for file in files]
    names = parts[0][2]
    for file, part in zip(files, parts, strict=True):
        if part[2] != names:
            raise errors.DataError(f"{file}: expected the same class names in the same order as in {files[0]}.")
    tables = [(str(file), part[0]) for file, part in zip(files, parts, strict=True)]
    labels = [label for part in parts for label in part[1]]
    columns = {name: [cell for part in parts for cell in part[3][name]] for name in parts[0][3]}
    return LabelledSplit(EncodedRows(tables), labels, names, columns, shown=files[0].name)


def _read_table(file: Path) -> Any:
    parquet = _validation.import_optional("pyarrow.parquet", "reading parquet files")
    with as_data_error(f"{file}:", "not a valid parquet file"):
        return parquet.read_table(file)


def _names(file: Path) -> list[str]:
    """Return the names of the columns of a file."""
    parquet = _validation.import_optional("pyarrow.parquet", "reading parquet files")
    with as_data_error(f"{file}:", "not a valid parquet file"):
        return parquet.read_schema(file).names


def _read_file(file: Path, reading: Reading) -> tuple[Any, list[Any], tuple[str, ...], dict[str, list[Any]]]:
    """Return image column, labels, class names and further columns of one parquet file; the names are () without."""
    table = _read_table(file)
    image, label = columns(str(file), table.column_names, reading)
    further = {name: table[name].to_pylist() for name in further_columns(table.column_names, reading)}
    return table[image], table[label].to_pylist(), _metadata_names(str(file), table, label), further


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
    return MaskedSplit(images, masks, classes, shown=files[0].name)


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
