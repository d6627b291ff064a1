"""How the bands and values of image files become the channels of a network: chosen once, saved with the run."""

# pyright: basic

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from gatewise import errors
from gatewise.core.schema import of_file
from gatewise.data.band_image import BandImage
from gatewise.data.raster import VALUES, Kind, Raster, converted, read_raster

Range = tuple[float, float]
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow converts to grey


@dataclass(frozen=True)
class PixelFormat:
    """The channels of an image file that a network gets, each as 0 to 255.

    Attributes:
        channels: "rgb", "gray", or the numbers of bands, from 1.
        of: number of bands that a file must have, not counting opaque alpha; colour files of one band fit 3, and files
            of equal colours fit 1. None allows any and drops what is not chosen.
        ranges: for each channel the values that become 0 and 255; values outside are clipped. () leaves 8 bits as they
            are, and scales integers of 16 bits from 0 to 65535.
        kind: the values that `ranges` are for.
    """

    channels: Literal["rgb", "gray"] | tuple[int, ...] = "rgb"
    of: int | None = None
    ranges: tuple[Range, ...] = ()
    kind: Kind = "bytes"

    def __post_init__(self) -> None:
        if not self.channels or (not isinstance(self.channels, str) and min(self.channels) < 1):
            raise errors.InvalidValueError(f"channels must be rgb, gray, or numbers from 1, got {self.channels}.")
        for low, high in self.ranges:
            if not low < high:
                raise errors.InvalidValueError(f"a range of values must have LOW below HIGH, got {low:g} to {high:g}.")

    @property
    def count(self) -> int:
        """Number of channels."""
        return {"rgb": 3, "gray": 1}[self.channels] if isinstance(self.channels, str) else len(self.channels)

    @classmethod
    def of_config(cls, file: object, config: Mapping[str, Any]) -> Self:
        """Return the format in a `config.json`; that of older versions, RGB or grey, if it has none.

        Raises:
            DataError: the entry "pixels" is invalid.
        """
        stored = config.get("pixels")
        if stored is None:
            return cls.of_count(config.get("in_chans", 3))
        found = of_file(file, stored, cls)
        if found.ranges and len(found.ranges) != found.count:
            raise errors.DataError(f"{file}: {len(found.ranges)} ranges for {found.count} channels. Restore the file.")
        return found

    @classmethod
    def of_count(cls, count: int) -> Self:
        """Return the format of files for a network that was trained on pixels of `count` channels without files."""
        named: Any = {1: "gray", 3: "rgb"}
        return cls(named.get(count, tuple(range(1, count + 1))))

    def decode(self, where: str, content: bytes | None) -> BandImage:
        """Decode an image file to its channels.

        Args:
            where: name of the image, with which an error message begins.
            content: the bytes of the file.

        Raises:
            DataError: the content is not an image, lacks a chosen band, has a band that would be dropped although `of`
                forbids it, or has other values than those that the ranges are for.
            MissingExtraError: a package to read the file is not installed.
        """
        raster = read_raster(where, content)
        if not self.ranges and raster.array is not None and raster.kind != "bytes":
            _check_16_bits(where, raster)
        self.check_bands(where, raster)
        if isinstance(self.channels, str) and not self.ranges and raster.picture is not None:
            return BandImage((converted(raster.picture, {"rgb": "RGB", "gray": "L"}[self.channels], where),))
        pixels = self._scaled(where, raster.kind, self.chosen(where, raster))
        return BandImage.of(torch.from_numpy(pixels).permute(2, 0, 1))

    def check_bands(self, where: str, raster: Raster) -> None:
        if self.of is None:
            return
        if self.of > 3 or not isinstance(self.channels, str):
            if raster.bands != self.of:
                raise errors.DataError(f"{where} has {raster.bands} bands, other images have {self.of}. {_ADVICE}")
        elif raster.hides_bands:
            raise errors.DataError(f"{where} {raster.hides_bands}. {_advice(raster.bands)}")
        elif self.of == 1 and not raster.is_grey and not _is_colourless(raster):
            raise errors.DataError(
                f"{where} has colours, other images are grey. Convert it to grey, or train with --channels gray or "
                f"--channels rgb."
            )

    def chosen(self, where: str, raster: Raster) -> Any:
        """Return the values of the chosen channels, (H, W, channels).

        Raises:
            DataError: the file lacks a chosen band.
        """
        import numpy as np

        if not isinstance(self.channels, str):
            if max(self.channels) > raster.bands:
                wanted = max(self.channels)
                raise errors.DataError(f"{where} has {raster.bands} bands, not {wanted}. Train with other --channels.")
            return raster.values[..., [band - 1 for band in self.channels]]
        if raster.picture is not None:
            picture = converted(raster.picture, {"rgb": "RGB", "gray": "L"}[self.channels], where)
            return np.asarray(picture).reshape(picture.height, picture.width, self.count)
        colours = raster.colours[..., :3]
        if self.channels == "gray":
            return colours if colours.shape[2] < 3 else (colours @ np.array(_LUMA))[..., None]
        return np.broadcast_to(colours[..., :1], (*colours.shape[:2], 3)) if colours.shape[2] < 3 else colours

    def _scaled(self, where: str, kind: Kind, values: Any) -> Any:
        """Return values as uint8; those that are not finite become 0."""
        import numpy as np

        ranges = self.ranges
        if ranges and kind != self.kind:
            raise errors.DataError(
                f"{where} has {VALUES[kind]}, but the range of values is for {VALUES[self.kind]}. Convert the image."
            )
        if not ranges and kind == "bytes":
            return np.ascontiguousarray(values.astype(np.uint8))
        if not ranges:
            ranges = ((0.0, 65535.0),) * values.shape[2]
        low, high = np.array(ranges, dtype=np.float64).T
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = ((values - low) * (255 / (high - low))).clip(0, 255).round()
        return np.where(np.isfinite(values), scaled, 0).astype(np.uint8)


def _check_16_bits(where: str, raster: Raster) -> None:
    """Raise unless the range of values is known without `ranges`."""
    dtype = raster.values.dtype
    if raster.kind == "floats" or dtype.str[1:] != "u2":
        what = "floating-point" if raster.kind == "floats" else f"{8 * dtype.itemsize}-bit"
        raise errors.DataError(
            f"{where}: expected 8 or 16 bits per channel, got {what} pixels. Convert the image, or train with "
            f"--value-range."
        )


_ADVICE = "Give all images the same bands, or train with some, as in --channels 1,2,3."


def _advice(bands: int) -> str:
    some = ",".join(map(str, range(1, min(bands, 3) + 1)))
    last = ", or --channels rgb" if bands > 3 else ""
    return f"Train with --channels all, or with some, as in --channels {some}{last}."


def _is_colourless(raster: Raster) -> bool:
    """Return whether all colours of all pixels are equal, so that grey loses nothing."""
    colours = converted(raster.picture, "RGB") if raster.picture is not None else None
    import numpy as np

    values = raster.colours if colours is None else np.asarray(colours)
    return bool((values == values[..., :1]).all())


def parse_channels(text: str) -> Literal["auto", "all", "rgb", "gray"] | tuple[int, ...]:
    """Return `--channels`: a word, or the numbers of bands.

    Raises:
        InvalidValueError: it is neither.

    >>> parse_channels("4,3,2"), parse_channels("all")
    ((4, 3, 2), 'all')
    """
    match text:
        case "auto" | "all" | "rgb" | "gray":
            return text
        case "grey" | "grayscale" | "greyscale":
            return "gray"
        case _:
            numbers = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and 0 < int(part) <= 4096 for part in numbers):
        raise errors.InvalidValueError(
            f"channels must be auto, rgb, gray, all, or numbers of bands from 1 as in 4,3,2, got {text!r}."
        )
    return tuple(map(int, numbers))


def parse_ranges(text: str) -> tuple[Range, ...]:
    """Return `--value-range`: () for auto, or pairs of the values that become 0 and 255.

    Raises:
        InvalidValueError: it is neither, or a range is empty.

    >>> parse_ranges("0,4095"), parse_ranges("0,4095+-1,1")
    (((0.0, 4095.0),), ((0.0, 4095.0), (-1.0, 1.0)))
    """
    if text == "auto":
        return ()
    ranges: list[Range] = []
    for part in text.split("+"):
        try:
            low, high = map(float, part.split(","))
        except ValueError:
            low = high = 0.0
        if not -1e30 < low < high < 1e30:
            raise errors.InvalidValueError(
                f"value_range must be auto, or LOW,HIGH with LOW below HIGH, as in 0,4095, or one such pair for each "
                f"channel joined by +, got {text!r}."
            )
        ranges.append((low, high))
    return tuple(ranges)


def for_channels(ranges: Sequence[Range], count: int) -> tuple[Range, ...]:
    """Return one range for each channel, from one for all or one for each.

    Raises:
        InvalidValueError: there is another number of ranges.
    """
    if len(ranges) not in (1, count):
        raise errors.InvalidValueError(f"value_range has {len(ranges)} ranges for {count} channels. Give 1 or {count}.")
    return tuple(ranges) * (count if len(ranges) == 1 else 1)


RGB = PixelFormat()
