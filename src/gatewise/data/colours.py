"""Colours of classes, for drawing masks."""

import colorsys

import torch
from torch import Tensor

_FIRST = (  # matplotlib's tab20: ten colours, then their lighter versions
    "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf "
    "aec7e8 ffbb78 98df8a ff9896 c5b0d5 c49c94 f7b6d2 c7c7c7 dbdb8d 9edae5"
)
_GOLDEN_RATIO = 0.61803398875  # its fractional part: golden-ratio sampling gives well separated hues


def class_colours(count: int) -> Tensor:
    """Return RGB colours of `count` classes, (count, 3), uint8; with two classes, class 0 (background) is black.

    >>> class_colours(2).tolist()
    [[0, 0, 0], [255, 127, 14]]
    """
    colours = [[int(text[at : at + 2], 16) for at in (0, 2, 4)] for text in _FIRST.split()][:count]
    for number in range(len(colours), count):
        shade = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.5 + 0.5 * (number % 2), 0.55 + 0.15 * (number % 4))
        colours.append([round(255 * part) for part in shade])
    if count == 2:
        colours[0] = [0, 0, 0]
    return torch.tensor(colours, dtype=torch.uint8)


def coloured(classes: Tensor, colours: Tensor) -> Tensor:
    """Return the colour of each pixel's class, white for ignored pixels: (..., H, W) -> (..., H, W, 3), uint8."""
    white = torch.full((1, 3), 255, dtype=torch.uint8)
    return torch.cat([colours, white])[classes.long().clamp(max=len(colours))]


def in_colour(pictures: Tensor) -> Tensor:
    """Return images of any number of channels as RGB: the first three, or the first: (N, C, H, W) -> (N, 3, H, W)."""
    return pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
