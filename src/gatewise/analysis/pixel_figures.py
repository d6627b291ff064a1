"""Figures of segmentation: predicted masks, and the IoU of each class."""

# pyright: basic

from collections.abc import Mapping, Sequence

from torch import Tensor

from gatewise.analysis.axes import LINE, name_along
from gatewise.analysis.drawing import WIDTH, Drawing, add_legend, escape_mathtext, new_figure, series_style
from gatewise.analysis.table import Cell, Table
from gatewise.data.colours import class_colours, coloured, in_colour
from gatewise.data.masks import IGNORED, with_background

_COLUMNS = ("image", "mask", "prediction")


def labelled_pictures(pictures: Tensor, masks: Tensor, predicted: Tensor, classes: Sequence[str]) -> Drawing:
    """Draw images, their masks and the predicted masks side by side, with one colour per class.

    Args:
        pictures: (N, 3, H, W) or (N, 1, H, W) in [0, 1].
        masks: class of each pixel, (N, H, W), 255 where it is ignored.
        predicted: predicted class of each pixel, (N, H, W).
        classes: names of the classes; "background" is added to a single one.
    """
    names = with_background(classes)
    colours = class_colours(len(names))
    count, height, width = masks.shape
    figure, axes = new_figure(WIDTH / 3 * count * height / width + 0.3, rows=count, columns=3)
    shown = in_colour(pictures).permute(0, 2, 3, 1).clamp(0, 1)
    rows = []
    for row in range(count):
        panels = (shown[row], coloured(masks[row], colours), coloured(predicted[row], colours))
        for ax, title, panel in zip(axes[row], _COLUMNS, panels, strict=True):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.imshow(panel.numpy())
            if row == 0:
                ax.set_title(title, fontsize=9)
        counted = masks[row] != IGNORED
        correct = float(((predicted[row] == masks[row]) & counted).sum() / counted.sum().clamp(min=1))
        rows.append([Cell(str(row + 1), row + 1), Cell(f"{100 * correct:.1f}", 100 * correct)])
    for name, colour in zip(names, colours.tolist(), strict=True):
        axes[0][0].plot([], [], ls="", marker="s", label=escape_mathtext(name), color=[part / 255 for part in colour])
    add_legend(figure)
    return Drawing(
        "pictures",
        figure,
        shows=f"{count} images, their masks, and the masks that the network predicts; white pixels are ignored.",
        look_for="Thin objects and borders: most errors of segmentation networks are there.",
        table=Table(["image", "pixels classified correctly %"], rows),
    )


def iou_by_class(runs: Mapping[str, Mapping[str, float | None]]) -> Drawing:
    """Draw the IoU in [0, 1] of each class for each run; None for a class that is neither present nor predicted."""
    names = list(next(iter(runs.values())))
    figure, axes = new_figure(2.8, width=max(WIDTH, 1 + LINE * len(names)))
    width, tips = 0.8 / len(runs), {}
    for index, (run, ious) in enumerate(runs.items()):
        at = [number + (index - (len(runs) - 1) / 2) * width for number in range(len(names))]
        heights = [100 * (ious[name] or 0.0) for name in names]
        bars = axes.bar(at, heights, width=0.9 * width, color=series_style(index)[0], label=escape_mathtext(run))
        for number, (name, bar) in enumerate(zip(names, bars, strict=True)):
            bar.set_gid(f"series-{index}-{number}")
            tips[f"series-{index}-{number}"] = f"{run}: {name} {heights[number]:.1f} %"
    axes.set(ylabel="IoU (%)")
    name_along(axes, names, first=0)
    add_legend(figure)
    rows = [
        [
            Cell(name),
            *(Cell("-" if (v := ious[name]) is None else f"{100 * v:.2f}", v or 0.0) for ious in runs.values()),
        ]
        for name in names
    ]
    return Drawing(
        "iou",
        figure,
        shows="IoU of each class on the validation images: pixels in both mask and prediction over pixels in either.",
        look_for="Rare and thin classes: the mean over classes depends on them, and few pixels decide their IoU.",
        table=Table(["class", *runs], rows),
        tips=tips,
    )
