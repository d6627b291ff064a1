"""The data sets of the Hugging Face hub, and folders in its layout: hub:NAME."""

# pyright: basic

from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.folders import Location
from gatewise.data.sources.registry import SPLITS, LabelledSource, LabelledSplit, register_source
from gatewise.data.tables import EncodedRows, check_labels, class_names, columns

HUB = "hub:"  # what `--data` starts with


@register_source("hub", help=f"{HUB}NAME (on the Hugging Face hub)", order=30)
class Hub(LabelledSource):
    """A data set that the library `datasets` can load: of the hub, or a folder in its layout.

    Rows are read from the library's memory-mapped cache, so the data may be larger than memory.
    """

    def matches(self, location: Location) -> bool:
        return location.text.startswith(HUB)

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        name = location.text.removeprefix(HUB)
        datasets = _validation.import_optional("datasets", f"the hub's data set {name!r}", extra="hub")
        with as_data_error("datasets", f"cannot load {name!r}"):  # its network and file layers can raise any error
            found: Any = datasets.load_dataset(name)
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
            splits[split] = LabelledSplit(EncodedRows([(where, _Column(rows, image))]), labels, listed_names)
        return splits


class _Column:
    """One column of a `datasets` table, read row by row."""

    def __init__(self, rows: Any, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row][self.name]
