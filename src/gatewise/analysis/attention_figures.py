"""Where gates look, laid over images, and how much that depends on the position that asks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gatewise.analysis.attention import QueryDistances
from gatewise.analysis.drawing import COLOURS, Drawing, add_legend, new_figure
from gatewise.analysis.table import Cell, Table

_GCNET = "Cao et al., GCNet, ICCVW 2019"


def attention_overlays(path: str, pictures: Tensor, maps: Tensor, positions: Tensor) -> Drawing:
    """Draw the attention of one gate over pictures: a row a picture, a column a query position, marked by a cross.

    Args:
        path: of the gate.
        pictures: (N, 3, H, W) or (N, 1, H, W) in [0, 1], for the eye.
        maps: their attention, (N, Q, h, w); scaled to the picture, coloured from a row's lowest to its highest value.
        positions: the queries, numbered along the flattened (h, w), (Q,).
    """
    same = bool(torch.equal(maps, maps[:, :1].expand_as(maps)))
    maps = maps[:, :1] if same else maps
    count, queries, height, width = maps.shape
    figure, axes = new_figure(1.6 * (1 + queries), 1.6 * count + 0.3, rows=count, columns=1 + queries)
    shown = pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).clamp(0, 1)
    sides = pictures.shape[2:]
    smooth = nn.functional.interpolate(maps.float(), sides, mode="bilinear", align_corners=False)
    rows = []
    for row in range(count):
        lowest, highest = float(smooth[row].min()), float(smooth[row].max())
        for column, own in enumerate(axes[row]):
            own.set(xticks=[], yticks=[])
            own.grid(visible=False)
            own.imshow(shown[row].numpy())
            if column == 0:
                continue
            own.imshow(smooth[row, column - 1].numpy(), cmap="magma", alpha=0.6, vmin=lowest, vmax=highest)
            y, x = divmod(int(positions[column - 1]), width)
            rows.append([Cell(str(v), v) for v in (row + 1, y, x, float(maps[row, column - 1].max()))])
            if not same:
                at = (x + 0.5) * sides[1] / width - 0.5, (y + 0.5) * sides[0] / height - 0.5
                own.plot(*at, marker="+", color="white", markersize=9, markeredgewidth=2)
    for column in range(1, 1 + queries):
        axes[0][column].set_title("all positions" if same else f"query {column}", fontsize=9)
    look_for = (
        "Bright places are what the gate takes its context from, whatever the position."
        if same
        else f"Columns that look alike: then the position that asks hardly matters ({_GCNET})."
    )
    return Drawing(
        f"attention-{path.replace('.', '-')}",
        figure,
        shows=f"Attention of {path} over {count} images of the data set"
        + ("" if same else f", for {queries} query positions (white crosses)")
        + "; colours go from the lowest to the highest weight of a row.",
        look_for=look_for,
        table=Table(["image", "query y", "query x", "largest weight"], rows),
    )


def distances_by_gate(distances: Sequence[QueryDistances]) -> Drawing:
    """Draw how far inputs, attention and outputs of different positions lie apart, gate by gate."""
    figure, axes = new_figure(7, 3.2)
    parts = ("inputs", "attention", "outputs")
    for number, (part, colour, hatch) in enumerate(zip(parts, COLOURS[1:], ("", "//", ".."), strict=False)):
        at = [gate + 0.27 * (number - 1) for gate in range(1, len(distances) + 1)]
        heights = [getattr(distance, part) for distance in distances]
        bars = axes.bar(at, heights, width=0.25, color=colour, hatch=hatch, edgecolor="white", lw=0, label=part)
        for gate, bar in enumerate(bars):
            bar.set_gid(f"series-{number}-{gate}")
    axes.set(xlabel="gate, from input to output", ylabel="mean distance", xticks=range(1, len(distances) + 1))
    add_legend(figure, loc="outside upper center", ncols=3)
    return Drawing(
        "distances",
        figure,
        shows="Mean distance, (1 - cosine) / 2, between different positions of an image: of their inputs, of their "
        "attention maps, and of what the gate adds to them.",
        look_for=f"Attention near zero although inputs differ: then one map for all positions would do ({_GCNET}).",
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
