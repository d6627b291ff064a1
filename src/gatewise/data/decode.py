"""Open image files with Pillow; PIL images to pixels and back. Errors are one line that names the file."""

import io
import warnings
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import reason_of

_NOT_OPENED = ("EPS", "WMF")


def open_image(where: str, content: bytes | None, kind: str = "image", *, load: bool = True) -> Any:
    """Decode an image to a PIL image, without converting its mode.

    Formats for which Pillow runs an external program are rejected.

    Args:
        where: name of the image, with which an error message begins.
        content: the bytes of the file.
        kind: "image" or "mask", for error messages.
        load: whether to decode the pixels; without, only the header is read.

    Raises:
        DataError: the content is empty, truncated or not an image.
        MissingExtraError: Pillow is not installed.
    """
    pillow = _validation.import_optional("PIL.Image", "reading images")
    if not content:
        raise errors.DataError(f"{where}: no image bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and unusual metadata
            image = pillow.open(io.BytesIO(content))  # reads the header only
            _check_needs_no_program(image)
            if load:
                image.load()
    except Exception as error:  # decoders of untrusted bytes can raise any error
        reason = "unknown format" if isinstance(error, pillow.UnidentifiedImageError) else reason_of(error)
        raise errors.DataError(f"{where}: truncated or unreadable {kind} ({reason}).") from None
    return image


def _check_needs_no_program(image: Any) -> None:
    """Raise if Pillow would run an external program to decode an opened image."""
    from PIL import UnidentifiedImageError

    if image.format in _NOT_OPENED:
        raise UnidentifiedImageError


def pixels_of(image: Any) -> Tensor:
    """Return a PIL image in RGB as (3, H, W), or in grey as (1, H, W), uint8."""
    import numpy as np

    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def picture_of(pixels: Tensor) -> Any:
    """Return (1 or 3, H, W) uint8 as a PIL image in RGB."""
    pillow = _validation.import_optional("PIL.Image", "showing images")
    return pillow.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def fit(image: Any, height: int, width: int | None = None) -> Any:
    """Scale a PIL image so that it covers `height` x `width` (None: a square) and crop the centre."""
    from PIL import ImageOps

    size = (height if width is None else width, height)
    return image if image.size == size else ImageOps.fit(image, size)
