"""A self-contained HTML page: a single file that opens from disk and loads nothing from the network."""

# pyright: basic

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

from gatewise import errors
from gatewise.analysis.drawing import Drawing
from gatewise.analysis.table import Table
from gatewise.core import _validation
from gatewise.core.files import check_file_writable

_SUFFIXES = (".html", ".htm")


def check_page_writable(out: Path) -> None:
    """Raise `StorageError` if a page cannot be written to `out`, or would replace a file that is no page."""
    check_file_writable(out)
    if out.exists() and out.suffix.lower() not in _SUFFIXES:
        raise errors.StorageError(f"{out} exists, and is no HTML page by its name. Choose another --out.")


@dataclass(frozen=True)
class Section:
    """A heading, a table, text, a command, links, pictures, and figures, shown in this order.

    Attributes:
        title: the heading.
        text: a paragraph.
        table: a table that can be sorted.
        drawings: the figures.
        command: the command line that made what the links lead to.
        links: addresses, relative to the page, by their titles.
        pictures: addresses of pictures that are shown, relative to the page, by their titles.
    """

    title: str
    text: str = ""
    table: Table | None = None
    drawings: Sequence[Drawing] = ()
    command: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)

    def under(self, name: str, slug: str) -> Self:
        """Return the section titled "name: title", with `slug` appended to the names of its figures."""
        drawings = [drawing.renamed(slug) for drawing in self.drawings]
        return replace(self, title=f"{name}: {self.title}", drawings=drawings)


@dataclass(frozen=True)
class Page:
    """A title, a lead, sections, and a list of facts at the end."""

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def render(self) -> str:
        """Return the page as HTML."""
        jinja2 = _validation.import_optional("jinja2", "writing reports")
        source = resources.files("gatewise.analysis").joinpath("page.html").read_text("utf-8")
        template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
        return template.render(page=self)
