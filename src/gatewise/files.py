"""Files that survive: written beside and renamed, so that a kill at any moment leaves the old one or the new one.

What is read again later as the truth is a record: JSON with the number of its format, so that an older version refuses
what it does not understand. A person may edit its values, which `details` checks.
"""

# pyright: basic

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gatewise import _validation, errors

FORMAT = "format"
_LOCK = ".lock"  # in a folder while a process is at work there
_BESIDE = re.compile(r"\..+\.[0-9a-f]{8}\.(\d+)\.part")  # see beside_name


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside `path`, flush to the disk, then rename: at no moment is there half a file under that name.

    A link is followed. What cannot be written, and a pipe or device, is refused with `StorageError`.
    """
    content = content.encode() if isinstance(content, str) else content
    path = path.resolve() if path.is_symlink() else path
    beside = beside_name(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise errors.StorageError(f"{path} is a pipe or device, and a file is to be written. Choose another path.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise _validation.cannot_write(path, error, len(content)) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written to holds nothing to take away
            beside.unlink(missing_ok=True)


def beside_name(path: Path) -> Path:
    """Return the name under which `path` is written: no two processes or threads share one, on any machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets the name `folder` when all is written; there may be an empty one already."""
    folder = folder.resolve()
    beside = beside_name(folder)
    try:
        beside.mkdir(parents=True)
        yield beside
        beside.rename(folder)
        flush_folder(folder.parent)
    except errors.StorageError as error:
        raise errors.StorageError(str(error).replace(beside.name, folder.name)) from error
    except OSError as error:
        raise _validation.cannot_write(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # on a full disk, half of it takes the room of the whole


def flush_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder, where the system can: else a power cut may undo a rename."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made: before hours of work, not after them. It is not made yet."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    probe = beside_name(there / "writable")
    try:
        probe.write_bytes(b"x")
    except OSError as error:
        raise _validation.cannot_write(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and refuse it to others who ask likewise; what was made goes again if nothing has come into it.

    The lock is the system's, on the file `.lock` in the folder, which is removed at the end. It ends with the process,
    though workers that were forked live on; a `.lock` that a kill leaves keeps nobody out. Nor does a disk without
    locks, or a folder that cannot be written to.
    """
    from filelock import FileLock, Timeout  # loads asyncio

    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    file = folder / _LOCK
    lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _validation.cannot_write(folder, error) from error
    try:
        lock.acquire()
    except Timeout:
        raise errors.InvalidValueError(
            f"another process is at work in {folder}. Wait until it is done, or choose another --out."
        ) from None
    except OSError as error:
        if isinstance(error, PermissionError) and file.exists():  # somebody else's
            raise _validation.cannot_write(file, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            for parent in made:
                parent.rmdir()
        lock.release()


def remove_leftovers(folder: Path) -> None:
    """Take away what a kill left half-written or half-removed in `folder`, but not what a living process writes."""
    for leftover in folder.glob(".*.part"):
        found = _BESIDE.fullmatch(leftover.name)
        if found is None or _is_alive(int(found[1])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether another process with this number runs on this machine; where that cannot be asked, it does not."""
    if process == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is none is refused with its name."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.DataError(f"{path} is not valid JSON ({_reason(error)}). Restore it from a copy.") from None


def read_bytes(path: Path) -> bytes:
    """Read a file; what is missing, is no regular file (a device has no end) or cannot be read is refused by name."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise errors.DataError(f"{path} is no file: a folder or a device. Check the path.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise errors.DataError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: of a zero byte in the name, and GatewiseErrors pass
        if isinstance(error, errors.GatewiseError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise errors.DataError(f"{path} cannot be read ({reason}). Check the path.") from None


def read_text(path: Path) -> str:
    """Read a text in UTF-8; what is none is refused with its name."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise errors.DataError(f"{path} is not UTF-8 text ({error}). Restore it from a copy.") from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]


def check_format_not_newer(path: Path, newest: int, key: str = FORMAT) -> None:
    """Refuse to write over a JSON file of a newer format; one that is missing or damaged may be written anew."""
    try:
        values = read_json(path)
    except errors.DataError:
        return
    found = values.get(key) if isinstance(values, dict) else None
    if isinstance(found, int) and found > newest:
        _validation.check_format_number(path, found, newest)


def write_record(path: Path, values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Write JSON with the number of its format, atomically; return what is in the file."""
    plain = json.loads(json.dumps({FORMAT: number, **values}, allow_nan=False))
    write_json(path, plain)
    return plain


def read_record(path: Path, newest: int, *keys: str) -> dict[str, Any]:
    """Read what `write_record` wrote; files from before formats have no number.

    Refused with `DataError`: what is no such JSON or lacks one of the keys, and a newer format than `newest`.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise errors.DataError(f"{path} holds no values by name. Was it written by gatewise? Restore it from a copy.")
    if FORMAT in values:
        _validation.check_format_number(path, values[FORMAT], newest)
    _validation.entries_of(path, values, *keys)
    return values


def read_json_lines(path: Path) -> list[Any]:
    """Read JSON, one value a line; a line that is none is refused with the file's name and its number."""
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = _reason(error)
            raise errors.DataError(f"{path}, line {number}: not valid JSON ({reason}). Restore the file.") from None
    return rows
