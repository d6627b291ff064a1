"""The figures of the GaterNet paper (Chen et al., CVPR 2019), drawn from `GatePatterns`."""

# pyright: basic

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gatewise.analysis.axes import name_gates_along
from gatewise.analysis.drawing import Drawing, add_legend, escape_mathtext, new_figure, series_style
from gatewise.analysis.interventions import Exchange
from gatewise.analysis.patterns import GatePatterns
from gatewise.analysis.share_matrix import draw_shares
from gatewise.analysis.table import Cell, Table, matrix_table
from gatewise.analysis.thumbnails import Thumbnails

_PAPER = "Chen et al., CVPR 2019"
_KINDS = (
    ("always_open", "always open", "#0072B2"),
    ("dependent", "depends on the image", "#E69F00"),
    ("always_closed", "always closed", "#999999"),
)


def kinds_by_unit(patterns: GatePatterns) -> Drawing:
    """Draw the shares of gates that are always open, depend on the image, or are always closed, layer by layer."""
    rows = patterns.kinds()
    figure, axes = new_figure(3.0)
    bottom = torch.zeros(len(rows))
    sizes = [site.gates for site in patterns.sites]
    for index, (field, label, colour) in enumerate(_KINDS):
        share = torch.tensor([100 * getattr(row, field) / size for row, size in zip(rows, sizes, strict=True)])
        bars = axes.bar(range(1, len(rows) + 1), share.tolist(), bottom=bottom.tolist(), color=colour, label=label)
        for unit, bar in enumerate(bars):
            bar.set_gid(f"unit-{unit}-{index}")
        bottom += share
    axes.set(xlabel="gated layer, from input to output", ylabel="gates (%)", ylim=(0, 100))
    name_gates_along(axes, [row.name for row in rows])
    add_legend(figure)
    numbers = [[getattr(row, field) for field, _, _ in _KINDS] for row in rows]
    return Drawing(
        "kinds",
        figure,
        shows=f"Share of the gates of each gated layer that are open for at least 99.5 % of the {patterns.images:,} "
        f"images, for at most 0.5 %, and in between: these depend on the image.",
        look_for=f"Layers where most gates depend on the image; the paper finds them near the output, and gates that "
        f"are always closed near the input ({_PAPER}).",
        table=Table(
            ["layer", *(label for _, label, _ in _KINDS)],
            [
                [Cell(row.name), *(Cell(str(number), number) for number in counts)]
                for row, counts in zip(rows, numbers, strict=True)
            ],
        ),
        tips={
            f"unit-{unit}-{index}": f"{row.name}: {numbers[unit][index]} of {sizes[unit]} gates {label}"
            for unit, row in enumerate(rows)
            for index, (_, label, _) in enumerate(_KINDS)
        },
    )


def images_by_gate(patterns: GatePatterns) -> Drawing:
    """Draw a histogram of the gates that depend on the image, by the number of images that open them."""
    counts = patterns.images_by_gate
    dependent = counts[patterns.dependent]
    figure, axes = new_figure(3.0)
    edges = _whole_bins(0, patterns.images, 50)
    heights, *_ = axes.hist(dependent.tolist(), bins=edges, color="#0072B2")
    axes.set(xlabel=f"images, of {patterns.images:,}, that open a gate", ylabel="gates that depend on the image")
    return Drawing(
        "images_by_gate",
        figure,
        shows=f"Histogram of the {len(dependent):,} gates that depend on the image (open for more than 0.5 % and fewer "
        f"than 99.5 % of the images), by the number of images that open them.",
        look_for=f"Gates away from both ends: gates at the ends hardly depend on the image ({_PAPER}).",
        table=_histogram("images", "gates", heights, edges),
    )


def open_gates_by_image(patterns: GatePatterns) -> Drawing:
    """Draw a histogram of the images, by the number of gates that they open."""
    numbers = patterns.images_by_open_gates
    lowest, mean, highest = patterns.open_gates()
    figure, axes = new_figure(3.0)
    weights = numbers[lowest : highest + 1].tolist()
    edges = _whole_bins(lowest, highest, 60)
    heights, *_ = axes.hist(range(lowest, highest + 1), bins=edges, weights=weights, color="#0072B2")
    gates = len(numbers) - 1
    axes.set(xlabel=f"open gates, of {gates:,}", ylabel="images")
    return Drawing(
        "open_gates_by_image",
        figure,
        shows=f"Histogram of the images, by the number of gates that they open, of {gates:,}; the mean is {mean:,.0f}.",
        look_for=f"A wide range: some images get more computation than others ({_PAPER}).",
        table=_histogram("open gates", "images", heights, edges),
    )


def _whole_bins(lowest: int, highest: int, most: int) -> list[float]:
    """Return the edges of at most `most` bins that each contain the same number of integers.

    >>> _whole_bins(3, 7, 3)
    [2.5, 4.5, 6.5, 8.5]
    """
    width = -(-(highest - lowest + 1) // most)
    return [lowest - 0.5 + width * number for number in range(-(-(highest - lowest + 1) // width) + 1)]


def _histogram(what: str, counted: str, heights: Sequence[float], edges: Sequence[float]) -> Table:
    rows = [
        [Cell(f"{value:.6g}", float(value)) for value in row]
        for row in zip(edges[:-1], edges[1:], heights, strict=True)
    ]
    return Table([f"{what} from", f"{what} to", counted], rows)


def patterns_in_the_plane(
    patterns: GatePatterns, classes: Sequence[str], pictures: Iterable[Any] | None = None, most: int = 16
) -> Drawing:
    """Draw the gate vector of each kept image as a point in 2D (PCA, then t-SNE), with the class as colour and marker.

    Args:
        patterns: counts and gate vectors.
        classes: names of the classes.
        pictures: the kept images as PIL images, in the order of `GatePatterns.kept`; None draws no thumbnails.
        most: maximum number of classes with their own colour; those with the most images are chosen.
    """
    points, labels = patterns.embedding()
    figure, axes = new_figure(4.2)
    coloured: list[int] = sorted(
        labels.bincount(minlength=len(classes)).argsort(descending=True, stable=True)[:most].tolist()
    )
    series = torch.tensor([coloured.index(label) if label in coloured else len(coloured) for label in labels.tolist()])
    shown: list[int] = series.unique().tolist()
    for index in shown:
        colour, marker = series_style(index) if index < len(coloured) else ("#CCCCCC", ".")
        x, y = points[series == index].T.tolist()
        style = {"s": 8, "lw": 0, "alpha": 0.8, "color": colour, "marker": marker}
        label = escape_mathtext(classes[coloured[index]]) if index < len(coloured) else "other classes"
        axes.scatter(x, y, label=label, gid=f"series-{index}", **style)
    axes.set(xticks=[], yticks=[])
    add_legend(figure, markerscale=2)
    indices: list[int] = labels.tolist()
    names, places = [classes[index] for index in indices], points.tolist()
    rows = [
        [Cell(str(image), image), Cell(name), *(Cell(f"{value:.4f}", value) for value in place)]
        for image, name, place in zip(patterns.kept.tolist(), names, places, strict=True)
    ]
    return Drawing(
        "patterns",
        figure,
        shows=f"The gate vectors of {len(points):,} images in 2D (PCA, then t-SNE); close points have similar gates.",
        look_for=f"Classes in separate clusters: the gater distinguishes them ({_PAPER}).",
        table=Table(["image", "class", "x", "y"], rows),
        thumbnails=None if pictures is None else Thumbnails.of(pictures, places, series.tolist(), names),
    )


def accuracy_by_gates(exchange: Exchange, classes: Sequence[str]) -> Drawing:
    """Draw the accuracy on each class's images with the typical gates of each class."""
    columns = [classes[number] for number in exchange.classes]
    shown = 100 * exchange.accuracy
    figure, axes = draw_shares(shown, columns, columns, "classified correctly (%)")
    axes.set(xlabel="with the typical gates of", ylabel="images of")
    return Drawing(
        "accuracy_by_gates",
        figure,
        shows=f"Share of the images of each class (row) that are classified correctly when the image's own gates are "
        f"replaced by those that open for more than half of the images of a class (column)"
        f"{_of_all(len(columns), len(classes))}.",
        look_for="A dark diagonal on a pale background: gates that only fit their own class. Columns that look alike: "
        "the choice of filters hardly matters.",
        table=matrix_table("images of", columns, shown.tolist(), ".2f"),
    )


def _of_all(shown: int, classes: int) -> str:
    return f"; {shown} of {classes} classes, the first ones with images" if shown < classes else ""
