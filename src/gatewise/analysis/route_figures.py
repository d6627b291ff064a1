"""Figures of the routes of a GaterNet: their classes, and pictures of their images."""

# pyright: basic

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gatewise.analysis.drawing import Drawing, new_figure
from gatewise.analysis.route_use import RouteUse
from gatewise.analysis.share_matrix import draw_shares
from gatewise.analysis.table import Cell, Table
from gatewise.data.decode import fit

_SIDE, _GAP = 48, 2  # pixels of a picture, and of the white margin to its right and below it


def classes_by_route(use: RouteUse, classes: Sequence[str]) -> Drawing:
    """Draw the share of the images of each class that take each route."""
    shares = 100 * use.images.double() / use.images.sum(0, keepdim=True).clamp(min=1)
    routes = [str(number) for number in range(len(shares))]
    figure, axes = draw_shares(shares, routes, classes, "images of the class (%)")
    axes.set(xlabel="images of", ylabel="route")
    rows = [
        [Cell(str(number), number), *(Cell(str(count), count) for count in counts)]
        for number, counts in enumerate(use.images.tolist())
    ]
    return Drawing(
        "classes_by_route",
        figure,
        shows="Share of the images of each class that take each route; the table has their numbers. Route and class "
        f"share {use.shared_information:.2f} bits.",
        look_for="Columns with one dark field: the class has its own route. Rows that are pale everywhere: "
        "a route that is hardly used.",
        table=Table(["route", *classes], rows),
    )


def pictures_by_route(use: RouteUse, picture: Callable[[int], Any]) -> Drawing:
    """Draw a few images of each route, a row for each route.

    Args:
        use: the routes.
        picture: index of an image -> PIL image in RGB.
    """
    count, most = len(use.examples), max(1, *(len(own) for own in use.examples))
    sheet = np.full((count * _SIDE, most * _SIDE, 3), 255, dtype=np.uint8)
    for row, own in enumerate(use.examples):
        for column, index in enumerate(own):
            at = slice(row * _SIDE, (row + 1) * _SIDE), slice(column * _SIDE, (column + 1) * _SIDE)
            sheet[at][:-_GAP, :-_GAP] = np.asarray(fit(picture(index), _SIDE - _GAP))
    figure, axes = new_figure(0.6 + 0.55 * count)
    axes.imshow(sheet, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_yticks([(row + 0.5) * _SIDE - 0.5 for row in range(count)], [str(row) for row in range(count)])
    axes.set(xticks=[], ylabel="route")
    rows = [
        [Cell(str(row), row), Cell(f"{100 * share:.1f}", share), Cell(", ".join(map(str, own)))]
        for row, (share, own) in enumerate(zip(use.shares, use.examples, strict=True))
    ]
    return Drawing(
        "pictures_by_route",
        figure,
        shows="Images that take each route, spread over all images of the route.",
        look_for="What the images of a row have in common: a class, a colour, a background.",
        table=Table(["route", "share of the images", "indices of the images"], rows),
    )
