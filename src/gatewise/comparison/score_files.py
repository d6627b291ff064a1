"""Read a score from a file that a training script wrote."""

# pyright: basic

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes, read_json
from gatewise.data.table_files import read_table

WHICH = ("last", "best", "max", "min")


@dataclass(frozen=True)
class ScoreFile:
    """Where a score is.

    Attributes:
        pattern: path of the file in the output folder of a training, or a name or glob with exactly one match below it.
        entry: column of a table, or path of an entry in a JSON file, such as val.accuracy or scores.0. JSON and
            JSON lines (an object in each line) are known by their content, under any name.
        which: for a column or a list: last, best, max or min.

    >>> ScoreFile.parse("summary.csv:eval_top1:best")
    ScoreFile(pattern='summary.csv', entry='eval_top1', which='best')
    """

    pattern: str
    entry: str
    which: str = "last"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "FILE:COLUMN[:last|best|max|min]".

        Raises:
            InvalidValueError: it has another form.
        """
        parts = _validation.check_str("--score-from", text).split(":")
        if len(parts) not in {2, 3} or not all(parts):
            raise errors.InvalidValueError(
                f"--score-from takes FILE:COLUMN:last, such as summary.csv:eval_top1:last, got {text!r}."
            )
        if len(parts) == 3:
            _validation.check_one_of("the last part of --score-from", parts[2], WHICH)
        if Path(parts[0]).is_absolute() or ".." in Path(parts[0]).parts:
            raise errors.InvalidValueError(f"--score-from takes a file below {{out}}, got {parts[0]!r}.")
        return cls(*parts)

    def read(self, folder: Path, *, higher_is_better: bool) -> float:
        """Return the score of the training that wrote into `folder`; NaN if it has diverged.

        Raises:
            DataError: there is no such file, or several, or no such number in it.
        """
        file = self._file(folder)
        values = [value for value in self._values(file) if not _is_empty(value)]
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            shown = _validation.safe_repr(values[-1])
            raise errors.DataError(f"{file}: expected numbers as {self.entry}, got {shown}.") from None
        if not numbers:
            raise errors.DataError(f"{file} has no number as {self.entry}.")
        if self.which == "last":
            return numbers[-1]
        if any(map(math.isnan, numbers)):
            return math.nan
        best: Callable[[Sequence[float]], float] = max if higher_is_better else min
        return {"best": best, "max": max, "min": min}[self.which](numbers)

    def empty_rows(self, folder: Path) -> int:
        """Return how many rows without a number follow the last number; loggers write something else in such rows."""
        values = self._values(self._file(folder))
        return len(list(itertools.takewhile(_is_empty, reversed(values))))

    def _file(self, folder: Path) -> Path:
        named = folder / self.pattern
        if named.is_file():
            return named
        files = sorted(file for file in folder.rglob(self.pattern) if file.is_file())
        if len(files) != 1:
            found = ", ".join(str(file.relative_to(folder)) for file in (files or sorted(folder.rglob("*")))[:8])
            raise errors.DataError(
                f"{folder}: expected one file {self.pattern}, found {len(files) or 'none'}"
                + (f"{':' if files else ' among'} {found}" if found else "")
                + ". Give --score-from the name of one that each training writes."
            )
        return files[0]

    def _values(self, file: Path) -> list[Any]:
        if (content := _one_value(file)) is not None:
            return self._entry(file, content)
        columns = read_table(file).columns
        if self.entry not in columns:
            listed = _validation.listed(list(columns))
            raise errors.DataError(f"{file} has no column {self.entry!r}; its columns are {listed}.")
        return columns[self.entry]

    def _entry(self, file: Path, content: Any) -> list[Any]:
        """Return the entry of a JSON file at the path `entry`, a list of numbers or one."""
        parts = [self.entry] if isinstance(content, dict) and self.entry in content else self.entry.split(".")
        for part in parts:
            key: Any = int(part) if isinstance(content, list) and part.isdecimal() else part
            try:
                content = content[key]
            except (KeyError, IndexError, TypeError):
                there = _validation.listed(list(content)) if isinstance(content, dict) else "none"
                raise errors.DataError(f"{file} has no entry {self.entry!r}: no {part!r} among {there}.") from None
        return content if isinstance(content, list) else [content]


def _is_empty(value: Any) -> bool:
    return value is None or value == ""


def _one_value(file: Path) -> Any:
    """Return the content of a JSON file; None for JSON lines and other tables."""
    text = b"" if file.suffix.lower() == ".parquet" else read_bytes(file).lstrip()
    if file.suffix.lower() != ".json" and not text.startswith((b"{", b"[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith(b"{") and "Extra data" in str(error):  # after the first of several objects
            return None
        return read_json(file)  # raises, and says why
