"""From the bytes of an image file to its pixels as a viewer shows them, or one line that names the file."""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor

from gatewise import _checks

_TIFF_BITS = 258  # the tag that tells bits per sample


def decode(where: str, content: bytes | None) -> Any:
    """Return an encoded image as a PIL image in RGB, turned as its EXIF orientation says.

    Of an animation the first frame is taken; 16-bit grey values are scaled to 8 bits (Pillow alone would clip them to
    white); CMYK is converted; transparency is dropped, as most loaders do, so a transparent pixel shows its colour.
    What is empty, truncated, of floating-point or 32-bit pixels or no image at all is refused with `DataError`, which
    begins with `where`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not content:
        raise _checks.DataError(f"{where}: no image bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: neither keeps us from the pixels
            image = Image.open(io.BytesIO(content))
            image.load()
            bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 0)
            with contextlib.suppress(Exception):  # a broken EXIF block raises whatever its bytes lead to
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") and bits not in (32, (32,)):
                image = _from_16_bits(image)
            if image.mode not in {"F", "I"}:
                return image.convert("RGB")
    except Exception as error:  # decoders of foreign bytes raise whatever those lead to
        reason = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise _checks.DataError(f"{where}: truncated or unreadable image ({reason}).") from None
    kind = "floating-point" if image.mode == "F" else "32-bit"
    raise _checks.DataError(f"{where}: {kind} pixels, whose range is not known; save it with 8 or 16 bits.")


def _from_16_bits(image: Any) -> Any:
    """Return a 16-bit grey image with its values 0 to 65535 scaled to 0 to 255."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def pixels_of(image: Any) -> Tensor:
    """Return a PIL image in RGB as (3, H, W), uint8."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def picture_of(pixels: Tensor) -> Any:
    """Return (1 or 3, H, W) uint8 as a PIL image in RGB."""
    from PIL import Image

    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def fit(image: Any, side: int) -> Any:
    """Scale the shorter side of a PIL image to `side` and crop the centre."""
    from PIL import ImageOps

    return ImageOps.fit(image, (side, side))
