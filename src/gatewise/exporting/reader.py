"""Open files of `gatewise export`."""

from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.exporting.formats.registry import Exported, format_of, opened_suffixes


def opened(file: str | Path) -> Exported:
    """Open an exported file.

    Raises:
        DataError: no format has the suffix, its files are programs and are not opened, or the file is damaged.
    """
    file = _validation.check_path_exists("exported file", file)
    form = format_of(file)
    if form is None or form.why_not_opened is not None:
        readable = f"run folders, folders of save_pretrained, and files of gatewise export ({opened_suffixes()})"
        reason = f" {form.why_not_opened}" if form else ""
        raise errors.DataError(f"{file} was not opened: gatewise reads {readable}.{reason}")
    return form.open(file)


def details_of(file: str | Path) -> dict[str, Any]:
    """Return the metadata of a file of `gatewise export`; see `Exported.details`."""
    return opened(file).details
