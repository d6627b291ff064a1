"""Figures as SVG text: readable in colour-blind palettes, without a display."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from gatewise import _checks

# Okabe and Ito's eight colours, told apart by people with any common colour blindness; markers for print.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
MARKERS = "osD^vPX*"


def look(index: int) -> tuple[str, str]:
    """Return colour and marker of variant number `index`; no two of the first 64 share both.

    >>> look(0), look(8)
    (('#000000', 'o'), ('#000000', 's'))
    """
    return COLOURS[index % 8], MARKERS[(index + index // 8) % 8]


def curves(accuracies: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw validation accuracy over epochs: the mean over seeds as a line, lowest to highest seed as a band.

    Args:
        accuracies: for each variant, for each seed, one value in [0, 1] per epoch.
    """
    figure, axes = new_figure(7, 4)
    for index, (name, seeds) in enumerate(accuracies.items()):
        epochs = range(1, len(seeds[0]) + 1)
        columns = [[100 * value for value in column] for column in zip(*seeds, strict=True)]
        mean = [sum(column) / len(column) for column in columns]
        colour, marker = look(index)
        axes.fill_between(epochs, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, lw=0)
        marks = {"marker": marker, "markersize": 4, "markevery": max(1, len(mean) // 8)}
        axes.plot(epochs, mean, color=colour, label=name, lw=1.5, **marks)
    lowest = min(min(seed[len(seed) // 2 :]) for seeds in accuracies.values() for seed in seeds)
    highest = max(max(seed) for seeds in accuracies.values() for seed in seeds)
    margin = 100 * (highest - lowest) * 0.6 + 0.5
    axes.set(
        xlabel="epoch",
        ylabel="validation accuracy (%)",
        ylim=(max(0, 100 * lowest - margin), min(100.5, 100 * highest + margin / 4)),
    )
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.legend(frameon=False)
    return to_svg(figure)


def accuracy_against_latency(points: Mapping[str, tuple[float, float, float | None, float | None]]) -> str:
    """Draw one point per variant: milliseconds for one image, accuracy with its interval, both from `points`."""
    figure, axes = new_figure(7, 3.2 + 0.2 * len(points))  # the legend's lines stand below, whatever their length
    for index, (name, (milliseconds, accuracy, low, high)) in enumerate(points.items()):
        error = None if low is None or high is None else [[100 * (accuracy - low)], [100 * (high - accuracy)]]
        colour, marker = look(index)
        style = {"color": colour, "marker": marker, "capsize": 3}
        axes.errorbar([milliseconds], [100 * accuracy], yerr=error, ls="", label=name, **style)
    axes.set(xlabel="latency of one image (ms)", ylabel="validation accuracy (%)")
    axes.margins(x=0.15)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom), min(100.5, top))  # an interval over two seeds may reach far beyond
    figure.legend(frameon=False, loc="outside lower left")
    return to_svg(figure)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure that no global state knows of, and its axes."""
    matplotlib = _checks.optional_module("matplotlib.figure", "drawing figures")
    figure = matplotlib.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def to_svg(figure: Any) -> str:
    """Return a figure as SVG text, the same for the same content."""
    buffer = io.StringIO()
    rc_context = _checks.optional_module("matplotlib", "drawing figures").rc_context
    with rc_context({"svg.hashsalt": "gatewise", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
