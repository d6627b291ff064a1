"""Tables that name files of images: CSV, TSV, JSON Lines and parquet; their rows, and the file of each row."""

# pyright: basic

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes, read_json, read_json_lines, read_text
from gatewise.core.reasons import as_data_error
from gatewise.core.run_files import CONFIG, RECIPE, RELATIVE_TO, RESULTS
from gatewise.data.folders import EncodedFiles, Location, expanded, is_image

SAMPLE = 100  # rows that tell which column has the images
_DELIMITERS = {".tsv": "\t", ".csv": ",;\t|"}  # the candidates, the usual one first


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        file: where it was read from.
        columns: the cells of each column; an empty cell of text is "".
        numbers: number of each row for error messages; in a CSV as in a spreadsheet, which also counts empty rows.
    """

    file: Path
    columns: dict[str, list[Any]]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def row(self, index: int) -> str:
        """Return the name of a row for error messages."""
        return f"{self._name}, row {self.numbers[index]}"

    @cached_property
    def _name(self) -> str:
        return self.file.name

    def column(self, name: str) -> list[Any]:
        """Return the cells of a column; raise `InvalidValueError` if there is none of this name."""
        _validation.check_one_of(f"column of {self.file.name}", name, self.columns)
        return self.columns[name]


def read_table(file: Path) -> Table:
    """Read a table.

    A CSV may be separated by commas, semicolons, tabs or bars, and may lack the header if its first row names an image;
    its columns are then called 1, 2, ...

    Raises:
        DataError: the file cannot be read, has no rows, or a row has another number of cells than the header.
    """
    suffix, numbers = file.suffix.lower(), None
    if suffix == ".parquet":
        columns = _parquet(file)
    elif suffix == ".jsonl" or (content := read_bytes(file)).lstrip().startswith(b"{"):
        columns = _of_objects(file, read_json_lines(file))
    elif suffix == ".json" and content.lstrip().startswith(b"["):
        columns = _of_objects(file, read_json(file))
    else:
        columns, numbers = _separated(file, content, _DELIMITERS.get(suffix, ","))
    count = len(next(iter(columns.values()), []))
    if not count:
        raise errors.DataError(f"{file} has no rows; expected a header and at least one row.")
    return Table(file, columns, numbers or range(1, count + 1))


def _separated(file: Path, content: bytes, delimiters: str) -> tuple[dict[str, list[str]], list[int]]:
    """Return the cells of each column, and the numbers of the rows."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    with as_data_error(file, "is not UTF-8 text", 'Save it as UTF-8 (in Excel "CSV UTF-8").', of=UnicodeDecodeError):
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    if named := re.match(r"sep=(.)\r?\n", text):  # Excel reads the delimiter there
        delimiter, text = named[1], text[named.end() :]
    else:
        delimiter = max(delimiters, key=text.lstrip("\r\n").partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    with as_data_error(file, "is no table", of=csv.Error):
        lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(reader, 1)]
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        return {}, []
    (_, header), *rows = lines
    if any(map(is_image, header)):
        header, rows = [str(number) for number in range(1, len(header) + 1)], lines
    if len(set(header)) < len(header):
        raise errors.DataError(f"{file}: two columns have one name in {_validation.listed(header)}. Rename one.")
    for number, row in rows:
        if len(row) != len(header):
            raise errors.DataError(
                f"{file.name}, row {number}: {len(row)} cells, the header has {len(header)}. Quote cells with "
                f"{delimiter!r} in them."
            )
    numbers, cells = [number for number, _ in rows], zip(*(row for _, row in rows), strict=True)
    return (dict(zip(header, map(list, cells), strict=True)), numbers) if rows else ({}, [])


def _of_objects(file: Path, rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the columns of a list of JSON objects, a row each."""
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise errors.DataError(f"{file.name}, row {number}: expected an object, got {_validation.safe_repr(row)}.")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(file: Path) -> dict[str, list[Any]]:
    parquet = _validation.import_optional("pyarrow.parquet", "reading parquet files")
    with as_data_error(f"{file}:", "not a valid parquet file"):
        return parquet.read_table(file).to_pydict()


class RowFiles(EncodedFiles):
    """Images that a table names.

    Args:
        files: path of the image of each row.
        rows: name of each row for error messages about labels.
    """

    def __init__(self, files: list[str], rows: list[str]) -> None:
        super().__init__(files)
        self._rows = rows

    def label_where(self, index: int) -> str:
        return self._rows[index]

    def subset(self, chosen: Sequence[int]) -> "RowFiles":
        return RowFiles([self._files[index] for index in chosen], [self._rows[index] for index in chosen])


class ImageFolder:
    """The image files below a folder, found by the text in a table: a path or its end, with or without suffix.

    Case and the form of accents are ignored unless they decide. A path may also begin with folders that are not there,
    unless it begins with .., which names another folder.

    Args:
        location: the folder, which is listed once.
        part: says of the path of an image in the folder whether it can be meant; None for all.
    """

    def __init__(self, location: Location, part: Callable[[str], bool] | None = None) -> None:
        self.path = location.path
        self.files = location.images()
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        start = len(f"{location.path}{os.sep}")
        if part is not None:
            self.files = [file for file in self.files if part(file[start:])]
        for file in self.files:
            path = file[start:].replace(os.sep, "/")
            name = folded(path.rpartition("/")[2])
            self._by_name[name].append(path)
            self._by_name[name.rpartition(".")[0]].append(path)

    def find(self, cell: Any) -> list[str]:
        """Return the paths of the images that a cell can mean: one if it is written in full."""
        text = str(cell).strip().replace("\\", "/").removeprefix("./")
        text = os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111
        if os.path.isabs(text):  # noqa: PTH117 (100,000 paths cost a second)
            return [text] if Path(text).is_file() else []
        text = posixpath.normpath(text) if "../" in text else text
        if is_outside := text.startswith("../"):
            if is_image(text) and (found := self._outside(text)):
                return found
            text = without_parents(text)
        named = self._by_name.get(folded(text.rpartition("/")[2]), ())
        ends = {path: (f"/{path}", f"/{path.rpartition('.')[0]}") for path in named}
        wanted = f"/{text}"
        for fits in (
            lambda path: text in (path, path.rpartition(".")[0]),
            lambda path: any(end.endswith(wanted) for end in ends[path]),
            lambda path: any(folded(end).endswith(folded(wanted)) for end in ends[path]),
            lambda path: not is_outside and any(wanted.endswith(end) for end in ends[path]),
            lambda path: not is_outside and any(folded(wanted).endswith(folded(end)) for end in ends[path]),
        ):
            if fitting := [path for path in named if fits(path)]:
                return [f"{self.path}{os.sep}{path}" for path in fitting]
        return self._outside(text) if is_image(text) and not is_outside else []

    def _outside(self, text: str) -> list[str]:
        """Return the path of a file outside of the folder: ../photos/1.jpg, or relative to the working folder."""
        for path in (self.path / text, Path(text)):
            relative = os.path.relpath(path, self.path)
            if (relative.startswith("..") or text.startswith("../")) and path.is_file():
                return [os.path.normpath(self.path / relative)]  # absolute if the path of the folder is
        return []


def folded(text: str) -> str:
    """Return text in one case, and with accents in one form: e and an accent, as on a Mac, are one letter.

    >>> folded("Ole\N{COMBINING ACUTE ACCENT}.PNG") == "ol\N{LATIN SMALL LETTER E WITH ACUTE}.png"
    True
    """
    return unicodedata.normalize("NFC", text).lower()


def without_parents(text: str) -> str:
    """Return a relative path without the .. at its start.

    >>> without_parents("../../train/1.png")
    'train/1.png'
    """
    while text.startswith("../"):
        text = text.removeprefix("../")
    return text


def image_folders(location: Location, file: Path) -> list[Path]:
    """Return the folders in which the images of a table can be, in the order in which they are searched.

    These are the table's own, the one that a run or comparison next to it names, and `--data-root`.
    """
    named = [_named_folder(file.parent)]
    root = location.reading.data_root
    own = [file.parent, *([location.path] if location.is_folder else [])]
    folders = [*own, *filter(None, named), *([expanded(root)] if root else [])]
    if root and not expanded(root).is_dir():
        raise errors.DataError(f"data_root {root!r} is no folder; expected the folder of the images in {file.name}.")
    return list(dict.fromkeys(folders))


def _named_folder(folder: Path) -> Path | None:
    """Return the data folder that the files of a run or comparison name, or None."""
    for name in (CONFIG, RESULTS, RECIPE):
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = yaml.safe_load(read_text(file)) if name == RECIPE else read_json(file)
            split = content.get("split") or {}
            found = split.get("folder") or content.get("data") or content.get("recipe", {}).get("data")
            started_in = content.get(RELATIVE_TO) or ""
            places = [Path(started_in, found), Path(found)]
        except (errors.DataError, yaml.YAMLError, AttributeError, TypeError):
            continue
        if existing := [place for place in places if place.is_dir()]:
            return existing[0]
    return None


def most_found(table: Table, folder: ImageFolder) -> dict[str, int]:
    """Return how many of the first cells of each column name exactly one image; columns without any are left out."""
    counts = {
        name: sum(len(folder.find(cell)) == 1 for cell in cells[:SAMPLE] if isinstance(cell, str | int))
        for name, cells in table.columns.items()
    }
    return {name: count for name, count in counts.items() if count}
