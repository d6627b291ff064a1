"""Overview of a data set: a few pictures of each class, with the number of images."""

# pyright: basic

from typing import Any

from gatewise.analysis.drawing import Drawing, escape_mathtext, new_figure
from gatewise.analysis.table import Cell, Table
from gatewise.data import Dataset, evenly_spaced
from gatewise.data.decode import fit
from gatewise.data.inventory import Inventory

_CLASSES, _PICTURES, _SIDE = 12, 8, 96  # most rows, pictures in a row, and their side in pixels


def overview(inventory: Inventory) -> Drawing:
    """Draw evenly spaced training images: a row for each of the first 12 classes, or one row without classes."""
    dataset = inventory.dataset
    rows = {"all": list(range(len(dataset.train)))}
    if inventory.counts and isinstance(dataset, Dataset):
        labels = dataset.train.labels
        hot = labels if labels.ndim == 2 else labels.unsqueeze(1) == _numbers(len(dataset.classes))
        rows = {name: hot[:, n].nonzero().flatten().tolist() for n, name in enumerate(dataset.classes[:_CLASSES])}
    figure, axes = new_figure(0.4 + 0.85 * len(rows), width=1 + 0.8 * _PICTURES)
    axes.set_axis_off()
    axes.set_xlim(-2, _PICTURES)
    axes.set_ylim(len(rows), 0)
    axes.set_aspect("equal")
    for row, (name, indices) in enumerate(rows.items()):
        axes.text(-0.1, row + 0.5, f"{escape_mathtext(name)}\n{len(indices):,}", ha="right", va="center", fontsize=8)
        for column, chosen in enumerate(evenly_spaced(len(indices), _PICTURES) if indices else ()):
            picture: Any = fit(dataset.train.picture(indices[chosen]), _SIDE)
            axes.imshow(picture, extent=(column + 0.03, column + 0.97, row + 0.97, row + 0.03))
    more = f", the first {_CLASSES} of {len(dataset.classes)} classes" if len(dataset.classes) > _CLASSES else ""
    table = Table(["class", "training images"], [[Cell(n), Cell(f"{len(i):,}", len(i))] for n, i in rows.items()])
    return Drawing("overview", figure, f"training images by class{more}, with their number", table=table)


def _numbers(count: int) -> Any:
    import torch

    return torch.arange(count)
