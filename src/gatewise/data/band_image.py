"""An image of any number of bands, which is scaled, cropped and varied as PIL images are."""

# pyright: basic

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise.data.decode import fit, picture_of, pixels_of


@dataclass(frozen=True)
class BandImage:
    """An image of C bands.

    Attributes:
        parts: one PIL image in RGB or grey for 3 bands or 1, otherwise one in grey per band, all of one size.
    """

    parts: tuple[Any, ...]

    @classmethod
    def of(cls, pixels: Tensor) -> "BandImage":
        """Return pixels (C, H, W), uint8, as an image."""
        from PIL import Image

        if len(pixels) == 3:
            return cls((picture_of(pixels),))
        return cls(tuple(Image.fromarray(band.numpy()) for band in pixels))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.parts[0].size

    def pixels(self) -> Tensor:
        """Return the pixels, (C, H, W), uint8."""
        return torch.cat([pixels_of(part) for part in self.parts])

    def fitted(self, height: int, width: int) -> "BandImage":
        """Return the image scaled so that it covers `height` x `width`, with the centre cropped."""
        return BandImage(tuple(fit(part, height, width) for part in self.parts))

    def varied(self, function: Callable[[Any], Any]) -> Tensor:
        """Return the pixels after a random function of PIL images, (C, H, W); it does the same to every band.

        A function may need colours, so one band is shown to it in RGB.
        """
        if len(self.parts) == 1:
            return pixels_of(function(self.shown()))[: len(self.parts[0].getbands())]
        state, varied = random.getstate(), []
        for part in self.parts:
            random.setstate(state)
            varied.append(pixels_of(function(part)))
        return torch.cat(varied)

    def shown(self) -> Any:
        """Return a PIL image in RGB: the colours, or the first three bands, or the first if there are two."""
        first, *others = self.parts
        if len(others) < 2:
            return first.convert("RGB")
        return picture_of(torch.cat([pixels_of(part) for part in (first, *others[:2])]))
