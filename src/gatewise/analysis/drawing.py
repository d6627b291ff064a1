"""A figure with its captions, tooltips and numbers, exported as SVG, PNG and CSV."""

# pyright: basic

import csv
import io
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Self

from gatewise.analysis.table import Table
from gatewise.analysis.thumbnails import Thumbnails
from gatewise.core import _validation

# Okabe and Ito's eight colours, distinguishable with any common colour blindness, and two that differ from them in
# lightness. Markers distinguish series in black-and-white print.
INK = "#1b1b1c"  # black on paper; inline SVGs replace it by the page's text colour, so that dark pages stay readable
COLOURS = (INK, "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#882255", "#8A8A8A")
MARKERS = "osD^vPX*"
WIDTH = 5.0  # of a figure in inches; at three quarters of it, the text is readable and the figure fits a telephone
_LETTER, _HANDLE = 0.083, 0.48  # width of a letter of a legend, and of what is left of each text, in inches
_ONE_LINE = 0.2  # height of names that a figure's own height includes, in inches
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")


@dataclass(frozen=True)
class Drawing:
    """One figure with its captions, tooltips and numbers.

    Attributes:
        name: prefix of its file names and of the ids in its SVG.
        figure: the matplotlib figure. In a page, the legend text with gid "legend-N" hides and shows all artists with
            gid "series-N" or "series-N-...".
        shows: caption: what the figure shows.
        look_for: caption: what to look for, with the paper if there is one.
        table: the numbers that are drawn.
        tips: gid of an artist -> tooltip, shown on hover and on keyboard focus.
        thumbnails: pictures of the figure's points, if there are any.
    """

    name: str
    figure: Any
    shows: str
    look_for: str = ""
    table: Table = field(default_factory=lambda: Table([], []))
    tips: Mapping[str, str] = field(default_factory=dict)
    thumbnails: Thumbnails | None = None

    def __post_init__(self) -> None:
        engines = _validation.import_optional("matplotlib.layout_engine", "drawing figures")
        if isinstance(self.figure.get_layout_engine(), engines.ConstrainedLayoutEngine):
            _add_room(self.figure)
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")  # fix the layout: each further saving would shift it slightly

    def renamed(self, suffix: str) -> Self:
        """Return the same drawing with `suffix` appended to its name."""
        return replace(self, name=f"{self.name}-{suffix}")

    @property
    def width(self) -> int:
        """Width of the figure in CSS pixels."""
        return round(96 * self.figure.get_figwidth())

    def svg(self, **options: Any) -> str:
        """Return the figure on white as SVG text; the same content gives the same text."""
        buffer = io.StringIO()
        rc_context = _validation.import_optional("matplotlib", "drawing figures").rc_context
        with rc_context({"svg.hashsalt": "gatewise", "svg.fonttype": "none"}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    def inline_svg(self) -> str:
        """Return SVG text to embed in a page: with tooltips, a text alternative, the page's colours, unique ids."""
        text = re.sub(r' id="image[0-9a-f]+"', "", self.svg(transparent=True))  # equal images would have equal ids
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for gid, tip in self.tips.items():
            tag = f'<g id="{self.name}-{gid}">'
            text = text.replace(tag, f'{tag[:-1]} class="tip" tabindex="0" role="img"><title>{escape(tip)}</title>')
        text = text.replace("<svg ", f'<svg role="group" aria-label="{escape(self.shows)}" ', 1)
        return text.replace(INK, "currentColor")

    def png(self) -> bytes:
        """Return the figure on white as PNG, 200 dpi."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=200, facecolor="white")
        return buffer.getvalue()

    def csv(self) -> str:
        """Return the drawn numbers as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.table.columns)
        writer.writerows([cell.order if cell.order != "" else cell.text for cell in row] for row in self.table.rows)
        return buffer.getvalue()


def _wrapped(label: str, letters: int) -> str:
    """Return a label in lines of at most `letters`, which end after a comma or at a space if there is any."""
    return label if len(label) <= letters else textwrap.fill(label.replace(",", ", "), letters, break_on_hyphens=False)


def _add_room(figure: Any) -> None:
    """Make a figure higher by its legend, and by names below its axes that need more than one line."""

    def height(artist: Any) -> float:
        return artist.get_window_extent().height / figure.dpi

    names = [height(name) for axes in figure.axes for name in axes.get_xticklabels() if name.get_text()]
    legends = sum(map(height, figure.legends))
    figure.set_figheight(figure.get_figheight() + legends + max(0.0, max(names, default=0.0) - _ONE_LINE))


def series_style(index: int) -> tuple[str, str]:
    """Return colour and marker of series `index`; the first 80 pairs are all different.

    >>> series_style(2), series_style(12)
    (('#0072B2', 'D'), ('#0072B2', 'P'))
    """
    return COLOURS[index % 10], MARKERS[(index + index // 10) % 8]


def escape_mathtext(name: str) -> str:
    r"""Return `name` escaped for matplotlib, which reads $...$ as math and omits labels with a leading _ from legends.

    >>> print(escape_mathtext("a$b$"), escape_mathtext("_background"))
    a\$b\$  _background
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def new_figure(height: float, *, width: float = WIDTH, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure outside pyplot's global state, and its axes: one, or an array (rows, columns)."""
    matplotlib = _validation.import_optional("matplotlib", "drawing figures")
    figures = _validation.import_optional("matplotlib.figure", "drawing figures")
    with matplotlib.rc_context(dict.fromkeys(_INKED, INK)):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
    for each in panels.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
        each.ticklabel_format(useOffset=False)
    return figure, panels if rows * columns > 1 else panels[0, 0]


def add_colour_bar(figure: Any, drawn: Any, label: str, axes: Any = None) -> None:
    """Add a labelled colour bar for an image or a mesh, next to `axes` if it applies to several."""
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(colors=INK)
    bar.outline.set_edgecolor(INK)


def add_legend(figure: Any, **style: Any) -> None:
    """Add a legend of all labelled series below the axes, as many in a line as fit.

    Long names continue on further lines. A page turns the texts into buttons (see `Drawing.figure`).
    """
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    room = figure.get_figwidth() - 0.2
    labels = [_wrapped(label, int((room - _HANDLE) / _LETTER)) for label in handles]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = min(len(labels), max(1, int(room / (_HANDLE + _LETTER * longest))))
    style |= {"loc": "outside lower left", "ncols": columns, "handlelength": 1.5, "columnspacing": 1.0}
    legend = figure.legend(list(handles.values()), labels, frameon=False, labelcolor=INK, **style)
    for number, text in enumerate(legend.get_texts()):
        text.set_gid(f"legend-{number}")
