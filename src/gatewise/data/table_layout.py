"""Which tables of a folder are read, and which of their columns have images and splits."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.division import COLUMNS
from gatewise.data.folders import TABLES, Location, counted
from gatewise.data.labels import LabelledSplit
from gatewise.data.layout import SPLIT_WORDS, split_of
from gatewise.data.masked_split import MaskedSplit
from gatewise.data.table_files import ImageFolder, Table, image_folders, most_found, read_table
from gatewise.data.tables import has_image_column

METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)  # Hugging Face's names
_IMAGES = (
    *("file_name", "filename", "image", "image_path", "path", "file", "fname", "image_id", "id", "image_name", "img"),
    *("img_path", "image_file", "filepath", "file_path", "name", "image_file_name"),
)
_SPLITS = ("split", "set", "subset", "ml_use", "partition")
_FLAGS = {"is_valid": "validation", "is_test": "test"}  # columns of true and false
AnySplit = TypeVar("AnySplit", LabelledSplit, MaskedSplit)


def is_table(path: Path) -> bool:
    """Return whether a file is a table that names images; one that contains them is for another source."""
    return path.is_file() and path.name.lower().endswith(TABLES) and not has_image_column(path)


def tables_of(location: Location) -> dict[str, Path]:
    """Return the table of each split of a folder, or its only table as train; {} if there is none.

    Raises:
        DataError: there are several tables, and it is not clear which has the labels.
    """
    root = [path for path in location.tables() if is_table(path)]
    if metadata := [path for path in root if path.name.lower() in METADATA]:
        return {"train": metadata[0]}
    inside: dict[str, Path] = {}
    for folder in location.image_counts():
        own = [path for path in location.tables(folder) if is_table(path)]
        if len(own) == 1 and (split := split_of(folder)):
            inside[split] = own[0]
    if "train" in inside:
        return inside
    named = {split: path for path in root if (split := split_of(path.stem))}
    if "train" in named:
        return named
    if len(root) > 1:
        images = ImageFolder(location)
        root = [path for path in root if most_found(read_table(path), images)]
        if len(root) > 1:
            raise errors.DataError(
                f"{location}: which table has the labels, {' or '.join(path.name for path in root)}? Give it as --data."
            )
    return {"train": root[0]} if root else {}


def find_images(location: Location, table: Table, part: Callable[[str], bool] | None = None) -> tuple[str, ImageFolder]:
    """Return the column whose cells name images, and the folder in which they are.

    Args:
        location: the data set.
        table: the table.
        part: says of a relative path whether it can be meant; None for all.
    """
    wanted = location.reading.image_column
    best: tuple[int, str, ImageFolder] | None = None
    if wanted is not None:
        table.column(wanted)
    for path in image_folders(location, table.file):
        folder = ImageFolder(location if location.path == path else Location(path, location.reading), part)
        counts = {name: count for name, count in most_found(table, folder).items() if wanted in (None, name)}
        for name, count in sorted(counts.items(), key=lambda item: _likelihood(table, item[0])):
            if best is None or count > best[0]:
                best = count, name, folder
        if best is not None and best[0] >= min(len(table), 100):
            break
    if best is None:
        where = " or ".join(str(path) for path in image_folders(location, table.file))
        raise errors.DataError(
            f"{table.file}: no column of {_validation.listed(list(table.columns))} names images in {where}. Give the "
            f"folder of the images as --data-root, or --image-column."
        )
    return best[1:]


def files_of(location: Location, table: Table, column: str, folder: ImageFolder) -> list[str]:
    """Return the file that each cell of a column names, "" if there is none and it is left out."""
    found = [folder.find(cell) for cell in table.columns[column]]
    for row, several in enumerate(found):
        if len(several) > 1:
            raise errors.DataError(
                f"{table.row(row)}: {table.columns[column][row]} is {' and '.join(several[:2])}. Give the folder too."
            )
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


def say_unused(location: Location, table: Table, folder: ImageFolder, files: Sequence[str]) -> None:
    """Say how many images no row names."""
    if unused := len(folder.files) - len(set(files).intersection(folder.files)):
        location.say(f"{counted(unused, 'image')} without a row in {table.file.name} not used")


def _likelihood(table: Table, column: str) -> tuple[int, int]:
    """Return a key by which the likeliest image column is first: one of a usual name, or with many different cells."""
    return rank(column, _IMAGES), -len(set(map(str, table.columns[column])))


def rank(name: str, known: Sequence[str]) -> int:
    """Return the place of a name among known ones, the last if it is none of them; case is ignored."""
    return known.index(name.lower()) if name.lower() in known else len(known)


def use_groups(location: Location, table: Table) -> None:
    """Let the column `group` of a split.csv say which images belong together, unless an option does."""
    if tuple(table.columns) == COLUMNS and location.reading.group is None:
        location.reading = dataclasses.replace(location.reading, group="group")


def splits_of(table: Table) -> tuple[str | None, list[str] | None]:
    """Return the column of the splits, and the split of each row; (None, None) if there is none."""
    column = next((name for name in table.columns if name.lower() in (*_SPLITS, *_FLAGS)), None)
    splits = None if column is None else _splits(column, table.columns[column])
    return (None, None) if splits is None else (column, splits)


def _splits(column: str, cells: Sequence[Any]) -> list[str] | None:
    """Return the split of each row, or None if the column does not have splits."""
    if (flag := _FLAGS.get(column.lower())) is not None:
        return [flag if str(cell).lower() in ("true", "1", "1.0", "yes") else "train" for cell in cells]
    names = {"validate": "validation"}
    found = [split_of(names.get(str(cell).lower(), str(cell))) for cell in cells]
    known = [split for split in found if split is not None]
    return known if len(known) == len(found) and "train" in known else None


def divided(whole: AnySplit, splits: Sequence[str] | None) -> dict[str, AnySplit]:
    """Return the images of each split; without splits all are train."""
    if splits is None:
        return {"train": whole}
    return {
        name: dataclasses.replace(whole.of([row for row, own in enumerate(splits) if own == name]), shown=name)
        for name in SPLIT_WORDS
        if name in splits
    }
