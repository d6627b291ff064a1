"""Shards of WebDataset: tar files with KEY.jpg and KEY.cls or KEY.json, read by the library `datasets`."""

# pyright: basic

import re
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.dataset_rows import labelled_rows
from gatewise.data.folders import Location
from gatewise.data.layout import split_of_file
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@register_source("shards", help="WebDataset shards (*.tar, or NAME-{000000..000146}.tar)", order=43)
class Shards(LabelledSource):
    """Tar files, or a folder of them; train-000.tar and val-000.tar are splits."""

    has_columns = True

    def matches(self, location: Location) -> bool:
        return bool(_files(location))

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        datasets = _validation.import_optional("datasets", "reading shards", extra="hub")
        files = _files(location)
        if missing := [file for file in files if not file.is_file()]:
            raise errors.DataError(
                f"{missing[0]} does not exist ({len(missing):,} of {len(files):,} shards are missing)."
            )
        splits: dict[str, list[str]] = {}
        for file in files:
            splits.setdefault(split_of_file(location, file) or "train", []).append(str(file))
        with as_data_error("datasets", f"cannot read the shards of {location}"):
            found: Any = datasets.load_dataset("webdataset", data_files=splits)
        return labelled_rows(datasets, location.text, found, location.reading)


def _files(location: Location) -> list[Path]:
    """Return the shards at a location; a range in braces stands for its numbers."""
    if location.is_folder:
        return location.with_suffix(".tar")
    if not location.text.lower().endswith(".tar"):
        return []
    if (match := _RANGE.search(location.text)) is None:
        return [location.path] if location.path.is_file() else []
    first, last = match.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [Path(location.text[: match.start()] + number + location.text[match.end() :]) for number in numbers]
