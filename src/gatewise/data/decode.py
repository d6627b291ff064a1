"""Decode image files to RGB pixels; errors are one line that names the file."""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core.reasons import reason_of

_NOT_OPENED = ("EPS", "WMF")
_TIFF_BITS = 258  # the tag for bits per sample


def decode(where: str, content: bytes | None) -> Any:
    """Decode an image to a PIL image in RGB, with its EXIF orientation applied.

    Only the first frame of an animation is used. 16-bit grey values are scaled to 8 bits (Pillow would clip them to
    white). The alpha channel is dropped, as most loaders do, so a transparent pixel shows its colour.

    Args:
        where: name of the image, with which an error message begins.
        content: the bytes of the file.

    Raises:
        DataError: the content is empty, truncated or not an image, or has floating-point or 32-bit pixels.
    """
    from PIL import ImageOps

    image = open_image(where, content)
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 0)
    with contextlib.suppress(Exception), warnings.catch_warnings():  # a corrupt EXIF block can raise any error
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") and bits not in (32, (32,)):
        image = _from_16_bits(image)
    if image.mode not in {"F", "I"}:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about transparency in a palette
                return image.convert("RGB")
        except ValueError as error:
            raise errors.DataError(f"{where}: truncated or unreadable image ({error}).") from None
    kind = "floating-point" if image.mode == "F" else "32-bit"
    raise errors.DataError(f"{where}: expected 8 or 16 bits per channel, got {kind} pixels. Convert the image.")


def open_image(where: str, content: bytes | None, kind: str = "image") -> Any:
    """Decode an image to a PIL image, without converting its mode.

    Formats for which Pillow runs an external program are rejected.

    Args:
        where: name of the image, with which an error message begins.
        content: the bytes of the file.
        kind: "image" or "mask", for error messages.

    Raises:
        DataError: the content is empty, truncated or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise errors.DataError(f"{where}: no image bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and unusual metadata
            image = Image.open(io.BytesIO(content))  # reads the header only
            _check_needs_no_program(image)
            image.load()
    except Exception as error:  # decoders of untrusted bytes can raise any error
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else reason_of(error)
        raise errors.DataError(f"{where}: truncated or unreadable {kind} ({reason}).") from None
    return image


def _check_needs_no_program(image: Any) -> None:
    """Raise if Pillow would run an external program to decode an opened image."""
    from PIL import UnidentifiedImageError

    if image.format in _NOT_OPENED:
        raise UnidentifiedImageError


def _from_16_bits(image: Any) -> Any:
    """Return a 16-bit grey image scaled from 0..65535 to 0..255."""
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
