"""Images that cannot be read: found before a training, named, or left out of all runs alike."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from torch import Tensor

from gatewise import errors
from gatewise.core._validation import listed
from gatewise.core.wording import counted
from gatewise.data.division import ImagesSplit
from gatewise.data.folders import Location
from gatewise.data.images import EncodedSource
from gatewise.data.raster import read_raster

_MOST = 0.05  # fraction of broken images above which something else is wrong
_THREADS = 8
AnySplit = TypeVar("AnySplit", bound=ImagesSplit)


def broken_images(images: EncodedSource | Tensor) -> dict[int, str]:
    """Decode all images; return for each that cannot be decoded the error, which begins with its name."""
    if isinstance(images, Tensor):
        return {}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(partial(_error_of, images), range(len(images)), chunksize=64)
        return {index: error for index, error in enumerate(found) if error is not None}


def _error_of(images: EncodedSource, index: int) -> str | None:
    try:
        read_raster(images.where(index), images.content(index))
    except errors.DataError as error:
        return str(error)
    return None


def with_advice(message: str, images: EncodedSource) -> str:
    """Return an error of a streamed image, with what to do about it if the image cannot be read."""
    name = message.partition(": ")[0]
    index = next((index for index in range(len(images)) if images.where(index) == name), None)
    if index is None or _error_of(images, index) is None:
        return message
    return f"{message} Remove it, or add --on-broken skip; gatewise check finds all images that cannot be read."


def without_broken(
    location: Location, splits: Mapping[str, AnySplit]
) -> tuple[dict[str, AnySplit], tuple[tuple[str, str], ...]]:
    """Return the splits without images that cannot be read, and these with their errors, if `on_broken` is "skip".

    Raises:
        DataError: more than 5 % of the images of a split cannot be read, and the reading stops there.
    """
    if location.reading.on_broken != "skip":
        return dict(splits), ()
    kept: dict[str, AnySplit] = {}
    skipped: list[tuple[str, str]] = []
    for name, split in splits.items():
        broken, total = broken_images(split.images), len(split.images)
        if len(broken) > max(1, _MOST * total):
            many = f"{len(broken):,} of {total:,} images of {split.shown or name} cannot be read"
            if location.reading.stops_at_many_broken:
                raise errors.DataError(f"{location}: {many}, more than {_MOST:.0%}: {next(iter(broken.values()))}")
            location.say(f"warning: {many}; --on-broken skip leaves out up to {_MOST:.0%}")
        kept[name] = split.of([index for index in range(total) if index not in broken]) if broken else split
        for index, error in broken.items():
            where = split.images.where(index)  # type: ignore[union-attr]  # pyright: ignore
            skipped.append((where, error.removeprefix(where).lstrip(": ")))
    if skipped:
        location.say(left_out_note(skipped))
    return kept, tuple(skipped)


def left_out_note(skipped: Sequence[tuple[str, str]]) -> str:
    """Return the note about images that are left out, given their names and errors."""
    verb = "is" if len(skipped) == 1 else "are"
    names = listed([name for name, _ in skipped], 3)
    return f"warning: {counted(len(skipped), 'image')} cannot be read and {verb} left out ({names})"


@contextlib.contextmanager
def counting_broken(images: Sequence[EncodedSource | Tensor]) -> Generator[None]:
    """If the block fails, look for images that cannot be read, and raise for the first of them, with their number."""
    try:
        yield
    except errors.DataError as error:
        broken = [message for source in images for message in broken_images(source).values()]
        if not broken:
            raise
        advice = "Remove it" if len(broken) == 1 else f"It is the first of {len(broken):,} such images. Remove them"
        first = str(error) if str(error) in broken else broken[0]
        raise errors.DataError(f"{first} {advice}, or add --on-broken skip.") from None
