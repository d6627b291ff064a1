"""Paths in a recipe file: relative to the folder in which the training was started, wherever the file is read."""

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatewise.data.folders import expanded
from gatewise.data.sources.registry import is_name, is_readable
from gatewise.gaternet.teaching import SELF

_DATA = ("data", "data_root")
PATHS = (*_DATA, "init", "gater_init", "teacher")  # fields of a recipe


def relative_paths(values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return those fields that are relative paths of something in a folder."""
    texts = {name: values[name] for name in PATHS if isinstance(values.get(name), str)}
    return {
        name: text
        for name, text in texts.items()
        if not _is_absolute(text) and not _is_word(text) and _exists(folder / text)
    }


def absolute_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values of a recipe that was written in a folder, with its relative paths made absolute.

    In that folder they stay as they are. Data that is neither there nor in the working folder is named by where it was.
    """
    if folder == Path.cwd():
        return {**values}
    found, data = relative_paths(values, folder), values.get("data")
    if "data" not in found and isinstance(data, str) and not _is_absolute(data) and not is_readable(data):
        found["data"] = data
    return {**values, **{name: str(folder / text) for name, text in found.items()}}


def is_same(field: str, there: object, here: object) -> bool:
    """Return whether the stored value of a field means the same as the value here.

    Paths are the same if they lead to one place. Data that is no longer where it was has been moved to where it is now:
    split.csv shows whether it has the same images.
    """
    if there == here or field not in PATHS or not isinstance(there, str) or not isinstance(here, str):
        return there == here
    if _is_word(there) or _is_word(here):
        return False
    if field in _DATA and _is_absolute(there) and not _exists(Path(there)) and _exists(Path(here)):
        return True
    return len({os.path.realpath(expanded(text)) for text in (there, here)}) == 1


def _is_absolute(text: str) -> bool:
    return text.startswith("~") or Path(text).is_absolute()


def _is_word(text: str) -> bool:
    """Return whether a value is a word that is no path, even if there is a file of that name."""
    return is_name(text) or text == SELF


def _exists(path: Path) -> bool:
    """Return whether a path exists, up to a pattern or range (*.tar, {0..9}, {seed})."""
    fixed = itertools.takewhile(lambda part: not set(part) & set("*?{"), expanded(path).parts)
    with contextlib.suppress(OSError):  # a name that is too long
        return Path(*fixed).exists()
    return False
