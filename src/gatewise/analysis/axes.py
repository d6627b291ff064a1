"""The axes of a figure: whole numbers or names along x, and a score along y."""

# pyright: basic

from collections.abc import Sequence
from typing import Any

from gatewise.analysis.drawing import escape_mathtext
from gatewise.training import Score

LINE = 0.155  # inches along an axis that an upright name needs
_BESIDE = 0.8  # inches of a figure's width that are beside the axis
_LETTERS = 26  # most letters of a name
_POINTS = 2.0  # least length of an axis in percent: equal numbers must not look different


def count_along(axes: Any) -> None:
    """Put ticks of the x axis at integers only, even if there is only one."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def name_along(axes: Any, names: Sequence[str], *, first: int = 1) -> None:
    """Write names upright below the x axis at `first`, `first` + 1, ...; of many, each second, third, ..."""
    step = -(-len(names) // int((axes.figure.get_figwidth() - _BESIDE) / LINE))
    shown = [escape_mathtext(shortened(name)) for name in names[::step]]
    axes.set_xticks(range(first, first + len(names), step), shown, rotation=90, fontsize=8)


def name_gates_along(axes: Any, paths: Sequence[str]) -> None:
    """Write the paths of gates or layers below the x axis at 1, 2, ..., without the parts that all of them share."""
    name_along(axes, without_shared_parts(paths))


def without_shared_parts(paths: Sequence[str]) -> list[str]:
    """Return dotted paths without the first and the last parts that all of them share; each keeps a part.

    >>> without_shared_parts(["net.conv1.gct", "net.layer1.0.conv1.gct"])
    ['conv1', 'layer1.0.conv1']
    """
    parts = [path.split(".") for path in paths]
    for end in (0, -1):
        while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return [".".join(part) for part in parts]


def shortened(name: str, most: int = _LETTERS) -> str:
    """Return at most `most` letters of a name: its beginning and its end, with an ellipsis between.

    >>> shortened("African hunting dog, hyena dog", 18)
    'African …hyena dog'
    """
    end = most // 2
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"


def show_score(axes: Any, score: Score) -> None:
    """Label the y axis with a score; of a fraction it has at least two points, and is within 0 and 100 %."""
    axes.set_ylabel(f"validation {score.label}")
    if score.is_fraction:
        bottom, top = axes.get_ylim()
        more = max(0.0, _POINTS - (top - bottom)) / 2
        axes.set_ylim(max(0.0, bottom - more), min(100.5, top + more))
