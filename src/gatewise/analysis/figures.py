"""Figures of a comparison: accuracy during training, and accuracy against latency."""

# pyright: basic

from collections.abc import Mapping, Sequence

from gatewise.analysis.drawing import Drawing, add_legend, count_along, escape_mathtext, new_figure, series_style
from gatewise.analysis.table import Cell, Table


def curves(accuracies: Mapping[str, Sequence[Sequence[float]]], score: str = "accuracy") -> Drawing:
    """Draw validation accuracy over epochs: the mean over seeds as a line, lowest to highest seed as a band.

    Args:
        accuracies: variant -> seeds -> one value in [0, 1] per epoch.
        score: name of the values.
    """
    figure, axes = new_figure(7, 3.6 + 0.2 * len(accuracies))  # leaves room for the legend below, one line per variant
    rows, tips = [], {}
    several = any(len(seeds) > 1 for seeds in accuracies.values())
    for index, (name, seeds) in enumerate(accuracies.items()):
        epochs = range(1, len(seeds[0]) + 1)
        columns = [[100 * value for value in column] for column in zip(*seeds, strict=True)]
        mean = [sum(column) / len(column) for column in columns]
        colour, marker = series_style(index)
        gid = f"series-{index}"
        low, high = list(map(min, columns)), list(map(max, columns))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0, gid=f"{gid}-band")
        marks = {"marker": marker, "markersize": 4, "markevery": max(1, len(mean) // 8)}
        axes.plot(epochs, mean, color=colour, label=escape_mathtext(name), lw=1.5, gid=gid, **marks)
        tips[gid] = f"{name}: {mean[-1]:.2f} % after epoch {len(mean)}, best {max(mean):.2f} %"
        rows += [
            [Cell(name), *(Cell(f"{value:.4f}", value) for value in (epoch, *values))]
            for epoch, *values in zip(epochs, mean, low, high, strict=True)
        ]
    lowest = min(min(seed[len(seed) // 2 :]) for seeds in accuracies.values() for seed in seeds)
    highest = max(max(seed) for seeds in accuracies.values() for seed in seeds)
    margin = 100 * (highest - lowest) * 0.6 + 0.5
    bottom = max(0.0, 100 * lowest - margin)
    below = sum(row[2].order < bottom for row in rows)  # type: ignore[operator]
    axes.set(
        xlabel="epoch",
        ylabel=f"validation {score} (%)",
        ylim=(bottom, min(100.5, 100 * highest + margin / 4)),
    )
    count_along(axes)
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "curves",
        figure,
        shows=f"Validation {score} after each epoch"
        + (": lines are means over seeds, bands range from the lowest to the highest seed." if several else ".")
        + (f" The axis begins at {bottom:.0f} %; {below} of the points are below it." if below else ""),
        look_for="Bands that overlap at the end: the order of their lines may be chance."
        if several
        else "Which line is highest after the last epoch; one training per variant cannot separate a gain from chance.",
        table=Table(["variant", "epoch", "mean %", "lowest %", "highest %"], rows),
        tips=tips,
    )


def accuracy_against_latency(
    points: Mapping[str, tuple[float, float, float | None, float | None]], score: str = "accuracy"
) -> Drawing:
    """Draw accuracy against latency, one point per variant.

    Args:
        points: variant -> (milliseconds for one image, accuracy in [0, 1], lower and upper bound of its 95 % interval);
            None for a bound that is not known.
        score: name of the accuracy.
    """
    figure, axes = new_figure(7, 3.2 + 0.2 * len(points))
    rows, tips = [], {}
    for index, (name, (milliseconds, accuracy, low, high)) in enumerate(points.items()):
        error = None if low is None or high is None else [[100 * (accuracy - low)], [100 * (high - accuracy)]]
        colour, marker = series_style(index)
        style = {"color": colour, "marker": marker, "capsize": 3}
        drawn = axes.errorbar([milliseconds], [100 * accuracy], yerr=error, ls="", label=escape_mathtext(name), **style)
        for number, artist in enumerate(drawn.get_children()):
            artist.set_gid(f"series-{index}" + (f"-{number}" if number else ""))
        tips[f"series-{index}"] = f"{name}: {100 * accuracy:.2f} %, {milliseconds:.2f} ms"
        values = (milliseconds, *(None if v is None else 100 * v for v in (accuracy, low, high)))
        rows.append([Cell(name), *(Cell("" if v is None else f"{v:.4f}", "" if v is None else v) for v in values)])
    axes.set(xlabel="latency of one image (ms)", ylabel=f"validation {score} (%)")
    axes.margins(x=0.15)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom), min(100.5, top))  # the interval of two seeds can be much wider
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "accuracy_latency",
        figure,
        shows=f"The {score} of each variant against its latency for one image; bars are 95 % intervals over seeds.",
        look_for="Variants above and to the left of others: better and faster.",
        table=Table(["variant", "ms", f"{score} %", "low %", "high %"], rows),
        tips=tips,
    )
