"""Figures of a comparison: accuracy during training, and accuracy against latency."""

# pyright: basic

from collections.abc import Mapping, Sequence

from gatewise.analysis.drawing import Drawing, add_legend, count_along, escape_mathtext, new_figure, series_style
from gatewise.analysis.table import Cell, Table
from gatewise.training import Score
from gatewise.training.tasks.classify import ACCURACY


def curves(values: Mapping[str, Sequence[Sequence[float]]], score: Score = ACCURACY) -> Drawing:
    """Draw a validation score over epochs: the mean over seeds as a line, lowest to highest seed as a band.

    Args:
        values: variant -> seeds -> one value of the score per epoch.
        score: the score.
    """
    figure, axes = new_figure(7, 3.6 + 0.2 * len(values))  # leaves room for the legend below, one line per variant
    rows, tips, above = [], {}, score.higher_is_better
    several = any(len(seeds) > 1 for seeds in values.values())
    for index, (name, seeds) in enumerate(values.items()):
        epochs = range(1, len(seeds[0]) + 1)
        columns = [[score.factor * value for value in column] for column in zip(*seeds, strict=True)]
        mean = [sum(column) / len(column) for column in columns]
        colour, marker = series_style(index)
        gid = f"series-{index}"
        low, high = list(map(min, columns)), list(map(max, columns))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0, gid=f"{gid}-band")
        marks = {"marker": marker, "markersize": 4, "markevery": max(1, len(mean) // 8)}
        axes.plot(epochs, mean, color=colour, label=escape_mathtext(name), lw=1.5, gid=gid, **marks)
        last, best = (f"{number:.2f}{score.unit}" for number in (mean[-1], (max if above else min)(mean)))
        tips[gid] = f"{name}: {last} after epoch {len(mean)}, best {best}"
        rows += [
            [Cell(name), *(Cell(f"{value:.4f}", value) for value in (epoch, *values))]
            for epoch, *values in zip(epochs, mean, low, high, strict=True)
        ]
    bottom, below = None, 0
    if above and score.is_fraction:
        bottom, top = _range_of_late_epochs(values)
        below = sum(row[2].order < bottom for row in rows)  # type: ignore[operator]
        axes.set_ylim(bottom, top)
    axes.set(xlabel="epoch", ylabel=f"validation {score.label}")
    count_along(axes)
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "curves",
        figure,
        shows=f"Validation {score.title} after each epoch"
        + (": lines are means over seeds, bands range from the lowest to the highest seed." if several else ".")
        + (f" The axis begins at {bottom:.0f} %; {below} of the points are below it." if below else ""),
        look_for="Bands that overlap at the end: the order of their lines may be chance."
        if several
        else f"Which line is {'highest' if above else 'lowest'} after the last epoch; one training per variant cannot "
        "separate a gain from chance.",
        table=Table(["variant", "epoch", *(f"{what}{score.unit}" for what in ("mean", "lowest", "highest"))], rows),
        tips=tips,
    )


def _range_of_late_epochs(values: Mapping[str, Sequence[Sequence[float]]]) -> tuple[float, float]:
    """Return the range of an axis in percent that shows the second half of the epochs in detail."""
    lowest = min(min(seed[len(seed) // 2 :]) for seeds in values.values() for seed in seeds)
    highest = max(max(seed) for seeds in values.values() for seed in seeds)
    margin = 100 * (highest - lowest) * 0.6 + 0.5
    return max(0.0, 100 * lowest - margin), min(100.5, 100 * highest + margin / 4)


def accuracy_against_latency(
    points: Mapping[str, tuple[float, float, float | None, float | None]],
    score: Score = ACCURACY,
    rivals: Mapping[str, str] | None = None,
) -> Drawing:
    """Draw a score against latency, one point per variant.

    Args:
        points: variant -> (milliseconds for one image, value of the score, lower and upper bound of its 95 % interval);
            None for a bound that is not known.
        score: the score.
        rivals: variant -> the variant whose rival it is: it has the same colour, a hollow marker, and a line to it.
    """
    rivals = {} if rivals is None else rivals
    hollow = " Hollow: a network without gates that costs as much as the gates it is joined to." if rivals else ""
    figure, axes = new_figure(7, 3.2 + 0.2 * len(points))
    rows, tips, factor = [], {}, score.factor
    for index, (name, (milliseconds, value, low, high)) in enumerate(points.items()):
        error = None if low is None or high is None else [[factor * (value - low)], [factor * (high - value)]]
        of = list(points).index(rivals.get(name, name))
        colour, marker = series_style(of)
        style = {"color": colour, "marker": marker, "capsize": 3}
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
    axes.set(xlabel="latency of one image (ms)", ylabel=f"validation {score.label}")
    axes.margins(x=0.15)
    if score.is_fraction:
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(0, bottom), min(100.5, top))  # the interval of two seeds can be much wider
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "accuracy_latency",
        figure,
        shows=f"The {score.title} of each variant against its latency for one image; bars are 95 % intervals over "
        f"seeds.{hollow}",
        look_for=f"Variants {score.better_is} and to the left of others: better and faster.",
        table=Table(["variant", "ms", *(f"{what}{score.unit}" for what in (score.title, "low", "high"))], rows),
        tips=tips,
    )
