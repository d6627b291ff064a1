"""Mark what must stay whole on a narrow page: cells with a number and its interval, and wide drawings."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes

_SHORT, _LONG = 16, 44  # letters of a cell that stays whole, and of one with an interval
_WIDE = 600  # pixels of a drawing whose text would be too small at the width of a telephone


def stays_whole(text: str) -> bool:
    """Return whether a cell is not broken into lines.

    >>> [stays_whole(text) for text in ("130.3 MB", "98.67 [98.22, 99.12]", "no difference was shown")]
    [True, True, False]
    """
    return len(text) <= _SHORT or (len(text) <= _LONG and re.search(r"\[[-+]?\d", text) is not None)


def width_of(drawing: Path) -> float:
    """Return the width of an SVG file in CSS pixels; 0 for another file."""
    found = (
        re.search(r'<svg[^>]*? width="([\d.]+)(pt|)"', drawing.read_text("utf-8")) if drawing.suffix == ".svg" else None
    )
    return 0.0 if found is None else float(found[1]) * (4 / 3 if found[2] else 1)


def mark(app: Any, doctree: nodes.document) -> None:
    """Give these cells the class "whole", and these drawings the class "wide"."""
    for cell in doctree.findall(nodes.entry):
        if stays_whole(cell.astext()):
            cell["classes"].append("whole")
    for image in doctree.findall(nodes.image):
        file = Path(app.srcdir) / image["uri"]
        if file.exists() and width_of(file) > _WIDE:
            image["classes"].append("wide")


def setup(app: Any) -> dict[str, bool]:
    """Register the step with Sphinx."""
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True}
