"""Read image files with all their bands and values; errors are one line that names the file."""

# pyright: basic

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.decode import open_image

Kind = Literal["bytes", "integers", "floats"]
VALUES: dict[Kind, str] = {
    "bytes": "8 bits",
    "integers": "integers of more than 8 bits",
    "floats": "floating-point numbers",
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _PNG_ALPHA = b"\x89PNG\r\n\x1a\n", (4, 6)  # colour types with alpha
_NPY = b"\x93NUMPY"
_SIZE, _BITS, _SAMPLES, _EXTRA = (256, 257), 258, 277, 338  # tags of TIFF
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # of EXIF: by 90 degrees, mirrored or not
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "La": "LA", "RGBa": "RGBA"}
_PLAIN = ("1", "L", "P", "RGB", "YCbCr", "CMYK")


@dataclass(frozen=True)
class Raster:
    """An image file as read, before channels and ranges are chosen.

    Attributes:
        picture: a PIL image with 8 bits per channel, or None.
        array: the values otherwise, (H, W, bands).
        alpha: whether the file says that its last band is alpha.
        is_tiff: whether it is TIFF, where a band is often saved as alpha.
    """

    picture: Any | None
    array: Any | None = None
    alpha: bool = False
    is_tiff: bool = False

    @functools.cached_property
    def values(self) -> Any:
        """All values, (H, W, bands)."""
        import numpy as np

        if self.picture is None:
            return self.array
        mode = _native(self.picture)
        values = np.asarray(self.picture if mode == self.picture.mode else converted(self.picture, mode))
        return values.reshape(*values.shape[:2], -1)

    @property
    def bands(self) -> int:
        """Number of bands."""
        if self.picture is not None:
            return {"L": 1, "LA": 2, "RGB": 3}.get(_native(self.picture), 4)
        return self.values.shape[2]

    @property
    def colours(self) -> Any:
        """The values without alpha, (H, W, bands)."""
        return self.values[..., :-1] if self.alpha else self.values

    @property
    def is_grey(self) -> bool:
        """Whether there is one band, not counting alpha."""
        if self.picture is not None:
            return self.picture.mode in {"1", "L", "LA", "La"}
        return self.colours.shape[2] == 1

    @property
    def described(self) -> str:
        """What the bands are in words: "grey", "in colours" or "in 5 bands", and whether there is alpha."""
        bands = self.bands - self.alpha
        what = "grey" if self.is_grey else "in colours" if bands == 3 else f"in {bands} bands"
        return f"{what} with alpha" if self.alpha else what

    @property
    def kind(self) -> Kind:
        """What the values are."""
        if self.array is None or self.array.dtype.str[1:] == "u1":
            return "bytes"
        return "floats" if self.array.dtype.kind == "f" else "integers"

    @property
    def hides_bands(self) -> str:
        """What cannot be read as grey or colour without dropping a band, as in "has 5 bands"; "" if nothing.

        An alpha band that is not opaque counts in TIFF only, where bands of any meaning are saved as alpha.
        """
        simple = self.picture is not None and self.picture.mode not in {"RGBA", "RGBX", "LA"}
        if simple or self.bands in (1, 3) or (self.alpha and not self.is_tiff):
            return ""
        if not self.alpha:
            return f"has {self.bands} bands and says of none that it is alpha"
        if self.colours.shape[2] in (1, 3):
            what = f"has {self.bands} bands and says that the last is alpha, but it is not opaque everywhere"
            return "" if self.is_opaque else what
        return f"has {self.bands} bands"

    @property
    def is_opaque(self) -> bool:
        """Whether alpha, if there is any, has its highest value everywhere."""
        if not self.alpha:
            return True
        last = self.values[..., -1]
        return bool(last.min() == (255 if last.dtype.itemsize == 1 else 65535))


def read_raster(where: str, content: bytes | None, *, header_only: bool = False) -> Raster:
    """Read an image file with its EXIF orientation applied; of an animation the first frame.

    Pillow reads files of 8 bits and grey ones of 16 and 32 bits; torchvision PNG files of 16 bits with colours; the
    package tifffile TIFF files of more bands, of more bits with colours, or with one band per page; NumPy reads .npy.

    Args:
        where: name of the image, with which an error message begins.
        content: the bytes of the file.
        header_only: whether to decode no pixels of files in grey or colour without alpha; their `values` must not be
            used then.

    Raises:
        DataError: the content is empty, truncated or not an image.
        MissingExtraError: it needs tifffile, which is not installed.
    """
    content = content or b""
    if content.startswith(_NPY):
        return Raster(None, _of_numpy(where, content))
    if content.startswith(_PNG) and content[24:25] == b"\x10" and content[25:26] not in (b"", b"\0"):
        return Raster(None, _of_deep_png(where, content), alpha=content[25] in _PNG_ALPHA)
    tags = _tiff_tags(content) if content.startswith(_TIFF) else {}
    alpha = (tags.get(_EXTRA) or (0,))[-1] in (1, 2)
    if tags and not _pillow_reads_all(content, tags, alpha=alpha):
        return Raster(None, _of_tifffile(where, content, tags), alpha=alpha, is_tiff=True)
    if header_only and (image := open_image(where, content, load=False)).mode in _PLAIN:
        return Raster(image, is_tiff=bool(tags))
    image = open_image(where, content)
    with contextlib.suppress(Exception), warnings.catch_warnings():  # a corrupt EXIF block can raise any error
        from PIL import ImageOps

        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Raster(None, _deep(image, tags), is_tiff=bool(tags))
    if tags:
        return Raster(image, alpha=alpha and image.mode in {"RGBA", "LA"}, is_tiff=True)
    return Raster(image, alpha=image.mode in {"LA", "La", "PA", "RGBA", "RGBa"})


def size_of(where: str, content: bytes | None) -> tuple[int, int]:
    """Return (width, height) of an image file as `read_raster` reads it, without decoding pixels where possible."""
    raster = read_raster(where, content, header_only=True)
    if raster.picture is None:
        height, width = raster.values.shape[:2]
        return width, height
    width, height = raster.picture.size
    return (height, width) if _is_turned(raster.picture, content or b"") else (width, height)


def _is_turned(picture: Any, content: bytes) -> bool:
    """Return whether a picture of which the header was read is turned by 90 degrees when it is decoded."""
    if picture.format == "PNG" and b"eXIf" not in content and b"tiff:Orientation" not in content:
        return False  # Pillow would decode it to look for EXIF after the pixels
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if picture.format == "TIFF":  # newer versions of Pillow have turned the size already
            tags = picture.tag_v2
            return tags.get(_ORIENTATION) in _TURNED and picture.size == tuple(tags[tag] for tag in _SIZE)
        return picture.getexif().get(_ORIENTATION) in _TURNED
    return False


def _native(image: Any) -> str:
    """Return the mode of Pillow with one band for each of an image of 8 bits; palettes become colours."""
    return _MODES.get(image.mode) or str(image.mode)


def _deep(image: Any, tags: Any) -> Any:
    """Return the values of a grey PIL image of more than 8 bits, (H, W, 1)."""
    import numpy as np

    values = np.asarray(image)[..., None]
    if image.mode.startswith("I") and _bits(tags) != 32:
        return values.clip(0, 65535).astype(np.uint16)
    return values


def converted(image: Any, mode: str, where: str = "image") -> Any:
    """Return a PIL image of 8 bits in another mode; transparent pixels show their colour, as with most loaders."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about transparency in a palette
            return image.convert(mode)
    except ValueError as error:
        raise errors.DataError(f"{where}: truncated or unreadable image ({error}).") from None


def _tiff_tags(content: bytes) -> Any:
    """Return the tags of the first page, or {} if they cannot be read."""
    tags_of = _validation.import_optional("PIL.TiffImagePlugin", "reading images").ImageFileDirectory_v2
    with contextlib.suppress(Exception):  # then opening the image explains
        head = content[: 16 if content[2:4] in (b"+\0", b"\0+") else 8]
        return _page(content, tags_of(head).next, head)
    return {}


def _page(content: bytes, at: int, head: bytes) -> Any:
    """Return the tags of the page at an offset."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    page, file = ImageFileDirectory_v2(head), io.BytesIO(content)
    file.seek(at)
    page.load(file)
    return page


def _bits(tags: Any) -> int:
    """Return the bits of a sample, 8 without that tag."""
    bits = tags.get(_BITS, 8)
    return int(max(bits)) if isinstance(bits, tuple) else int(bits)


def _pillow_reads_all(content: bytes, tags: Any, *, alpha: bool) -> bool:
    """Return whether Pillow reads all bands and bits of a TIFF file, and the file has one page (or smaller copies)."""
    samples = tags.get(_SAMPLES, 1)
    if samples == 1:
        return _pages(content, tags) == 1
    return _bits(tags) <= 8 and (samples in (3, 4) or (samples == 2 and alpha))


def _pages(content: bytes, tags: Any) -> int:
    """Return the number of pages that have the size of the first."""
    sizes, page, head = [], tags, content[: 16 if content[2:4] in (b"+\0", b"\0+") else 8]
    with contextlib.suppress(Exception):
        seen: set[int] = set()
        while True:
            sizes.append([page.get(tag) for tag in _SIZE])
            if not page.next or page.next in seen:
                break
            seen.add(page.next)
            page = _page(content, page.next, head)
    return sizes.count(sizes[0])


def _of_tifffile(where: str, content: bytes, tags: Any) -> Any:
    what = f"reading {where} ({tags.get(_SAMPLES, 1)} bands per page of {_bits(tags)} bits)"
    tifffile = _validation.import_optional("tifffile", what, "tiff")
    with as_data_error(f"{where}:", "truncated or unreadable image"):
        return _bands_last(where, tifffile.imread(io.BytesIO(content)))


def _of_numpy(where: str, content: bytes) -> Any:
    import numpy as np

    with as_data_error(f"{where}:", "not a NumPy array of numbers"):
        values = np.load(io.BytesIO(content), allow_pickle=False)
    return _bands_last(where, values)


def _of_deep_png(where: str, content: bytes) -> Any:
    io_of_images = _validation.import_optional("torchvision.io", "reading PNG files of 16 bits")
    with as_data_error(f"{where}:", "truncated or unreadable image"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision hands its decoders over to torchcodec
        warnings.simplefilter("ignore", UserWarning)
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return io_of_images.decode_png(encoded, io_of_images.ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _bands_last(where: str, values: Any) -> Any:
    """Return an array (H, W), (H, W, bands) or (bands, H, W) as (H, W, bands).

    The axis of the bands is the first or the last, whichever is shorter.
    """
    import numpy as np

    if values.dtype.kind not in "buif" or not values.size:
        raise errors.DataError(f"{where}: expected numbers, got an array of {values.dtype} and shape {values.shape}.")
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[0] == values.shape[2]:
        raise errors.DataError(
            f"{where}: expected an array (H, W), (H, W, bands) or (bands, H, W) with fewer bands than pixels, got "
            f"shape {values.shape}. Save it in one of these."
        )
    if values.shape[0] < values.shape[2]:
        values = values.transpose(1, 2, 0)
    return values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values
