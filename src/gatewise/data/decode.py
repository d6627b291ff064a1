"""From the bytes of an image file to its pixels as a viewer shows them, or one line that names the file."""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor

from gatewise import errors

_NOT_OPENED = ("EPS", "WMF")
_TIFF_BITS = 258  # the tag that tells bits per sample


def decode(where: str, content: bytes | None) -> Any:
    """Return an encoded image as a PIL image in RGB, turned as its EXIF orientation says.

    Of an animation the first frame is taken; 16-bit grey values are scaled to 8 bits (Pillow alone would clip them to
    white); CMYK is converted; transparency is dropped, as most loaders do, so a transparent pixel shows its colour.
    What is empty, truncated, of floating-point or 32-bit pixels or no image at all is refused with `DataError`, which
    begins with `where`.
    """
    from PIL import ImageOps

    image = open_image(where, content)
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 0)
    with contextlib.suppress(Exception), warnings.catch_warnings():  # a broken EXIF block raises whatever it leads to
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") and bits not in (32, (32,)):
        image = _from_16_bits(image)
    if image.mode not in {"F", "I"}:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of transparency in a palette
                return image.convert("RGB")
        except ValueError as error:
            raise errors.DataError(f"{where}: truncated or unreadable image ({error}).") from None
    kind = "floating-point" if image.mode == "F" else "32-bit"
    raise errors.DataError(f"{where}: {kind} pixels, whose range is not known; save it with 8 or 16 bits.")


def open_image(where: str, content: bytes | None, kind: str = "image") -> Any:
    """Return an encoded image as a PIL image of its own mode; one that is none is refused with `DataError`.

    Formats that Pillow hands to another program are not opened.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise errors.DataError(f"{where}: no image bytes.")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: neither keeps us from the pixels
            image = Image.open(io.BytesIO(content), formats=[form for form in Image.OPEN if form not in _NOT_OPENED])
            image.load()
    except Exception as error:  # decoders of foreign bytes raise whatever those lead to
        reason = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise errors.DataError(f"{where}: truncated or unreadable {kind} ({reason}).") from None
    return image


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
