"""The rows of a data set that the library `datasets` has loaded, read from its memory-mapped cache."""

# pyright: basic

import dataclasses
from collections.abc import Mapping
from typing import Any

from gatewise.data.labels import LabelledSplit
from gatewise.data.layout import by_split
from gatewise.data.reading import Reading
from gatewise.data.tables import IMAGE_COLUMNS, EncodedRows, columns, further_columns


def labelled_rows(datasets: Any, name: str, found: Mapping[str, Any], reading: Reading) -> dict[str, LabelledSplit]:
    """Return the splits of a data set; those of unusual names keep them.

    Args:
        datasets: the library.
        name: name of the data set for messages.
        found: the rows of each split.
        reading: names of columns and splits.
    """
    usual = by_split(name, [key for key in found if key not in (reading.validation_split, reading.test_split)])
    names = {key: split for split, key in usual.items()}
    return {names.get(key, key): _split(datasets, f"{name}, {key}", rows, reading) for key, rows in found.items()}


def _split(datasets: Any, where: str, rows: Any, reading: Reading) -> LabelledSplit:
    rows, names = _flat(rows)
    pictures = [name for name in names if isinstance(rows.features[name], datasets.Image)]
    if reading.image_column is None and not set(IMAGE_COLUMNS).intersection(names) and len(pictures) == 1:
        reading = dataclasses.replace(reading, image_column=pictures[0])
    image, label = columns(where, names, reading)
    feature = rows.features[label]
    classes = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or ()
    labels = rows[label][:]
    further = {column: rows[column][:] for column in further_columns(names, reading)}
    rows = rows.cast_column(image, datasets.Image(decode=False))
    return LabelledSplit(
        EncodedRows([(where, _Column(rows, image))]), labels, tuple(classes), further, where.rpartition(", ")[2]
    )


def _flat(rows: Any) -> tuple[Any, list[str]]:
    """Return the rows with the entries of the column json as columns, and their names without those of WebDataset."""
    if isinstance(rows.features.get("json"), dict):
        entries = [name for name in rows.features["json"] if name not in rows.column_names]
        pictures = rows.select_columns(["json"])
        for name in entries:
            rows = rows.add_column(name, [entry["json"][name] for entry in pictures])
        rows = rows.remove_columns("json")
    return rows, [name for name in rows.column_names if not name.startswith("__")]


class _Column:
    """One column of a `datasets` table, read row by row."""

    def __init__(self, rows: Any, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row][self.name]
