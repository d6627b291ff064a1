"""Which images belong together: the same bytes, copies of one picture, or the same patient, clip or place."""

import contextlib
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.images import EncodedSource

_COPY = re.compile(r"\.rf\.[0-9a-zA-Z]+\.\w+$")  # what Roboflow adds to the name of an augmented copy
_FRAME = re.compile(r"(.*?)[-_ ](?:frame)?[-_ ]?\d+\.\w+$", re.IGNORECASE)
MOST_COMPARED = 200_000  # files of equal size; opening so many takes seconds on a local disk
_END = 1024  # bytes at each end of a file that are compared first
_FRAMES = 10  # of a clip; with fewer images the names say nothing


def keys_of(images: EncodedSource | Tensor, root: Path) -> list[str]:
    """Return a name for each image that does not depend on where the data lies: its path relative to `root`."""
    if isinstance(images, Tensor):
        return [str(index) for index in range(len(images))]
    start = f"{root}{os.sep}"
    names = (images.file(index) or images.where(index) for index in range(len(images)))
    return [_relative(name, start).replace(os.sep, "/") for name in names]


def _relative(name: str, start: str) -> str:
    if name.startswith(start):
        return name[len(start) :]
    return os.path.relpath(name, start) if Path(name).is_absolute() == Path(start).is_absolute() else name


def same_bytes(files: Sequence[str | None], most: int = MOST_COMPARED) -> list[list[int]] | None:
    """Return the indices of files with the same content, together.

    Of files of equal size the first and last KiB are read, and the whole file only where these are equal too. So nearly
    all files are opened once at most, and few are read.

    Args:
        files: path of each image; None if it is no file.
        most: number of files of equal size above which nothing is read.

    Returns:
        None if more than `most` files have the size of another.
    """
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        if file is not None:
            with contextlib.suppress(OSError):  # reported when the image is read
                sizes[os.stat(file).st_size].append(index)  # noqa: PTH116 (100,000 paths cost a second)
    alike = {size: indices for size, indices in sizes.items() if len(indices) > 1}
    if sum(map(len, alike.values())) > most:
        return None
    found: list[list[int]] = []
    for size, indices in alike.items():
        for ends in _together(files, indices, lambda file, size=size: _ends(file, size)):
            found += [ends] if size <= 2 * _END else _together(files, ends, _checksum)
    return sorted(found)


def _together(files: Sequence[str | None], indices: Iterable[int], of: Callable[[str], bytes]) -> list[list[int]]:
    """Return those of some files for which a function returns the same, together; unreadable files are left out."""
    found: defaultdict[bytes, list[int]] = defaultdict(list)
    for index in indices:
        with contextlib.suppress(OSError):
            found[of(files[index] or "")].append(index)
    return [same for same in found.values() if len(same) > 1]


def _ends(file: str, size: int) -> bytes:
    """Return a checksum of the first and the last KiB of a file."""
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not wait
    try:
        start = os.read(opened, 2 * _END if size <= 2 * _END else _END)
        if size > 2 * _END:
            os.lseek(opened, -_END, os.SEEK_END)
            start += os.read(opened, _END)
    finally:
        os.close(opened)
    return hashlib.sha256(start).digest()


def _checksum(file: str) -> bytes:
    with open(file, "rb") as opened:  # noqa: PTH123
        return hashlib.file_digest(opened, "sha256").digest()


def copies(keys: Sequence[str], labels: Sequence[Hashable]) -> list[list[int]]:
    """Return the indices of augmented copies of one picture with one label, as Roboflow names them, together."""
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if match := _COPY.search(key):
            found[key[: match.start()].rpartition("/")[2], labels[index]].append(index)
    return [indices for indices in found.values() if len(indices) > 1]


def chosen_groups(group: str, keys: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[str | None]:
    """Return the group of each image as `--group` says: the value of a column, or what an expression finds in the path.

    Raises:
        InvalidValueError: `group` is neither a column nor a regular expression with one pair of parentheses, or the
            expression is found in no path.
    """
    if group in columns:
        return [str(value) if value not in (None, "") else None for value in columns[group]]
    known = f"columns: {_validation.listed(list(columns))}" if columns else "the data is no table"
    try:
        expression = re.compile(group)
    except re.error as error:
        raise errors.InvalidValueError(f"group {group!r} is no regular expression ({error}); {known}.") from None
    if expression.groups != 1:
        raise errors.InvalidValueError(
            f"group {group!r}: expected a column, or a regular expression with one pair of parentheses such as "
            f"'(patient\\d+)_', got {expression.groups}; {known}."
        )
    found = [match[1] if (match := expression.search(key)) else None for key in keys]
    if keys and not any(found):
        raise errors.InvalidValueError(f"group {group!r} is found in no path, such as {keys[0]}; {known}.")
    return found


def joined(count: int, together: Iterable[Sequence[int]], named: Sequence[str | None] | None) -> list[int]:
    """Return a number for each image, equal for images that belong together directly or through others.

    Args:
        count: number of images.
        together: indices of images that belong together.
        named: name of the group of each image; None is a group of its own.

    >>> joined(4, [[0, 2]], ["a", None, None, "a"])
    [0, 1, 0, 0]
    """
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(named or ()):
        if name is not None:
            by_name[name].append(index)
    for indices in (*together, *by_name.values()):
        first = root(indices[0])
        for index in indices[1:]:
            other = root(index)
            first, other = min(first, other), max(first, other)
            parent[other] = first
    return [root(index) for index in range(count)]


def frames_of_clips(keys: Sequence[str]) -> str | None:
    """Return the start of the name of a clip if most images are numbered as frames of several clips, or None.

    >>> frames_of_clips([f"clip{clip}_{n:04d}.png" for clip in (3, 4) for n in range(30)])
    'clip3'
    """
    counts: Counter[tuple[str, str]] = Counter()
    for key in keys:
        folder, _, name = key.rpartition("/")
        if (match := _FRAME.match(name)) and any(letter.isdigit() for letter in match[1]):
            counts[folder, match[1]] += 1
    clips = {clip: number for clip, number in counts.items() if number >= _FRAMES}
    several = len(clips) > len({folder for folder, _ in clips})  # a folder with one is named as its class
    return next(iter(clips))[1] if several and sum(clips.values()) > len(keys) / 2 else None
