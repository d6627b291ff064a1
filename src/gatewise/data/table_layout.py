"""Which tables of a folder are read, the files that their rows name, and their columns of splits."""

import dataclasses
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.wording import counted
from gatewise.data.division import COLUMNS
from gatewise.data.folders import TABLES, Location, is_image
from gatewise.data.labels import LabelledSplit
from gatewise.data.layout import SPLIT_WORDS, by_split, class_folders, split_of, split_of_file
from gatewise.data.masked_split import MaskedSplit
from gatewise.data.reading import OtherReading
from gatewise.data.table_files import ImageFolder, Table, folded, most_found, read_table, without_parents
from gatewise.data.tables import further_columns, has_image_column

METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)  # Hugging Face's names
_SPLITS = ("split", "set", "subset", "ml_use", "partition")
_FLAGS = {"is_valid": "validation", "is_test": "test"}  # columns of true and false
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "nan", "none")
AnySplit = TypeVar("AnySplit", LabelledSplit, MaskedSplit)


def is_table(path: Path) -> bool:
    """Return whether a file is a table that names images; one that contains them is for another source."""
    return path.is_file() and path.name.lower().endswith(TABLES) and not has_image_column(path)


def tables_of(location: Location) -> dict[str, Path]:
    """Return the table of each split of a folder, train first, or its only table as train; {} if there is none.

    Raises:
        DataError: there are several tables, of all images or of one split, and it is not clear which has the labels.
    """
    root = [path for path in location.tables() if is_table(path)]
    if metadata := _metadata(root):
        return {"train": _only(location, metadata)}
    inside = {folder: _table_in(location, folder) for folder in location.image_counts() if split_of(folder)}
    is_enough = isinstance(location.reading, OtherReading) and all(split_of(path.stem) for path in root)
    for found in (inside, {path.name: path for path in _named_as_splits(location, root)}):
        tables = {name: path for name, path in found.items() if path is not None}
        splits = by_split(location, tables)
        if "train" in splits or (splits and is_enough):
            return {split: tables[name] for split, name in splits.items()}
    if len(root) > 1:
        root = _naming_images(location, root)
    return {"train": _only(location, root)} if root else {}


def _metadata(tables: Sequence[Path]) -> list[Path]:
    return [path for path in tables if path.name.lower() in METADATA]


def _table_in(location: Location, folder: str) -> Path | None:
    """Return the table of one split in its folder, or None; of several, the one that names images."""
    own = [path for path in location.tables(folder) if is_table(path)]
    own = _metadata(own) or own
    if len(own) > 1:
        own = _naming_images(Location(location.path / folder, location.reading), own)
    if len(own) > 1 and class_folders(location, folder):
        return None
    return _only(location, own) if own else None


def _named_as_splits(location: Location, tables: Sequence[Path]) -> list[Path]:
    """Return the tables that are named as splits; if several are named as one split, those that name images."""
    named = [path for path in tables if split_of(path.stem)]
    if len({split_of(path.stem) for path in named}) == len(named):
        return named
    return _naming_images(location, named) or named


def _naming_images(location: Location, tables: Sequence[Path]) -> list[Path]:
    images = ImageFolder(location)
    return [path for path in tables if most_found(read_table(path), images)]


def _only(location: Location, tables: Sequence[Path]) -> Path:
    """Return the only table; raise `DataError` if there are several."""
    if len(tables) > 1:
        names = " or ".join(str(path.relative_to(location.path)) for path in tables)
        raise errors.DataError(f"{location}: which table has the labels, {names}? Give it as --data.")
    return tables[0]


def files_of(location: Location, table: Table, column: str, folder: ImageFolder) -> list[str]:
    """Return the file that each cell of a column names, "" if there is none and it is left out."""
    found = [folder.find(cell) for cell in table.columns[column]]
    for row, several in enumerate(found):
        if len(several) > 1:
            raise errors.DataError(
                f"{table.row(row)}: {table.columns[column][row]} is {' and '.join(several[:2])}. Give the folder too."
            )
    _check_apart(table, column, found)
    missing = [row for row, files in enumerate(found) if not files]
    if missing:
        cells = _validation.listed([str(table.columns[column][row]) for row in missing], 3)
        count = f"{len(missing):,} of {len(found):,} rows have no file"
        if location.reading.on_broken != "skip":
            raise errors.DataError(
                f"{table.row(missing[0])}: {cells} in no folder of images below {folder.path} ({count}). Give the "
                f"folder as --data-root, or add --on-broken skip."
            )
        location.say(f"{table.file.name}: {count} and are left out ({cells})")
    return [files[0] if files else "" for files in found]


def _check_apart(table: Table, column: str, found: Sequence[Sequence[str]]) -> None:
    """Raise if cells with different folders are one file, because the folders are not there."""
    cells: dict[str, str] = {}
    for row, files in enumerate(found):
        if not files:
            continue
        cell = str(table.columns[column][row])
        first = cells.setdefault(files[0], cell)
        if first != cell and not (_end(first).endswith(_end(cell)) or _end(cell).endswith(_end(first))):
            raise errors.DataError(
                f"{table.row(row)}: {cell} and {first} are both {files[0]}. Give the folder that has both as "
                f"--data-root, or correct the paths."
            )


def _end(cell: str) -> str:
    """Return the end of a path in the form in which it can be compared: folded, without .. and suffix."""
    path = without_parents(posixpath.normpath(folded(cell.strip().replace("\\", "/"))))
    return f"/{path.rpartition('.')[0] if is_image(path) else path}"


def say_unused(location: Location, table: Table, folder: ImageFolder, files: Sequence[str]) -> None:
    """Say how many images no row names."""
    if unused := len(folder.files) - len(set(files).intersection(folder.files)):
        location.say(f"{counted(unused, 'image')} without a row in {table.file.name} not used")


def use_groups(location: Location, table: Table) -> None:
    """Let the column `group` of a split.csv say which images belong together, unless an option does."""
    if tuple(table.columns) == COLUMNS and location.group is None:
        location.group = "group"


def splits_of(location: Location, table: Table) -> tuple[list[str], list[str] | None]:
    """Return the columns of the splits, and the split of each row; ([], None) if there is none.

    A row is for training unless a column of splits or of true and false says otherwise. Rows that are all of one other
    split are not divided: the table is that split.

    Raises:
        DataError: some cells of a column are splits and one is none, or two columns say different things of a row.
    """
    found = {name: splits for name in table.columns if (splits := _splits(location, table, name)) is not None}
    if not found:
        return [], None
    merged: list[str] = []
    for row, parts in enumerate(zip(*found.values(), strict=True)):
        others = sorted(set(parts) - {"train"})
        if len(others) > 1:
            raise errors.DataError(
                f"{table.row(row)} is for {' and for '.join(others)} by the columns {', '.join(found)}. Correct one."
            )
        merged.append(others[0] if others else "train")
    if len(set(merged)) > 1 or merged[0] == "train":
        return list(found), merged
    if split_of_file(location, table.file) != merged[0]:
        location.say(f"{table.file.name}: all rows are {merged[0]} (column {', '.join(found)}), so none divides them")
    return list(found), None


def _splits(location: Location, table: Table, column: str) -> list[str] | None:
    """Return the split that a column says of each row, or None if it does not have splits, or an option reads it."""
    reading = location.reading
    if column.lower() not in (*_SPLITS, *_FLAGS) or column in (reading.image_column, *reading.label_columns):
        return None
    cells, flag = table.columns[column], _FLAGS.get(column.lower())
    found = [_split(cell) if flag is None else _flagged(cell, flag) for cell in cells]
    known = [split for split in found if split is not None]
    if len(known) == len(found):
        return known
    if not known or further_columns([column], reading):
        return None
    row = found.index(None)
    expected = "train, val or test" if flag is None else "true or false"
    raise errors.DataError(
        f"{table.row(row)}: expected {expected} in column {column}, as in other rows, got "
        f"{_validation.safe_repr(cells[row])}. Fill it in, remove the row, or rename the column if it has no splits."
    )


def _split(cell: Any) -> str | None:
    return "validation" if str(cell).lower() == "validate" else split_of(str(cell))


def _flagged(cell: Any, split: str) -> str | None:
    text = str(cell).lower()
    return split if text in _TRUE else "train" if text in _FALSE else None


def add_splits(read: dict[str, AnySplit], split: str, found: Mapping[str, AnySplit], file: Path) -> None:
    """Add the splits in one table to those of others; the training images of the table of a split are that split.

    Raises:
        DataError: there are images of a split already.
    """
    for name, part in found.items():
        role = split if name == "train" else name
        if role in read:
            raise errors.DataError(f"{file} and a column of splits both have {role} images. Remove one of them.")
        read[role] = part


def common_folder(location: Location, folders: Sequence[Path]) -> Path:
    """Return the folder in which all tables find their images: it contains some folders, and is not above the data."""
    if len(set(folders)) == 1:
        return folders[0]
    if len({folder.is_absolute() for folder in folders}) > 1:
        return location.path
    common = Path(os.path.commonpath(folders))
    return common if common in folders or common.is_relative_to(location.path) else location.path


def divided(whole: AnySplit, splits: Sequence[str] | None) -> dict[str, AnySplit]:
    """Return the images of each split; without splits all are train."""
    if splits is None:
        return {"train": whole}
    return {
        name: dataclasses.replace(whole.of([row for row, own in enumerate(splits) if own == name]), shown=name)
        for name in SPLIT_WORDS
        if name in splits
    }
