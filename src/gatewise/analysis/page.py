"""A self-contained HTML page: one file that opens from disk and asks nothing of the network."""

# pyright: basic

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Self

from gatewise import _validation
from gatewise.analysis.drawing import Drawing
from gatewise.analysis.table import Table


@dataclass(frozen=True)
class Section:
    """A heading with text, a table, and figures."""

    title: str
    text: str = ""
    table: Table | None = None
    drawings: Sequence[Drawing] = ()

    def under(self, name: str, slug: str) -> Self:
        """Return the same section as that of one run among several, its figures' names ending with `slug`."""
        drawings = [drawing.renamed(slug) for drawing in self.drawings]
        return replace(self, title=f"{name}: {self.title}", drawings=drawings)


@dataclass(frozen=True)
class Page:
    """A titled list of sections with a list of facts at the end."""

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def render(self) -> str:
        """Return the HTML."""
        jinja2 = _validation.import_optional("jinja2", "writing reports")
        source = resources.files("gatewise.analysis").joinpath("page.html").read_text("utf-8")
        template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
        return template.render(page=self)
