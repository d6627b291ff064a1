"""Figures that compare several runs: accuracy against cost, and statistics of their gates by layer."""

# pyright: basic

from collections.abc import Mapping, Sequence

from gatewise.analysis.axes import show_cost, show_score
from gatewise.analysis.drawing import Drawing, add_legend, escape_mathtext, new_figure, series_style
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.patterns import GatePatterns
from gatewise.analysis.table import Cell, Table
from gatewise.training import Score
from gatewise.training.tasks.classify import ACCURACY


def accuracy_against_macs(points: Mapping[str, tuple[float, float]], score: Score = ACCURACY) -> Drawing:
    """Draw a score against multiply-adds, one point per run.

    Args:
        points: run -> (millions of multiply-adds per image, value of the score).
        score: the score.
    """
    figure, axes = new_figure(3.2)
    for index, (name, (macs, value)) in enumerate(points.items()):
        colour, marker = series_style(index)
        axes.plot(
            [macs],
            [score.factor * value],
            ls="",
            label=escape_mathtext(name),
            color=colour,
            marker=marker,
            gid=f"series-{index}",
        )
    axes.margins(y=0.15)
    show_cost(axes, "multiply-adds per image (M)")
    show_score(axes, score)
    add_legend(figure)
    return Drawing(
        "accuracy_macs",
        figure,
        shows=f"The {score.title} of each run against its multiply-adds per image; for runs that choose their filters, "
        "the executed ones.",
        look_for=f"Runs {score.better_is} and to the left of others: better with less computation.",
        table=Table(
            ["run", "MACs (M)", f"{score.title}{score.unit}"],
            [
                [Cell(name), Cell(f"{macs:.4f}", macs), Cell(score.number(value), score.factor * value)]
                for name, (macs, value) in points.items()
            ],
        ),
        tips={f"series-{i}": f"{n}: {score.text(v)}, {m:.2f} M" for i, (n, (m, v)) in enumerate(points.items())},
    )


_ACROSS = "depth (% of the run's gates, from input to output)"

# Statistics that are comparable between gates of any kind: label, and how to compute it from a GateSummary.
_COMPARED = (
    ("near the identity (% of values)", lambda summary: 100 * summary.near_identity),
    ("between images (% of variance)", lambda summary: 100 * summary.between_images),
    ("change of the spread (%)", lambda summary: 100 * (summary.competition - 1)),
)


def gates_of_runs(found: Mapping[str, Sequence[GateSummary]], runs: Sequence[str]) -> Drawing:
    """Draw statistics of the gates of several runs over depth: one panel per statistic, one line per run.

    Args:
        found: run -> summaries of its gates, from input to output.
        runs: all runs of the page, also those without gates, so that each run has the same colour in all figures.
    """
    figure, panels = new_figure(6.5, rows=len(_COMPARED))
    tips = {}
    for panel, (axes, (label, number)) in enumerate(zip(panels.flat, _COMPARED, strict=True)):
        for index, (run, summaries) in enumerate(found.items()):
            colour, marker = series_style(runs.index(run))
            values = [number(summary) for summary in summaries]
            style = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2, "label": escape_mathtext(run)}
            gid = f"series-{index}-{panel}"
            axes.plot(_depth(len(values)), values, gid=gid, **style)
            tips[gid] = f"{run}: mean over gates {sum(values) / len(values):.1f} {label[label.index('(') :]}"
        axes.set(ylabel=label)
        axes.yaxis.label.set_size(8)
    panels[-1, 0].set(xlabel=_ACROSS)
    add_legend(figure)
    return Drawing(
        "gates_of_runs",
        figure,
        shows="The gates of each run, evenly spaced from first to last: share of values within 5 % of the identity, "
        "share of variance between images, and change of the spread between channels.",
        look_for="Depths where lines differ: the runs learned different things there. Lines that agree: the effect of "
        "gates depends more on the depth than on the run.",
        table=Table(
            ["run", "number", "gate", *(label for label, _ in _COMPARED)],
            [
                [Cell(run), Cell(str(place), place), Cell(summary.path), *(_number(of(summary)) for _, of in _COMPARED)]
                for run, summaries in found.items()
                for place, summary in enumerate(summaries, 1)
            ],
        ),
        tips=tips,
    )


def open_gates_of_runs(found: Mapping[str, GatePatterns], runs: Sequence[str]) -> Drawing:
    """Draw the mean share of gates that an image opens, by gated layer, one line per run (see `gates_of_runs`)."""
    figure, axes = new_figure(3.0)
    tips, rows = {}, []
    for index, (run, patterns) in enumerate(found.items()):
        colour, marker = series_style(runs.index(run))
        shares = patterns.open_shares()
        style = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2, "label": escape_mathtext(run)}
        axes.plot(_depth(len(shares)), [100 * share for share in shares], gid=f"series-{index}", **style)
        tips[f"series-{index}"] = f"{run}: mean over layers {100 * sum(shares) / len(shares):.1f} %"
        rows += [
            [Cell(run), Cell(str(place), place), Cell(site.name), _number(100 * share)]
            for place, (site, share) in enumerate(zip(patterns.sites, shares, strict=True), 1)
        ]
    axes.set(xlabel=_ACROSS, ylabel="open gates (%)", ylim=(0, 102))
    add_legend(figure)
    return Drawing(
        "open_gates_of_runs",
        figure,
        shows="Share of the gates of each gated layer that an image opens, averaged over images; the layers of each "
        "run are evenly spaced from first to last.",
        look_for="Layers where a run with less computation saves it: all layers alike, or a few.",
        table=Table(["run", "number", "layer", "open %"], rows),
        tips=tips,
    )


def _depth(count: int) -> list[float]:
    """Return `count` evenly spaced depths between input (0) and output (100)."""
    return [100 * (number + 0.5) / count for number in range(count)]


def _number(value: float) -> Cell:
    return Cell(f"{value:.4g}", value)
