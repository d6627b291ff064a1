"""Tables that name the images and their labels: a file, or one in the folder of the images or in each split."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.division import COLUMNS
from gatewise.data.folders import TABLES, Location, counted
from gatewise.data.layout import class_folders, split_folders, split_of
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source
from gatewise.data.table_files import ImageFolder, RowFiles, Table, image_folders, most_found, read_table
from gatewise.data.tables import has_image_column

_METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)  # Hugging Face's names
_IMAGES = (
    *("file_name", "filename", "image", "image_path", "path", "file", "fname", "image_id", "id", "image_name", "img"),
    *("img_path", "image_file", "filepath", "file_path", "name", "image_file_name"),
)
_LABELS = (
    *("label", "labels", "class", "class_name", "class_label", "category", "categories", "target", "targets"),
    *("diagnosis", "dx", "species", "tags", "breed"),
)
_NUMBERS = ("score", "value", "rating", "age", "price")  # further names, of numbers
_SPLITS = ("split", "set", "subset", "ml_use", "partition")
_FLAGS = {"is_valid": "validation", "is_test": "test"}  # columns of true and false
_NO_LABEL = ("", "index", "unnamed: 0")


@register_source("tables", help="a CSV, TSV, JSONL or parquet table that names images and labels", order=45)
class Tables(LabelledSource):
    """A table with a row for each image, which is a file; in a folder, class folders win over a table in it."""

    has_columns = True

    def matches(self, location: Location) -> bool:
        if not location.is_folder:
            return _is_table(location.path)
        return bool(_tables(location)) and _wins(location)

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        files = _tables(location) if location.is_folder else {"train": location.path}
        read: dict[str, LabelledSplit] = {}
        for split, file in files.items():
            table = read_table(file)
            if split == "test" and not _has_labels(table, location):
                location.say(f"{file.name} has no labels and is not used")
                continue
            found = _read(location, table, shown=file.name if len(files) > 1 else "")
            read.update(found if len(files) == 1 else {split: found["train"]})
        return read


def _is_table(path: Path) -> bool:
    """Return whether a file is a table that names images; one that contains them is for another source."""
    return path.is_file() and path.name.lower().endswith(TABLES) and not has_image_column(path)


def _tables(location: Location) -> dict[str, Path]:
    """Return the table of each split of a folder, or its only table as train; {} if there is none.

    Raises:
        DataError: there are several tables, and it is not clear which has the labels.
    """
    root = [path for path in location.tables() if _is_table(path)]
    if metadata := [path for path in root if path.name.lower() in _METADATA]:
        return {"train": metadata[0]}
    inside: dict[str, Path] = {}
    for folder in location.image_counts():
        own = [path for path in location.tables(folder) if _is_table(path)]
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


def _wins(location: Location) -> bool:
    """Return whether the table of a folder is read, and not the names of its folders.

    Raises:
        DataError: the table has labels, and there are class folders of other names.
    """
    tables = _tables(location)
    reading = location.reading
    if reading.label_column or reading.image_column or any(path.name.lower() in _METADATA for path in tables.values()):
        return True
    splits = split_folders(location)
    inside = [class_folders(location, folder) for folder in splits.values()] if splits else [class_folders(location)]
    folders = sorted({name for names in inside for name in names})
    if not (any(inside) if splits else len(folders) > 1):
        return True
    for file in tables.values():
        table = read_table(file)
        label = next((name for name in table.columns if name.lower() in _LABELS), None)
        if label and most_found(table, ImageFolder(location)):
            values = {str(cell) for cell in table.columns[label]}
            if values.isdisjoint(folders):
                raise errors.DataError(
                    f"{location}: are the labels in {file.name} ({label}: {_validation.listed(sorted(values), 3)}) or "
                    f"the names of the folders ({_validation.listed(folders, 3)})? Add --label-column {label}, or "
                    f"move the table away."
                )
    location.say(
        f"{_validation.listed([path.name for path in tables.values()], 3)} not read: the names of the folders are the "
        f"labels; --label-column reads a table"
    )
    return False


def _read(location: Location, table: Table, shown: str) -> dict[str, LabelledSplit]:
    """Return the splits in one table."""
    image, files = _images(location, table)
    split_column = next((name for name in table.columns if name.lower() in (*_SPLITS, *_FLAGS)), None)
    splits = _splits(split_column, table.columns[split_column]) if split_column else None
    if tuple(table.columns) == COLUMNS and location.reading.group is None:  # a split.csv
        location.reading = dataclasses.replace(location.reading, group="group")
    named = {image, location.reading.group, *([split_column] if splits else [])}
    labels, classes = _labels(location, table, [name for name in table.columns if name not in named])
    rows = [index for index, file in enumerate(files) if file]
    if location.labels != "number":
        rows, labels = _one_row_each(location, rows, files, labels)
    whole = LabelledSplit(
        RowFiles([files[index] for index in rows], [table.row(index) for index in rows]),
        [labels[index] for index in rows],
        classes,
        {name: [cells[index] for index in rows] for name, cells in table.columns.items()},
        shown,
    )
    if splits is None:
        return {"train": whole}
    of_rows = [splits[index] for index in rows]
    return {
        name: dataclasses.replace(whole.of([row for row, own in enumerate(of_rows) if own == name]), shown=name)
        for name in ("train", "validation", "test")
        if name in of_rows
    }


def _one_row_each(
    location: Location, rows: list[int], files: list[str], labels: list[Any]
) -> tuple[list[int], list[Any]]:
    """Return the first row of each image, and labels in which it has those of all its rows."""
    of_file: dict[str, list[int]] = {}
    for row in rows:
        of_file.setdefault(files[row], []).append(row)
    if len(of_file) == len(rows):
        return rows, labels
    merged = list(labels)
    for same in of_file.values():
        several = [isinstance(labels[row], list | tuple) for row in same]
        parts: list[Any] = []
        for row, is_list in zip(same, several, strict=True):
            parts += [part for part in (labels[row] if is_list else [labels[row]]) if part not in parts]
        merged[same[0]] = tuple(parts) if any(several) or len(parts) > 1 else parts[0]
    again = counted(len(rows) - len(of_file), "row")
    location.say(f"{again} of images that have another row: the labels of an image are put together")
    return [same[0] for same in of_file.values()], merged


def _images(location: Location, table: Table) -> tuple[str, list[str]]:
    """Return the image column and the file of each row, "" if it is left out."""
    wanted = location.reading.image_column
    best: tuple[int, str, ImageFolder] | None = None
    if wanted is not None:
        table.column(wanted)
    for path in image_folders(location, table.file):
        folder = ImageFolder(location if location.path == path else Location(path, location.reading))
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
    _, column, folder = best
    location.root = folder.path
    return column, _files(location, table, column, folder)


def _files(location: Location, table: Table, column: str, folder: ImageFolder) -> list[str]:
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
    used = {files[0] for files in found if files}
    if unused := len(folder.files) - len(used.intersection(folder.files)):
        location.say(f"{counted(unused, 'image')} without a row in {table.file.name} not used")
    return [files[0] if files else "" for files in found]


def _likelihood(table: Table, column: str) -> tuple[int, int]:
    """Return a key by which the likeliest image column is first: one of a usual name, or with many different cells."""
    return _rank(column, _IMAGES), -len(set(map(str, table.columns[column])))


def _rank(name: str, known: Sequence[str]) -> int:
    return known.index(name.lower()) if name.lower() in known else len(known)


def _splits(column: str, cells: Sequence[Any]) -> list[str] | None:
    """Return the split of each row, or None if the column does not have splits."""
    if (flag := _FLAGS.get(column.lower())) is not None:
        return [flag if str(cell).lower() in ("true", "1", "1.0", "yes") else "train" for cell in cells]
    names = {"validate": "validation"}
    found = [split_of(names.get(str(cell).lower(), str(cell))) for cell in cells]
    known = [split for split in found if split is not None]
    return known if len(known) == len(found) and "train" in known else None


def _has_labels(table: Table, location: Location) -> bool:
    known = location.reading.label_column
    columns = known.split(",") if known else [name for name in table.columns if name.lower() in _LABELS]
    return len(table.columns) > 1 and (not known or columns[0] in table.columns)


def _labels(location: Location, table: Table, candidates: list[str]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the label of each row, and the names of the label columns if there are several."""
    columns = _label_columns(location, table, candidates)
    cells = [table.columns[name] for name in columns]
    if location.labels == "number":
        return [tuple(row) for row in zip(*cells, strict=True)], tuple(columns)
    if len(columns) == 1:
        return cells[0], ()
    for name in columns:
        if not _is_binary(table.columns[name]):
            raise errors.DataError(f"{table.file.name}: expected 0 and 1 in column {name} (one column for each class).")
    hot = [tuple(n for n, cell in enumerate(row) if _is_one(cell)) for row in zip(*cells, strict=True)]
    return list(hot), tuple(columns)


def _label_columns(location: Location, table: Table, candidates: list[str]) -> list[str]:
    """Return the columns of the labels: those given, the one of a usual name, the only one left, or all of 0 and 1."""
    if location.reading.label_column is not None:
        names = [name.strip() for name in location.reading.label_column.split(",")]
        for name in names:
            table.column(name)
        return names
    usual = [*_LABELS, *(_NUMBERS if location.labels == "number" else ())]
    known = sorted((name for name in candidates if name.lower() in usual), key=lambda name: _rank(name, usual))
    left = [name for name in candidates if name.lower() not in _NO_LABEL]
    if known:
        return known[:1]
    if len(left) == 1:
        return left
    binary = [name for name in left if _is_binary(table.columns[name])]
    if location.labels != "number" and len(binary) > 1 and len(binary) == len(left):
        return binary
    raise errors.DataError(
        f"{table.file.name}: which column is the {'number' if location.labels == 'number' else 'class'}, "
        f"{' or '.join(left[:8]) or 'none is there'}? Add --label-column {left[0] if left else 'NAME'}."
    )


def _is_binary(cells: Sequence[Any]) -> bool:
    return all(str(cell) in ("0", "1", "0.0", "1.0", "True", "False") for cell in cells)


def _is_one(cell: Any) -> bool:
    return str(cell) in ("1", "1.0", "True")
