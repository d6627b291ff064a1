"""Figures of a comparison: accuracy during training, and accuracy against latency."""

# pyright: basic

from collections.abc import Mapping, Sequence

from gatewise.analysis.axes import count_along, show_cost, show_score
from gatewise.analysis.drawing import Drawing, add_legend, escape_mathtext, new_figure, series_style
from gatewise.analysis.table import Cell, Table
from gatewise.training import Score
from gatewise.training.tasks.classify import ACCURACY

_FEW = 6  # epochs, of which the second half needs no figure of its own
_FEW_POINTS = 8  # whose intervals have caps; those of more would be a thicket


def curves(values: Mapping[str, Sequence[Sequence[float]]], score: Score = ACCURACY) -> Drawing:
    """Draw a validation score over epochs: the mean over seeds as a line, lowest to highest seed as a band.

    Args:
        values: variant -> seeds -> one value of the score per epoch.
        score: the score.
    """
    several = any(len(seeds) > 1 for seeds in values.values())
    return _draw_curves(
        "curves",
        values,
        score,
        shows=f"Validation {score.title} after each epoch"
        + (": lines are means over seeds, bands range from the lowest to the highest seed." if several else "."),
    )


def late_curves(values: Mapping[str, Sequence[Sequence[float]]], score: Score = ACCURACY) -> list[Drawing]:
    """Draw the second half of `curves` if it is long enough, and if its values are so close that this shows more."""
    epochs = min(len(seed) for seeds in values.values() for seed in seeds)
    late = {name: [seed[epochs // 2 :] for seed in seeds] for name, seeds in values.items()}
    if epochs < _FEW or 2 * _extent(late) >= _extent(values):
        return []
    first = 1 + epochs // 2
    shows = f"The same from epoch {first} on, with a scale of its own."
    return [_draw_curves("curves_late", late, score, shows=shows, first=first)]


def _extent(values: Mapping[str, Sequence[Sequence[float]]]) -> float:
    numbers = [value for seeds in values.values() for seed in seeds for value in seed]
    return max(numbers) - min(numbers)


def _draw_curves(
    name: str, values: Mapping[str, Sequence[Sequence[float]]], score: Score, *, shows: str, first: int = 1
) -> Drawing:
    """Draw curves whose first value is that of epoch `first`; lines that would hide another one are dashed."""
    figure, axes = new_figure(3.2)
    rows, tips, drawn = [], {}, []
    best_of = max if score.higher_is_better else min
    for index, (variant, seeds) in enumerate(values.items()):
        epochs = range(first, first + len(seeds[0]))
        columns = [[score.factor * value for value in column] for column in zip(*seeds, strict=True)]
        mean = [sum(column) / len(column) for column in columns]
        colour, marker = series_style(index)
        gid = f"series-{index}"
        low, high = list(map(min, columns)), list(map(max, columns))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0, gid=f"{gid}-band")
        style = {"marker": marker, "markersize": 4, "markevery": max(1, len(mean) // 8), "color": colour, "lw": 1.5}
        dashes = (-5 * drawn.count(mean), (5, 5 * (len(values) - 1)))  # each of several equal lines has its own places
        axes.plot(epochs, mean, label=escape_mathtext(variant), gid=gid, ls=dashes if mean in drawn else "-", **style)
        drawn.append(mean)
        last, best = (f"{number:.2f}{score.unit}" for number in (mean[-1], best_of(mean)))
        tips[gid] = f"{variant}: {last} after epoch {epochs[-1]}, best {best}"
        rows += [
            [Cell(variant), Cell(str(epoch), epoch), *(Cell(f"{value:.4f}", value) for value in numbers)]
            for epoch, *numbers in zip(epochs, mean, low, high, strict=True)
        ]
    show_score(axes, score)
    axes.set_xlabel("epoch")
    count_along(axes)
    add_legend(figure)
    return Drawing(
        name,
        figure,
        shows=shows,
        look_for=_look_for_in_curves(values, score),
        table=Table(["variant", "epoch", *(f"{what}{score.unit}" for what in ("mean", "lowest", "highest"))], rows),
        tips=tips,
    )


def _look_for_in_curves(values: Mapping[str, Sequence[Sequence[float]]], score: Score) -> str:
    if len(values) == 1:
        change = "rises" if score.higher_is_better else "falls"
        return f"A line that still {change} at the end: more epochs may help."
    if any(len(seeds) > 1 for seeds in values.values()):
        return "Bands that overlap at the end: the order of their lines may be chance."
    place = "highest" if score.higher_is_better else "lowest"
    return f"Which line is {place} after the last epoch; one training per variant cannot separate a gain from chance."


def accuracy_against_latency(
    points: Mapping[str, tuple[float, float, float | None, float | None]],
    score: Score = ACCURACY,
    rivals: Mapping[str, str] | None = None,
    over: str = "seeds",
) -> Drawing:
    """Draw a score against latency, one point per variant.

    Args:
        points: variant -> (milliseconds for one image, value of the score, lower and upper bound of its 95 % interval);
            None for a bound that is not known.
        score: the score.
        over: what the intervals are over.
        rivals: variant -> the variant whose rival it is: it has the same colour, a hollow marker, and a line to it.
    """
    rivals = {} if rivals is None else rivals
    hollow = " Hollow: a network without gates that costs as much as the gates it is joined to." if rivals else ""
    figure, axes = new_figure(3.2)
    rows, tips, factor = [], {}, score.factor
    for index, (name, (milliseconds, value, low, high)) in enumerate(points.items()):
        error = None if low is None or high is None else [[factor * (value - low)], [factor * (high - value)]]
        of = list(points).index(rivals.get(name, name))
        colour, marker = series_style(of)
        style = {"color": colour, "marker": marker, "capsize": 3 if len(points) <= _FEW_POINTS else 0}
        if of != index:
            style["mfc"] = "none"
            other = points[rivals[name]]
            axes.plot([milliseconds, other[0]], [factor * value, factor * other[1]], color=colour, lw=0.8, ls=":")
        drawn = axes.errorbar([milliseconds], [factor * value], yerr=error, ls="", label=escape_mathtext(name), **style)
        for number, artist in enumerate(drawn.get_children()):
            artist.set_gid(f"series-{index}" + (f"-{number}" if number else ""))
        tips[f"series-{index}"] = f"{name}: {score.text(value)}, {milliseconds:.2f} ms"
        values = (milliseconds, *(None if v is None else factor * v for v in (value, low, high)))
        rows.append([Cell(name), *(Cell("" if v is None else f"{v:.4f}", "" if v is None else v) for v in values)])
    show_cost(axes, "latency of one image (ms)")
    show_score(axes, score)
    add_legend(figure)
    return Drawing(
        "accuracy_latency",
        figure,
        shows=f"The {score.title} of each variant against its latency for one image; bars are 95 % intervals over "
        f"{over}.{hollow}",
        look_for=f"Variants {score.better_is} and to the left of others: better and faster.",
        table=Table(["variant", "ms", *(f"{what}{score.unit}" for what in (score.title, "low", "high"))], rows),
        tips=tips,
    )
