"""Figures of attention maps over images, and of how much attention depends on the query position."""

# pyright: basic

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.analysis.attention import QueryDistances
from gatewise.analysis.axes import name_gates_along
from gatewise.analysis.drawing import COLOURS, Drawing, add_colour_bar, add_legend, new_figure
from gatewise.analysis.table import Cell, Table
from gatewise.core import _validation
from gatewise.data.colours import in_colour

_GCNET = "Cao et al., GCNet, ICCVW 2019"


def attention_overlays(path: str, pictures: Tensor, maps: Tensor, positions: Tensor) -> Drawing:
    """Draw the attention of one gate over pictures: one row per picture, one column per query position.

    Crosses mark the query positions. Weights are given in multiples of uniform attention, 1 / (h w). All pictures share
    one colour scale. It covers at least 0.95 to 1.05, so that nearly uniform maps look uniform, and follows the square
    root of the weight, so that one peak does not hide the rest. The pictures are drawn in grey under the colours.

    Args:
        path: path of the gate.
        pictures: (N, 3, H, W) or (N, 1, H, W) in [0, 1], not normalised.
        maps: their attention maps, (N, Q, h, w).
        positions: query positions as flat indices into (h, w), (Q,).
    """
    same = bool(torch.equal(maps, maps[:, :1].expand_as(maps)))
    maps = (maps[:, :1] if same else maps).float() * maps[0, 0].numel()
    count, queries, height, width = maps.shape
    shown = in_colour(pictures).permute(0, 2, 3, 1).clamp(0, 1)
    sides = pictures.shape[2:]
    high = 1.6 * sides[0] / sides[1]
    figure, axes = new_figure(high * count + 0.4, width=1.6 * (1 + queries) + 0.9, rows=count, columns=1 + queries)
    smooth = nn.functional.interpolate(maps, sides, mode="bilinear", align_corners=False)
    colours = _scale(smooth)
    rows = []
    for row in range(count):
        for column, panel in enumerate(axes[row]):
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
            if column == 0:
                panel.imshow(shown[row].numpy())
                continue
            panel.imshow(shown[row].mean(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            drawn = panel.imshow(smooth[row, column - 1].numpy(), cmap="cividis", alpha=0.7, norm=colours)
            y, x = divmod(int(positions[column - 1]), width)
            weights = maps[row, column - 1]
            rows.append([Cell(f"{v:.4g}", v) for v in (row + 1, y, x, float(weights.min()), float(weights.max()))])
            if not same:
                at = (x + 0.5) * sides[1] / width - 0.5, (y + 0.5) * sides[0] / height - 0.5
                panel.plot(*at, marker="+", color="#D55E00", markersize=9, markeredgewidth=2)
    for query in range(queries):
        axes[0][1 + query].set_title("all positions" if same else f"query {query + 1}", fontsize=9)
    add_colour_bar(figure, drawn, "weight (multiples of uniform attention)", axes)
    uniform = float(maps.min()) > 0.95 and float(maps.max()) < 1.05
    look_for = (
        "Yellow areas: the gate takes its context from there, for every query position."
        if same
        else f"Columns that look alike: the attention hardly depends on the query position ({_GCNET})."
    )
    return Drawing(
        f"attention-{path.replace('.', '-')}",
        figure,
        shows=f"Attention of {path} over {count} images of the data set"
        + ("" if same else f", for {queries} query positions (crosses)")
        + f"; weights range from {float(maps.min()):.3g} to {float(maps.max()):.3g} times uniform attention"
        + (", so it is practically uniform." if uniform else "."),
        look_for=look_for,
        table=Table(["image", "query y", "query x", "smallest weight (x uniform)", "largest weight (x uniform)"], rows),
    )


def _scale(weights: Tensor) -> Any:
    """Return the colour normalisation: linear if weights can be negative, square root otherwise."""
    colours = _validation.import_optional("matplotlib.colors", "drawing figures")
    low, high = min(0.95, float(weights.min())), max(1.05, float(weights.max()))
    return colours.Normalize(low, high) if low < 0 else colours.PowerNorm(0.5, low, high)


def distances_by_gate(distances: Sequence[QueryDistances]) -> Drawing:
    """Draw the mean distances between query positions of inputs, attention maps and outputs, gate by gate."""
    figure, axes = new_figure(2.8)
    parts = ("inputs", "attention", "outputs")
    for number, (part, colour, hatch) in enumerate(zip(parts, COLOURS[1:], ("", "//", ".."), strict=False)):
        at = [gate + 0.27 * (number - 1) for gate in range(1, len(distances) + 1)]
        heights = [getattr(distance, part) for distance in distances]
        bars = axes.bar(at, heights, width=0.25, color=colour, hatch=hatch, edgecolor="white", lw=0, label=part)
        for gate, bar in enumerate(bars):
            bar.set_gid(f"series-{number}-{gate}")
    axes.set(xlabel="gate, from input to output", ylabel="mean distance")
    name_gates_along(axes, [distance.path for distance in distances])
    add_legend(figure)
    return Drawing(
        "distances",
        figure,
        shows="Mean distance, (1 - cosine) / 2, between different positions of an image: of the gate's inputs, of its "
        "attention maps, and of the vectors that it adds.",
        look_for=f"Attention near zero although inputs differ: one map for all positions would be enough ({_GCNET}).",
        table=Table(
            ["gate", *parts],
            [[Cell(d.path), *(Cell(f"{getattr(d, p):.4f}", getattr(d, p)) for p in parts)] for d in distances],
        ),
        tips={
            f"series-{number}-{gate}": f"{d.path}: {part} {getattr(d, part):.3f}"
            for number, part in enumerate(parts)
            for gate, d in enumerate(distances)
        },
    )
