"""A matrix of shares as colours, with a name for each row and column."""

# pyright: basic

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gatewise.analysis.axes import shortened
from gatewise.analysis.drawing import WIDTH, add_colour_bar, escape_mathtext, new_figure

_MOST = 60  # names of one side that are written
_CELL, _WIDEST = 0.3, 9.0  # inches


def draw_shares(shares: Tensor, rows: Sequence[str], columns: Sequence[str], label: str) -> tuple[Any, Any]:
    """Draw shares in percent, (rows, columns), on new axes, and return figure and axes.

    Args:
        shares: the shares.
        rows: names of the rows.
        columns: names of the columns.
        label: what the shares are, for the colour bar.
    """
    width = min(_WIDEST, max(WIDTH, 2.0 + _CELL * len(columns)))
    cell = min(0.34, (width - 2.0) / len(columns))
    figure, axes = new_figure(0.6 + cell * len(rows), width=width)
    axes.grid(visible=False)
    drawn = axes.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=100, interpolation="nearest", aspect="auto")
    add_colour_bar(figure, drawn, label, axes)
    if len(columns) <= _MOST:
        axes.set_xticks(range(len(columns)), _written(columns), rotation=90, fontsize=8)
    if len(rows) <= _MOST:
        axes.set_yticks(range(len(rows)), _written(rows), fontsize=8)
    return figure, axes


def _written(names: Sequence[str]) -> list[str]:
    return [escape_mathtext(shortened(name)) for name in names]
