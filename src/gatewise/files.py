"""Files that survive: written beside and renamed, so that a kill at any moment leaves the old one or the new one."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from gatewise import _checks


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside `path`, flush to the disk, then rename: at no moment is there half a file under that name."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is none is refused with its name."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _checks.DataError(f"{path} is not valid JSON ({_reason(error)}). Restore it from a copy.") from None


def read_bytes(path: Path) -> bytes:
    """Read a file; what is missing, is no regular file (a device has no end) or cannot be read is refused by name."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _checks.DataError(f"{path} is no file: a folder or a device. Check the path.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _checks.DataError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: of a zero byte in the name, and GatewiseErrors pass
        if isinstance(error, _checks.GatewiseError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise _checks.DataError(f"{path} cannot be read ({reason}). Check the path.") from None


def read_text(path: Path) -> str:
    """Read a text in UTF-8; what is none is refused with its name."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise _checks.DataError(f"{path} is not UTF-8 text ({error}). Restore it from a copy.") from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]


def read_json_lines(path: Path) -> list[Any]:
    """Read JSON, one value a line; a line that is none is refused with the file's name and its number."""
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = _reason(error)
            raise _checks.DataError(f"{path}, line {number}: not valid JSON ({reason}). Restore the file.") from None
    return rows
