"""Figures of one network's answers: how classes are confused, and the pictures with the worst answers."""

# pyright: basic

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gatewise.analysis.axes import shortened
from gatewise.analysis.drawing import (
    Drawing,
    add_legend,
    escape_mathtext,
    new_figure,
    series_style,
)
from gatewise.analysis.share_matrix import draw_shares
from gatewise.analysis.table import Cell, Table, matrix_table
from gatewise.data.decode import fit
from gatewise.training import Mistake

_WRITTEN = 20  # most classes for which numbers are written into the cells
_COUNTED = 10  # least images of a bin whose accuracy is more than chance
_COLUMNS, _SIDE = 4, 96  # pictures in a row, and their side in pixels


def confusion_matrix(counts: Tensor, classes: Sequence[str]) -> Drawing:
    """Draw the share of each class's images by predicted class, with the number of images in the cells.

    Args:
        counts: number of images of each class (row) by predicted class (column), (K, K).
        classes: names of the classes.
    """
    shares = 100 * counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    figure, axes = draw_shares(shares, classes, classes, "images of the class (%)")
    axes.set(xlabel="predicted class", ylabel="class")
    if len(classes) <= _WRITTEN:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7, color=colour)
    found = counts.diagonal() / counts.sum(1).clamp(min=1)
    return Drawing(
        "confusion",
        figure,
        shows="Images of each class (rows) by the class that is predicted (columns): the share of the row as colour"
        + (", the number of images in the cell." if len(classes) <= _WRITTEN else "."),
        look_for="Dark cells off the diagonal: classes that are taken for each other. The class that is found least "
        f"is {classes[int(found.argmin())]}.",
        table=matrix_table("class", classes, counts.tolist(), ","),
    )


def wrong_pictures(pictures: Sequence[Any], mistakes: Sequence[Mistake], names: Sequence[str]) -> Drawing:
    """Draw the pictures with the worst answers, the right answer and the network's below each.

    Args:
        pictures: PIL images of any size.
        mistakes: what is wrong with them, in the same order.
        names: names of the images.
    """
    count = -(-len(pictures) // _COLUMNS)
    figure, panels = new_figure(1.65 * count, rows=count, columns=_COLUMNS)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, picture, mistake in zip(panels.flat, pictures, mistakes, strict=False):
        axes.imshow(fit(picture, _SIDE))
        lines = [f"is {mistake.label}"] if mistake.label else []
        shown = [escape_mathtext(shortened(line, 20)) for line in (*lines, mistake.predicted)]
        axes.text(0.5, -0.06, "\n".join(shown), transform=axes.transAxes, ha="center", va="top", fontsize=8)
    rows = [
        [Cell(name), Cell(mistake.label), Cell(mistake.predicted)]
        for name, mistake in zip(names, mistakes, strict=True)
    ]
    return Drawing(
        "wrong",
        figure,
        shows=f"The {len(pictures)} images with the worst answers, the worst first.",
        look_for="Wrong labels, images that show several things, and what these images have in common.",
        table=Table(["image", "label", "answer"], rows),
    )


def reliability(bins: Mapping[str, Tensor]) -> Drawing:
    """Draw accuracy against confidence, one line per network; the diagonal is perfect calibration.

    Args:
        bins: network -> images, mean confidence and accuracy of each bin of confidences, (bins, 3).
    """
    figure, axes = new_figure(3.6)
    axes.plot([0, 100], [0, 100], color="grey", lw=1, ls=":")
    rows, tips = [], {}
    for index, (name, values) in enumerate(bins.items()):
        filled = values[values[:, 0] > 0]
        colour, marker = series_style(index)
        style = {"color": colour, "marker": marker}
        counted = filled[:, 0] >= _COUNTED
        line, few = ((100 * filled[part, 1:]).T.tolist() for part in (counted, ~counted))
        axes.plot(*line, label=escape_mathtext(name), gid=f"series-{index}", **style)
        axes.plot(*few, ls="", mfc="none", alpha=0.5, gid=f"series-{index}-few", **style)
        apart = (filled[:, 0] * (filled[:, 1] - filled[:, 2]).abs()).sum() / filled[:, 0].sum()
        tips[f"series-{index}"] = f"{name}: expected calibration error {100 * apart:.2f} %"
        rows += [
            [
                Cell(name),
                Cell(f"{images:,.0f}", images),
                *(Cell(f"{100 * value:.2f}", value) for value in (mean, share)),
            ]
            for images, mean, share in filled.tolist()
        ]
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
    add_legend(figure)
    return Drawing(
        "reliability",
        figure,
        shows="Accuracy of the images in each bin of confidence, the probability of the predicted class. Bins of fewer "
        f"than {_COUNTED} images are hollow, and no line goes through them.",
        look_for="Points below the diagonal: networks that are surer than they are right.",
        table=Table(["network", "images", "confidence %", "accuracy %"], rows),
        tips=tips,
    )
