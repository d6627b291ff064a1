"""Figures of gate statistics and gct parameters, layer by layer from input to output."""

# pyright: basic

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.analysis.axes import name_gates_along, write_names
from gatewise.analysis.drawing import (
    INK,
    Drawing,
    add_colour_bar,
    add_legend,
    escape_mathtext,
    new_figure,
    series_style,
)
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.table import Cell, Table
from gatewise.gates.gated_channel_transform import GatedChannelTransform
from gatewise.insertion.insert import gates_in

_GCT = "Yang et al., CVPR 2020"
_SE = "Hu et al., CVPR 2018"
_LOOK_FOR = {
    "alpha": "Layers with a wide spread of alpha: the norms of some channels count more than those of others. A change "
    "that all channels of a gate share, such as that of weight decay, cancels in the normalisation.",
    "beta": "Layers whose beta moved away from 0: their channels are scaled regardless of their norm.",
    "gamma": "Layers whose gamma moved away from 0. The paper reads a negative gamma as cooperation of channels, found "
    f"early, and a positive one as competition, found late ({_GCT}). The sign alone misleads, because beta and the "
    "norms of the channels matter too: the figure of the change of the spread measures both on images.",
}
_DEPTH = "gate, from input to output"
_BLUE, _ORANGE = "#0072B2", "#E69F00"


@dataclass(frozen=True)
class Depth:
    """Distribution of the values of one gate.

    Attributes:
        path: path of the gate.
        counts: number of values in each bin, (bins,).
        mean: mean of the values.
        deviation: standard deviation of the values.
    """

    path: str
    counts: Tensor
    mean: float
    deviation: float


def draw_density(layers: Sequence[Depth], edges: Tensor, line: float, axes: Any) -> None:
    """Draw log(1 + count) of values by layer as colour, mean and standard deviation as points with bars, and a line.

    The axis is as long as its content.
    """
    counts = torch.stack([layer.counts for layer in layers], 1).double()
    sides = torch.arange(len(layers) + 1) + 0.5
    axes.pcolormesh(sides.tolist(), edges.tolist(), counts.log1p().tolist(), cmap="Blues", rasterized=True)
    bar = {"color": "#000000", "marker": "o", "markersize": 3, "lw": 0.8}  # black also on a dark page: the map is pale
    for number, layer in enumerate(layers):
        drawn = axes.errorbar([number + 1], [layer.mean], yerr=[layer.deviation], **bar)
        drawn.lines[0].set_gid(f"layer-{number}")
    axes.axhline(line, color="#D55E00", lw=0.8, ls="--")
    axes.set(xlim=(0.5, len(layers) + 0.5), ylim=_occupied(layers, counts, edges, line))
    name_gates_along(axes, [layer.path for layer in layers])
    axes.grid(visible=False)


def _occupied(layers: Sequence[Depth], counts: Tensor, edges: Tensor, line: float) -> tuple[float, float]:
    """Return the range of bins with values, of the means, of the bars as far as there are bins, and of `line`."""
    filled = counts.sum(1).nonzero().flatten()
    bars = torch.tensor([layer.mean + sign * layer.deviation for layer in layers for sign in (-1, 1)])
    means = torch.tensor([*(layer.mean for layer in layers), line])
    seen = torch.cat([edges[filled], edges[filled + 1], bars.clamp(edges[0], edges[-1]), means])
    low, high = (float(end) for end in seen[seen.isfinite()].aminmax())
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def draw_values_by_depth(summaries: Sequence[GateSummary], axes: Any = None) -> tuple[Any, Any]:
    """Draw the distribution of gate values over depth on `axes`, or on new axes; return figure and axes.

    If some gates multiply and some add, the neutral value (1 or 0) is subtracted from the values.
    """
    if axes is None:
        _, axes = new_figure(3.0)
    mixed = len({s.is_additive for s in summaries}) > 1
    shift = summaries[0].neutral if mixed else 0.0  # bins of factors and of added values have the same width
    layers = [Depth(s.path, s.histogram, s.average - s.neutral * mixed, s.overall_deviation) for s in summaries]
    draw_density(layers, summaries[0].edges - shift, summaries[0].neutral - shift, axes)
    label = "added / rms of the map" if summaries[0].is_additive else "factor"
    axes.set(xlabel=_DEPTH, ylabel="factor - 1, or added / rms of the map" if mixed else label)
    return axes.figure, axes


def values_by_depth(summaries: Sequence[GateSummary]) -> Drawing:
    """Draw the distribution of gate values over depth; all gates must multiply, or all add."""
    figure, _ = draw_values_by_depth(summaries)
    edges = summaries[0].edges
    rows = [[Cell(s.path), *_numbers(s.average, s.overall_deviation, s.near_identity)] for s in summaries]
    what = (
        "the values that gates add to each channel"
        if summaries[0].is_additive
        else "the factors by which gates multiply channels"
    )
    return Drawing(
        "values",
        figure,
        shows=f"Distribution of {what}, layer by layer: colour is log(1 + count) over images and channels, points are "
        f"means, bars one standard deviation, the dashed line is the identity; values below {edges[0]:g} and above "
        f"{edges[-1]:g} are counted in the outermost bins.",
        look_for="Layers whose values stay at the dashed line (these gates could be removed), and layers with widely "
        f"spread values (for SE, late layers hardly spread: {_SE}).",
        table=Table(["gate", "mean", "standard deviation", "share near the identity"], rows),
        tips={f"layer-{n}": _tip(s) for n, s in enumerate(summaries)},
    )


def _tip(s: GateSummary) -> str:
    return (
        f"{s.path}: mean {s.average:.4g}, standard deviation {s.overall_deviation:.2g}, "
        f"{100 * s.near_identity:.0f} % near the identity"
    )


def _numbers(*values: float) -> list[Cell]:
    return [Cell(f"{value:.4g}", value) for value in values]


def gct_parameters(model: nn.Module, parameter: str) -> list[tuple[str, Tensor]]:
    """Return "alpha", "gamma" or "beta" of every gct of the network, as pairs (gate path, values (C,)).

    >>> from gatewise.insertion.insert import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1))
    >>> _ = insert_gates(net, "gct")
    >>> gct_parameters(net, "gamma")
    [('0.gct', tensor([0., 0., 0.]))]
    """
    gates = [(path, gate) for path, gate in gates_in(model).items() if isinstance(gate, GatedChannelTransform)]
    return [(path, getattr(gate, parameter).detach().flatten().cpu()) for path, gate in gates]


def parameter_by_depth(rows: Sequence[tuple[str, Tensor]], parameter: str) -> Drawing:
    """Draw the distribution of one gct parameter over depth, as in the paper (Yang et al., CVPR 2020)."""
    values = torch.cat([value for _, value in rows])
    start = 1.0 if parameter == "alpha" else 0.0
    low, high = (float(end) for end in values.aminmax())
    margin = 0.05 * (high - low) or 0.5
    edges = torch.linspace(low - margin, high + margin, 61)
    layers = [
        Depth(path, torch.histc(v, 60, float(edges[0]), float(edges[-1])), float(v.mean()), float(v.std(correction=0)))
        for path, v in rows
    ]
    figure, axes = new_figure(3.0)
    draw_density(layers, edges, start, axes)
    axes.set(xlabel="gct, from input to output", ylabel=parameter)
    return Drawing(
        parameter,
        figure,
        shows=f"Distribution of {parameter} over channels, layer by layer: colour is log(1 + count), points are means, "
        f"bars one standard deviation, the dashed line is the value at the start of training.",
        look_for=_LOOK_FOR[parameter],
        table=Table(
            ["gate", "mean", "standard deviation"], [[Cell(d.path), *_numbers(d.mean, d.deviation)] for d in layers]
        ),
        tips={f"layer-{n}": f"{d.path}: {parameter} {d.mean:.4g} ± {d.deviation:.2g}" for n, d in enumerate(layers)},
    )


def competition_by_depth(summaries: Sequence[GateSummary]) -> Drawing:
    """Draw the change of the spread between channels from input to output of each gate."""
    figure, axes = new_figure(2.8)
    changes = [100 * (s.competition - 1) for s in summaries]
    for number, change in enumerate(changes):
        colour = _BLUE if change < 0 else _ORANGE
        hatch = "//" if change < 0 else ""
        (bar,) = axes.bar([number + 1], [change], color=colour, width=0.8, hatch=hatch, edgecolor="white", lw=0)
        bar.set_gid(f"layer-{number}")
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(xlabel=_DEPTH, ylabel="change of the spread (%)")
    name_gates_along(axes, [summary.path for summary in summaries])
    rows = [[Cell(s.path), *_numbers(s.spread_before, s.spread_after, s.competition)] for s in summaries]
    return Drawing(
        "competition",
        figure,
        shows="Change of the spread between channels from input to output of each gate. The spread is the standard "
        "deviation over the mean of the channels' root mean squares, averaged over images.",
        look_for="Bars above zero: competition. Bars below zero (hatched): cooperation. Both are measured on "
        f"images, not read from the sign of gamma as in {_GCT}.",
        table=Table(["gate", "spread before", "spread after", "ratio"], rows),
        tips={f"layer-{n}": f"{s.path}: {c:+.1f} %" for n, (s, c) in enumerate(zip(summaries, changes, strict=True))},
    )


def dependence_by_depth(summaries: Sequence[GateSummary], *, by_class: bool = True) -> Drawing:
    """Draw the share of each gate's variance between images and, with `by_class`, the share of that between classes."""
    figure, axes = new_figure(2.8)
    depth = range(1, len(summaries) + 1)
    lines = (
        ("between_images", "between images (of the total)", _BLUE, "o"),
        ("between_classes", "between classes (of that between images)", _ORANGE, "s"),
    )[: 1 + by_class]
    highest = 0.0
    for number, (field, label, colour, marker) in enumerate(lines):
        shares = [100 * getattr(s, field) for s in summaries]
        highest = max(highest, *shares)
        style = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2}
        axes.plot(depth, shares, label=label, gid=f"series-{number}", **style)
    axes.set(xlabel=_DEPTH, ylabel="share of variance (%)", ylim=(0, min(102.0, max(10.0, 1.1 * highest))))
    name_gates_along(axes, [summary.path for summary in summaries])
    add_legend(figure)
    rows = [[Cell(s.path), *_numbers(*(getattr(s, line[0]) for line in lines))] for s in summaries]
    return Drawing(
        "dependence",
        figure,
        shows="Share of the variance of each gate's values that is between images (the rest is between channels)"
        + (", and share of this part that is between classes (corrected for chance)." if by_class else "."),
        look_for="Gates near zero treat every image the same, so a constant per channel would be enough. The last "
        f"gates of SE tend to this, the gates before them depend on the class ({_SE}).",
        table=Table(["gate", *(line[0].replace("_", " ") for line in lines)], rows),
    )


def classes_by_depth(
    summaries: Sequence[GateSummary],
    classes: Sequence[str],
    most: int = 16,
    kinds: tuple[str, str] = ("class", "classes"),
) -> Drawing:
    """Draw the distance between the mean gate values of each class and the overall mean, gate by gate.

    Args:
        summaries: summaries of gates from input to output.
        classes: names of the classes; classes without images are omitted.
        most: maximum number of classes; those with the largest distances are drawn.
        kinds: what the classes are called, as (singular, plural).
    """
    one, several = kinds
    away = torch.stack([(s.by_class - s.mean).square().nanmean(1).sqrt() for s in summaries], 1)
    order = _farthest(away, most)
    figure, axes = new_figure(3.2)
    depth = range(1, len(summaries) + 1)
    tips = {}
    for index, number in enumerate(order):
        colour, marker = series_style(index)
        style = {"color": colour, "marker": marker, "markersize": 4, "lw": 1, "label": escape_mathtext(classes[number])}
        axes.plot(depth, away[number].tolist(), gid=f"series-{index}", **style)
        farthest = summaries[int(away[number].nan_to_num().argmax())]
        tips[f"series-{index}"] = f"{classes[number]}: largest distance at {farthest.path}"
    axes.set(xlabel=_DEPTH, ylabel=f"distance of the {one} mean", ylim=(0, None))
    name_gates_along(axes, [summary.path for summary in summaries])
    add_legend(figure)
    return Drawing(
        "classes_by_depth",
        figure,
        shows=f"Distance of the mean gate values of each {one} from those of all images (root mean square over "
        f"channels), layer by layer{_of_all(order, classes, several)}.",
        look_for=f"Lines that leave zero late: early gates treat all {several} alike, late gates are specific to "
        f"{several} ({_SE}).",
        table=Table(
            [one, *(s.path for s in summaries)],
            [[Cell(classes[number]), *_numbers(*away[number].tolist())] for number in order],
        ),
        tips=tips,
    )


def classes_by_channel(
    summary: GateSummary,
    classes: Sequence[str],
    most_channels: int = 64,
    most_classes: int = 32,
    kinds: tuple[str, str] = ("class", "classes"),
) -> Drawing:
    """Draw, for one gate, the difference between the mean of each class and the overall mean, channel by channel.

    Args:
        summary: summary of the gate.
        classes: names of the classes; classes without images are omitted.
        most_channels: maximum number of channels; those that differ most between classes are drawn.
        most_classes: maximum number of classes; those farthest from the overall mean are drawn.
        kinds: what the classes are called, as (singular, plural).
    """
    one, several = kinds
    differences = summary.by_class - summary.mean
    chosen = _farthest(differences, most_classes)
    order = differences.square().nansum(0).argsort(descending=True)[:most_channels].sort().values
    shown = differences[chosen][:, order].nan_to_num()
    figure, axes = new_figure(0.6 + 0.22 * max(8, len(chosen)))
    limit = float(shown.abs().max()) or 1.0
    mesh = axes.imshow(shown.tolist(), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    write_names(axes.yaxis, [classes[number] for number in chosen], range(len(chosen)))
    axes.set(xlabel=f"channel ({len(order)} of {len(summary.mean)})")
    axes.set_xticks([])
    add_colour_bar(figure, mesh, f"{one} mean - mean")
    channels: list[int] = order.tolist()
    rows = [
        [Cell(classes[number]), Cell(str(channel), channel), *_numbers(float(shown[row, column]))]
        for row, number in enumerate(chosen)
        for column, channel in enumerate(channels)
    ]
    return Drawing(
        f"classes-{summary.path.replace('.', '-')}",
        figure,
        shows=f"Gate {summary.path}: mean value for the images of each {one} minus the mean over all images, for the "
        f"channels that differ most between {several}{_of_all(chosen, classes, several)}.",
        look_for=f"Rows that look alike: {several} that the gate treats alike. A pale map: a gate that hardly depends "
        f"on the {one} ({_SE}).",
        table=Table([one, "channel", "difference"], rows),
    )


def _farthest(away: Tensor, most: int) -> list[int]:
    """Return the indices of the `most` rows with the largest norm, in increasing order; all-NaN rows are omitted."""
    size = away.square().nansum(1).where(~away.isnan().all(1), -1.0)
    order: list[int] = size.argsort(descending=True)[:most].sort().values.tolist()
    return [row for row in order if size[row] >= 0]


def _of_all(shown: Sequence[int], classes: Sequence[str], several: str) -> str:
    missing = len(shown) < len(classes)
    return (
        f"; {len(shown)} of {len(classes)} {several}, those with images that are farthest from the mean"
        if missing
        else ""
    )
