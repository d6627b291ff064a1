"""Several runs in one figure: what they reach for what cost, and what their gates do layer by layer."""

# pyright: basic

from collections.abc import Mapping, Sequence

from gatewise.analysis.drawing import Drawing, add_legend, escape_mathtext, new_figure, series_style
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.patterns import GatePatterns
from gatewise.analysis.table import Cell, Table


def accuracy_against_macs(points: Mapping[str, tuple[float, float]], score: str = "accuracy") -> Drawing:
    """Draw one point per run: millions of multiply-adds of an image, accuracy (or what `score` says) in [0, 1]."""
    figure, axes = new_figure(7, 3.2 + 0.2 * len(points))
    for index, (name, (macs, accuracy)) in enumerate(points.items()):
        colour, marker = series_style(index)
        axes.plot(
            [macs],
            [100 * accuracy],
            ls="",
            label=escape_mathtext(name),
            color=colour,
            marker=marker,
            gid=f"series-{index}",
        )
    axes.set(xlabel="multiply-adds of an image (M)", ylabel=f"validation {score} (%)")
    axes.margins(0.15)
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "accuracy_macs",
        figure,
        shows=f"The {score} of each run against the multiply-adds of an image, of runs that choose their filters "
        "those that are executed.",
        look_for="Runs above and to the left of others: better with less work.",
        table=Table(
            ["run", "MACs (M)", f"{score} %"],
            [
                [Cell(name), Cell(f"{macs:.4f}", macs), Cell(f"{100 * accuracy:.2f}", 100 * accuracy)]
                for name, (macs, accuracy) in points.items()
            ],
        ),
        tips={f"series-{i}": f"{n}: {100 * a:.2f} %, {m:.2f} M" for i, (n, (m, a)) in enumerate(points.items())},
    )


_ACROSS = "depth (% of the run's gates, from input to output)"

# What of a gate can be compared between gates of any kind: how it is computed, and what it is called.
_COMPARED = (
    ("near the identity (% of values)", lambda summary: 100 * summary.near_identity),
    ("between images (% of variance)", lambda summary: 100 * summary.between_images),
    ("change of the spread (%)", lambda summary: 100 * (summary.competition - 1)),
)


def gates_of_runs(found: Mapping[str, Sequence[GateSummary]], runs: Sequence[str]) -> Drawing:
    """Draw what the gates of several runs do over depth: one panel for each number, one line for each run.

    `runs` are all runs of the page, also those without such gates, so that each keeps its colour.
    """
    figure, panels = new_figure(7, 6.5 + 0.2 * len(found), rows=len(_COMPARED), columns=1)
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
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "gates_of_runs",
        figure,
        shows="The gates of each run, at equal distances from its first to its last: the share of values within 5 % of "
        "doing nothing, the share of variance between images, and by how much the spread between channels changes.",
        look_for="Depths where lines part: there the runs learned different things. Lines that agree: what gates do is "
        "decided by the depth more than by the run.",
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
    """Draw which share of each gated layer's gates an image opens in the mean, one line for each run; see above."""
    figure, axes = new_figure(7, 3.2 + 0.2 * len(found))
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
    add_legend(figure, loc="outside lower left")
    return Drawing(
        "open_gates_of_runs",
        figure,
        shows="Share of each gated layer's gates that an image opens, in the mean over images; the layers of each run "
        "at equal distances from its first to its last.",
        look_for="Where a run with less work saves it: in all layers alike, or in a few.",
        table=Table(["run", "number", "layer", "open %"], rows),
        tips=tips,
    )


def _depth(count: int) -> list[float]:
    """Return where so many gates stand between input (0) and output (100)."""
    return [100 * (number + 0.5) / count for number in range(count)]


def _number(value: float) -> Cell:
    return Cell(f"{value:.4g}", value)
