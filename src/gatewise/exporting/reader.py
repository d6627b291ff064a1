"""Open files of `gatewise export`."""

from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.exporting.formats.registry import Exported, format_of, opened_suffixes


def opened(file: str | Path) -> Exported:
    """Open an exported file.

    Raises:
        DataError: the suffix is not that of a format, the file is damaged, or its format is a program and therefore not
            opened.
    """
    file = _validation.check_path_exists("exported file", file)
    form = format_of(file)
    if form.why_not_opened is not None:
        raise errors.DataError(
            f"{file} was not opened: gatewise reads run folders, folders of save_pretrained, and files of gatewise "
            f"export ({opened_suffixes()}). {form.why_not_opened}"
        )
    return form.open(file)


def details_of(file: str | Path) -> dict[str, Any]:
    """Return the metadata of a file of `gatewise export`; see `Exported.details`."""
    return opened(file).details
