"""A matrix of shares as colours, with a name for each row and column."""

# pyright: basic

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gatewise.analysis.axes import write_names
from gatewise.analysis.drawing import WIDTH, add_colour_bar, new_figure

_MOST = 60  # names of one side that are written
_CELL, _WIDEST, _LOWEST = 0.3, 9.0, 2.6  # inches: a cell, and figures


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
    figure, axes = new_figure(max(_LOWEST, 0.6 + cell * len(rows)), width=width)
    axes.grid(visible=False)
    drawn = axes.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=100, interpolation="nearest", aspect="auto")
    add_colour_bar(figure, drawn, label, axes)
    if len(columns) <= _MOST:
        write_names(axes.xaxis, columns, range(len(columns)), rotation=90)
    if len(rows) <= _MOST:
        write_names(axes.yaxis, rows, range(len(rows)))
    return figure, axes
