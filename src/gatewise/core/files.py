"""Atomic file writes, folder locks, and JSON records with a format number.

A file is written under a temporary name, flushed and renamed: after a kill at any moment, the old or the new file is
there, complete. A record is a JSON object with a format number, so that older versions reject newer formats instead of
misreading them. Users may edit the values of a record; `gatewise.core.schema` validates them.
"""

# pyright: basic

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error

FORMAT = "format"
_LOCK = ".lock"  # exists in a folder while a process is using it
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(\d+)\.part")  # see beside_name


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary file in the same folder, flush it to disk, and rename it to `path`.

    Symbolic links are followed; missing parent folders are created.

    Raises:
        StorageError: `path` cannot be written, or is a pipe or device.
    """
    content = content.encode() if isinstance(content, str) else content
    path = path.resolve() if path.is_symlink() else path
    temporary = beside_name(path)
    _check_no_device(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise _validation.cannot_write(path, error, len(content)) from error
    finally:
        with contextlib.suppress(OSError):  # in a read-only folder there is nothing to delete
            temporary.unlink(missing_ok=True)


def beside_name(path: Path) -> Path:
    """Return a temporary name next to `path`, unique across threads, processes and machines."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` when the block succeeds and deleted when it fails.

    Raises:
        StorageError: a file cannot be written, or `folder` exists and is not empty.
    """
    folder = folder.resolve()
    temporary = beside_name(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        with contextlib.suppress(OSError):
            folder.rmdir()  # an empty one, because Windows renames over no folder
        temporary.rename(folder)
        flush_folder(folder.parent)
    except errors.StorageError as error:
        raise errors.StorageError(str(error).replace(temporary.name, folder.name)) from error
    except OSError as error:
        raise _validation.cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # so that a failed write on a full disk frees its space


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, if the system can; otherwise a power cut may undo a rename."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder_writable(folder: Path) -> None:
    """Raise `StorageError` if no file can be created in `folder`; the folder itself is not created.

    Call it before long work, so that the work is not lost to an unwritable folder.
    """
    check_is_folder(folder)
    _try_to_write(folder, folder / "file")


def check_file_writable(file: Path) -> None:
    """Raise `StorageError` if `file` cannot be written or replaced; nothing is created. Call it before long work."""
    if file.is_dir():
        raise errors.StorageError(f"{file} is a folder; give the name of a file.")
    _check_no_device(file)
    check_is_folder(file.parent)
    _try_to_write(file, file)


def check_is_folder(folder: Path) -> None:
    """Raise `StorageError` if `folder`, or what exists of the folders above it, is no folder."""
    existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    if not existing.is_dir():
        raise errors.StorageError(f"{existing} is not a folder. Choose another --out.")


def _try_to_write(named: Path, path: Path) -> None:
    """Write a byte next to `path` or, as far as its folders do not exist, next to the highest of those."""
    while not path.parent.exists():
        path = path.parent
    probe = beside_name(path)
    try:
        probe.write_bytes(b"x")
    except OSError as error:
        raise _validation.cannot_write(named, error) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _check_no_device(path: Path) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise errors.StorageError(f"{path} is a pipe or device, expected a regular file. Choose another path.")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its lock; on exit, delete the folders created here that are still empty.

    The system locks the file `.lock` in the folder, which is deleted on exit. It releases the lock when the process
    ends, even if forked workers are still alive, so a `.lock` left by a kill does not block later processes. On file
    systems without locks and in read-only folders there is no protection against concurrent writers.

    Raises:
        InvalidValueError: another process holds the lock.
        StorageError: the folder is a file or cannot be created, or another user owns its lock file.
    """
    from filelock import FileLock, Timeout  # imported here because it loads asyncio

    check_is_folder(folder)
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
            f"another process is using {folder}. Wait until it has finished, or choose another --out."
        ) from None
    except OSError as error:
        if isinstance(error, PermissionError) and file.exists():  # owned by another user
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
    """Delete temporary files and folders that a killed process left in `folder`; keep those of running processes."""
    for leftover in folder.glob(".*.part"):
        match = _TEMPORARY.fullmatch(leftover.name)
        if match is None or _is_alive(int(match[1])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Return whether another process with this ID runs on this machine; False on systems other than POSIX."""
    if process == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def without_nan(values: Any) -> Any:
    """Return values of JSON, which has no NaN and no infinity, with None in place of such numbers.

    >>> without_nan({"r2": float("nan"), "mae_by_number": {"age": 1.5}, "values": [float("inf"), 2]})
    {'r2': None, 'mae_by_number': {'age': 1.5}, 'values': [None, 2]}
    """
    if isinstance(values, Mapping):
        return {name: without_nan(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON, atomically."""
    write_atomically(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `DataError` if it is not valid JSON."""
    text = read_text(path)
    with as_data_error(path, "is not valid JSON", "Restore it from a copy.", of=(ValueError, RecursionError)):
        return json.loads(text)


def read_bytes(path: Path) -> bytes:
    """Read a regular file.

    Raises:
        DataError: the file does not exist, cannot be read, or is a folder or device (which may never end).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise errors.DataError(f"{path} is not a regular file. Check the path.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise errors.DataError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name; GatewiseErrors pass
        if isinstance(error, errors.GatewiseError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise errors.DataError(f"{path} cannot be read ({reason}). Check the path.") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; raise `DataError` if it is not valid UTF-8."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise errors.DataError(f"{path} is not UTF-8 text ({error}). Restore it from a copy.") from None


def check_format_not_newer(path: Path, newest: int, key: str = FORMAT) -> None:
    """Raise `NewerFormatError` if the JSON file at `path` has a newer format.

    Missing and damaged files pass: they may be overwritten.

    Args:
        path: file that is about to be written.
        newest: newest format number known to this version.
        key: entry that holds the format number.
    """
    try:
        values = read_json(path)
    except errors.DataError:
        return
    number = values.get(key) if isinstance(values, dict) else None
    if isinstance(number, int) and number > newest:
        _validation.check_format_number(path, number, newest)


def write_record(path: Path, values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Write `values` as JSON with format number `number`, atomically; return the contents of the file."""
    plain = json.loads(json.dumps({FORMAT: number, **values}, allow_nan=False))
    write_json(path, plain)
    return plain


def read_record(path: Path, newest: int, *keys: str) -> dict[str, Any]:
    """Read a file of `write_record`; files older than format numbers are accepted without one.

    Args:
        path: the file.
        newest: newest format number known to this version.
        keys: entries that the file must have.

    Raises:
        DataError: the file is not a JSON object, lacks one of `keys`, or has an invalid or newer format number.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise errors.DataError(f"{path} is not a JSON object. Was it written by gatewise? Restore it from a copy.")
    if FORMAT in values:
        _validation.check_format_number(path, values[FORMAT], newest)
    _validation.entries_of(path, values, *keys)
    return values


def read_json_lines(path: Path) -> list[Any]:
    """Read a JSON Lines file, without empty lines; raise `DataError` with the number of a line that is not valid."""
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}:"
        with as_data_error(where, "not valid JSON", "Restore the file.", of=(ValueError, RecursionError)):
            rows.append(json.loads(line))
    return rows
