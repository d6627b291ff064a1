"""Find the pixel format of a data set from a sample of its training images."""

# pyright: basic

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gatewise import errors
from gatewise.data.images import EncodedSource
from gatewise.data.masks import evenly_spaced
from gatewise.data.pixel_format import PixelFormat, for_channels, parse_channels, parse_ranges
from gatewise.data.raster import VALUES, Kind, Raster, read_raster

_FILES = 128  # most files of a split whose bands are looked at
_RANGED = 2048  # most files from which ranges are found
_VALUES = 1024  # most values per channel and file of them
PERCENTILES = 2, 98


@dataclass
class _Seen:
    """What the sampled files have: the first file of each kind of values, of grey and of colours."""

    count: int = 0
    kinds: dict[Kind, str] = field(default_factory=dict)
    grey: int = 0
    bands: Counter[int] = field(default_factory=Counter)
    transparent: int = 0
    described: Counter[str] = field(default_factory=Counter)


def find_pixel_format(
    files: Sequence[EncodedSource], channels: str, value_range: str
) -> tuple[PixelFormat, tuple[str, ...]]:
    """Return the pixel format of a data set, and notes about what was decided.

    Args:
        files: the images of each split; those of the first, for training, give the ranges.
        channels: "auto" (grey if all sampled files are grey, else colour), "rgb", "gray", "all", or numbers of bands.
        value_range: "auto", or ranges; see `parse_ranges`. "auto" leaves 8 bits as they are; for deeper values it takes
            the 2nd and the 98th percentile of each channel, or 0 to 65535 where some files have 8 bits.

    Raises:
        DataError: a sampled file cannot be read, has bands that would be dropped unasked, or other values than others.
        InvalidValueError: an option is invalid.
    """
    wanted, ranges = parse_channels(channels), parse_ranges(value_range)
    seen = _Seen()
    for split in files:
        for index in evenly_spaced(len(split), _FILES):
            where = split.where(index)
            _look(seen, where, read_raster(where, split.content(index), header_only=True), strict=wanted == "auto")
    notes: list[str] = []
    match wanted:
        case "auto":
            grey = seen.grey == seen.count
            found = PixelFormat("gray" if grey else "rgb", 1 if grey else 3)
            if len(seen.described) > 1:
                kinds = ", ".join(f"{count} {what}" for what, count in seen.described.most_common())
                notes.append(f"sampled images differ ({kinds}): all are read in {'grey' if grey else 'colours'}")
            if seen.transparent:
                notes.append(
                    f"transparency is dropped ({seen.transparent} of {seen.count} sampled images are not opaque)"
                )
        case "all":
            bands = seen.bands.most_common(1)[0][0]
            found = PixelFormat(tuple(range(1, bands + 1)), bands)
        case _:
            found = PixelFormat(wanted)
    found, said = _with_ranges(files[0], found, ranges, seen)
    return found, (*notes, *said)


def _look(seen: _Seen, where: str, raster: Raster, *, strict: bool) -> None:
    if strict:
        PixelFormat("rgb", 3).check_bands(where, raster)
    seen.count += 1
    seen.kinds.setdefault(raster.kind, where)
    seen.grey += raster.is_grey
    if strict:
        seen.transparent += not raster.is_opaque
        seen.described[raster.described] += 1
    else:
        seen.bands[raster.bands] += 1


def _with_ranges(
    files: EncodedSource, found: PixelFormat, ranges: Any, seen: _Seen
) -> tuple[PixelFormat, tuple[str, ...]]:
    kinds = list(seen.kinds)
    if len(kinds) > 1 and (ranges or "floats" in kinds):
        one, other = kinds[:2]
        raise errors.DataError(
            f"{seen.kinds[one]} has {VALUES[one]}, {seen.kinds[other]} has {VALUES[other]}. Convert them to one kind."
        )
    if len(kinds) > 1:
        return found, ("some images have 8 bits, others 16: 0 to 65,535 become 0 to 255 in the latter",)
    kind: Any = kinds[0]
    if ranges:
        return dataclasses.replace(found, ranges=for_channels(ranges, found.count), kind=kind), ()
    if kind == "bytes":
        return found, ()
    return _measured(files, found, kind)


def _measured(files: EncodedSource, found: PixelFormat, kind: Any) -> tuple[PixelFormat, tuple[str, ...]]:
    """Return the format with ranges that are percentiles of the values."""
    import numpy as np

    parts, lows, highs, missing, sample = [], [], [], 0, evenly_spaced(len(files), _RANGED)
    for index in sample:
        where = files.where(index)
        raster = read_raster(where, files.content(index))
        found.check_bands(where, raster)
        values = found.chosen(where, raster).reshape(-1, found.count)
        finite = values[np.isfinite(values).all(1)]
        missing += len(values) - len(finite)
        if len(finite):
            lows.append(finite.min())
            highs.append(finite.max())
            parts.append(finite[evenly_spaced(len(finite), _VALUES)])
    if not parts:
        raise errors.DataError(f"{files.where(0)} and {len(sample) - 1} other images have no finite value.")
    low, high = np.percentile(np.concatenate(parts).astype(np.float64), PERCENTILES, axis=0)
    high = np.where(high > low, high, low + 1)
    ranges = tuple(zip(low.tolist(), high.tolist(), strict=True))
    listed = ", ".join(f"{one:,.6g} to {other:,.6g}" for one, other in dict.fromkeys(ranges))
    what = {"integers": "more than 8 bits", "floats": "floating-point values"}[kind]
    note = (
        f"images have {what}, values {min(lows):,.6g} to {max(highs):,.6g}: {listed} ({PERCENTILES[0]}nd and "
        f"{PERCENTILES[1]}th percentile of {len(sample):,} training images) become 0 to 255 in train, predict and "
        f"export; --value-range sets them"
    )
    unknown = (f"{missing:,} pixels of the sampled images are not finite and become 0",) if missing else ()
    return dataclasses.replace(found, ranges=ranges, kind=kind), (note, *unknown)
