"""Files that survive: written beside and renamed, so that a kill at any moment leaves the old one or the new one."""

import json
import os
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
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise _checks.DataError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _checks.DataError(f"{path} is not valid JSON ({error}). Restore it from a copy.") from None


def read_json_lines(path: Path) -> list[Any]:
    """Read JSON, one value a line; a line that is none is refused with the file's name and its number."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _checks.DataError(f"{path}, line {number}: not valid JSON ({error}). Restore the file.") from None
    return rows
