"""Tables that name the images and their labels: a file, or one in the folder of the images or in each split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.wording import counted
from gatewise.data.folders import Location
from gatewise.data.image_column import INDEX, check_not_several, find_images, rank
from gatewise.data.layout import class_folders, is_left_out, split_folders
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source
from gatewise.data.table_files import ImageFolder, RowFiles, Table, most_found, read_table
from gatewise.data.table_layout import (
    METADATA,
    add_splits,
    common_folder,
    divided,
    files_of,
    is_table,
    say_unused,
    splits_of,
    tables_of,
    use_groups,
)
from gatewise.data.tables import further_columns

_LABELS = (
    *("label", "labels", "class", "class_name", "class_label", "category", "categories", "target", "targets"),
    *("diagnosis", "dx", "species", "tags", "breed"),
)
_NUMBERS = ("score", "value", "rating", "age", "price")  # further names, of numbers


@register_source("tables", help="a CSV, TSV, JSONL or parquet table that names images and labels", order=45)
class Tables(LabelledSource):
    """A table with a row for each image, which is a file; in a folder, class folders win over a table in it."""

    has_columns = True

    def matches(self, location: Location) -> bool:
        if not location.is_folder:
            return is_table(location.path)
        return bool(tables_of(location)) and _wins(location)

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        files = tables_of(location) if location.is_folder else {"train": location.path}
        read: dict[str, LabelledSplit] = {}
        folders: list[Path] = []
        labels = _LabelColumns(location)
        for split, file in files.items():
            if is_left_out(split, location.reading):
                continue
            table = read_table(file)
            if split == "test" and not labels.as_in_training(table):
                location.say(f"{file.name} has no labels and is not used")
                continue
            folder, found = _read(location, table, labels, shown=file.name if len(files) > 1 else "")
            add_splits(read, split, found, file)
            folders.append(folder)
        location.root = common_folder(location, folders)
        return read


def _wins(location: Location) -> bool:
    """Return whether the table of a folder is read, and not the names of its folders.

    Raises:
        DataError: the table has labels, and there are class folders of other names.
    """
    tables = tables_of(location)
    reading = location.reading
    if reading.label_column or reading.image_column or any(path.name.lower() in METADATA for path in tables.values()):
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


def _read(
    location: Location, table: Table, label_columns: "_LabelColumns", shown: str
) -> tuple[Path, dict[str, LabelledSplit]]:
    """Return the folder of the images of one table, and the splits in it."""
    image, folder = find_images(location, table)
    check_not_several(location, table, image, folder, location.reading.label_columns)
    files = files_of(location, table, image, folder)
    say_unused(location, table, folder, files)
    use_groups(location, table)
    split_columns, splits = splits_of(location, table)
    named = {image, *split_columns, *further_columns(list(table.columns), location.reading)}
    columns = label_columns.of(table, [name for name in table.columns if name not in named])
    labels, classes = _labels(location, table, columns)
    rows = [index for index, file in enumerate(files) if file]
    if splits is not None:
        _check_one_split(table, rows, files, splits)
    if location.labels != "number":
        rows, labels = _one_row_each(location, rows, files, labels)
    whole = LabelledSplit(
        RowFiles([files[index] for index in rows], [table.row(index) for index in rows]),
        [labels[index] for index in rows],
        classes,
        {name: [cells[index] for index in rows] for name, cells in table.columns.items()},
        shown,
    )
    return folder.path, divided(whole, None if splits is None else [splits[index] for index in rows])


def _check_one_split(table: Table, rows: list[int], files: list[str], splits: list[str]) -> None:
    """Raise if two rows of one image are in different splits."""
    first: dict[str, int] = {}
    for row in rows:
        other = first.setdefault(files[row], row)
        if splits[row] != splits[other]:
            raise errors.DataError(
                f"{table.row(row)} is for {splits[row]}, and row {table.row(other).rpartition(' ')[2]} with the same "
                f"image for {splits[other]}. Remove one."
            )


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


def _labels(location: Location, table: Table, columns: list[str]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the label of each row, and the names of the label columns if there are several."""
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


class _LabelColumns:
    """The columns of the labels: in the first table, which is that of training, and the same in others."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._usual = [*_LABELS, *(_NUMBERS if location.labels == "number" else ())]
        self._training: tuple[Table, list[str]] | None = None

    def of(self, table: Table, candidates: list[str]) -> list[str]:
        """Return the columns of a table; `candidates` have neither images nor splits nor groups."""
        if self._training is None:
            self._training = table, self._chosen(table, candidates)
            return self._training[1]
        training, labels = self._training
        if found := self.as_in_training(table):
            return found
        raise errors.DataError(
            f"{table.file}: expected the labels in {_validation.listed(labels)} as in {training.file.name}, found "
            f"{_validation.listed(list(table.columns))}. Rename a column."
        )

    def as_in_training(self, table: Table) -> list[str]:
        """Return the columns that have the labels in training, or one of a usual name only this table has; [] without.

        So no other column of the training is taken for the labels where they are missing.
        """
        if self._training is None:
            return list(table.columns)
        training, labels = self._training
        if set(labels) <= set(table.columns):
            return labels
        known = [name for name in self._known(list(table.columns)) if name not in training.columns]
        return known[:1] if len(labels) == 1 and self._location.reading.label_column is None else []

    def _known(self, names: Sequence[str]) -> list[str]:
        found = [name for name in names if name.lower() in self._usual]
        return sorted(found, key=lambda name: rank(name, self._usual))

    def _chosen(self, table: Table, candidates: list[str]) -> list[str]:
        """Return the columns given, the one of a usual name, the only one left, or all of 0 and 1."""
        if names := self._location.reading.label_columns:
            for name in names:
                table.column(name)
            return names
        if known := self._known(candidates):
            return known[:1]
        left = [name for name in candidates if name.lower() not in INDEX]
        if len(left) == 1:
            return left
        binary = [name for name in left if _is_binary(table.columns[name])]
        if self._location.labels != "number" and len(binary) > 1 and len(binary) == len(left):
            return binary
        raise errors.DataError(
            f"{table.file.name}: which column is the {'number' if self._location.labels == 'number' else 'class'}, "
            f"{' or '.join(left[:8]) or 'none is there'}? Add --label-column {left[0] if left else 'NAME'}."
        )


def _is_binary(cells: Sequence[Any]) -> bool:
    return all(str(cell) in ("0", "1", "0.0", "1.0", "True", "False") for cell in cells)


def _is_one(cell: Any) -> bool:
    return str(cell) in ("1", "1.0", "True")
