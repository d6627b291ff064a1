"""The axes of a figure: whole numbers or names along x, and a score along y."""

# pyright: basic

from collections.abc import Sequence
from typing import Any

from gatewise.analysis.drawing import escape_mathtext
from gatewise.training import Score

LINE = 0.155  # inches along an axis that an upright name needs
_BESIDE = 0.8  # inches of a figure's width that are not the axis
_LETTERS = 26  # most letters of a name
_UPRIGHT = 2  # most letters of names that fit next to each other
_SHARE = 0.1  # least length of an axis of costs, as a share of them
_POINTS = 2.0  # least length of an axis in percent: equal numbers must not look different


def count_along(axes: Any) -> None:
    """Put ticks of the x axis at integers only, even if there is only one."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def name_along(axes: Any, names: Sequence[str], *, first: int = 1) -> None:
    """Write names below the x axis at `first`, `first` + 1, ...; of many, each second, third, ..."""
    step = -(-len(names) // int((axes.figure.get_figwidth() - _BESIDE) / LINE))
    write_names(axes.xaxis, names[::step], range(first, first + len(names), step), rotation=90)


def write_names(axis: Any, names: Sequence[str], places: Sequence[int], *, rotation: int = 0) -> None:
    """Write names at places of an axis, the long ones with an ellipsis; those of two letters are not rotated."""
    written = [escape_mathtext(shortened(name)) for name in names]
    turned = rotation if max(map(len, names), default=0) > _UPRIGHT else 0
    axis.set_ticks(places, written, rotation=turned, fontsize=8)


def name_gates_along(axes: Any, paths: Sequence[str]) -> None:
    """Write the paths of gates or layers below the x axis at 1, 2, ..., without a last part that all of them share."""
    shared = len({path.rpartition(".")[2] for path in paths}) == 1 and all("." in path for path in paths)
    name_along(axes, [path.rpartition(".")[0] for path in paths] if shared else paths)


def shortened(name: str, most: int = _LETTERS) -> str:
    """Return at most `most` letters of a name: its beginning and its end, with an ellipsis between.

    >>> shortened("African hunting dog, hyena dog", 18)
    'African …hyena dog'
    """
    end = most // 2
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"


def show_cost(axes: Any, label: str) -> None:
    """Label the x axis with a cost; it has at least a tenth of the cost, so that its ticks are short numbers."""
    axes.set_xlabel(label)
    left, right = axes.dataLim.intervalx
    reach = max(0.65 * (right - left), _SHARE * right / 2)
    axes.set_xlim((left + right) / 2 - reach, (left + right) / 2 + reach)


def show_score(axes: Any, score: Score) -> None:
    """Label the y axis with a score; of a fraction it has at least two points, and is within 0 and 100 %."""
    axes.set_ylabel(f"validation {score.label}")
    if score.is_fraction:
        bottom, top = axes.get_ylim()
        more = max(0.0, _POINTS - (top - bottom)) / 2
        axes.set_ylim(max(0.0, bottom - more), min(100.5, top + more))
