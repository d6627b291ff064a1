"""Registry of data sources: what `--data` can name, and how it is read.

Each source registers itself in its own file with `@register_source`. `load_dataset`, `load_pairs`, their error messages
and the help of `--data` read this registry. A run stores only the text of `--data`, so every command that reopens a run
finds its source here.
"""

import contextlib
import functools
import importlib.metadata
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.data.folders import Location
from gatewise.data.labels import LabelledSplit as LabelledSplit
from gatewise.data.masked_split import MaskedSplit as MaskedSplit

_ANNOTATIONS = re.compile(r"coco|instances|annotations")
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".7z", ".rar")
PLUGINS = "gatewise.sources"  # entry points of installed packages; loading them imports modules that register sources


class Source(ABC):
    """What `--data` can name. A source derives from `LabelledSource`, `MaskedSource` or both.

    Attributes:
        content: what its kind of source gives.
        hint: what to set to get that, a sentence.
        name: key in the registry.
        help: what to give as `--data`, a few words for help and error messages.
        names: what `--data` can be apart from a path; by default `name`, if the source matches nothing else.
        order: sources are asked in ascending order; the first that matches is read.
        flip: whether a horizontally flipped image keeps its label.
        has_columns: whether the options about columns of a table are used.
    """

    content: ClassVar[str]
    hint: ClassVar[str]
    name: ClassVar[str]
    help: ClassVar[str]
    names: ClassVar[Sequence[str]] = ()
    order: ClassVar[int]
    flip: ClassVar[bool] = True
    has_columns: ClassVar[bool] = False

    def matches(self, location: Location) -> bool:
        """Return whether the source can read `location`, without reading images; by default, if it is the name."""
        return location.text == self.name


class LabelledSource(Source):
    """A source of labelled images."""

    content = "labelled images"
    hint = "For images with one label set task to classify."

    @abstractmethod
    def read_labelled(self, location: Location) -> Mapping[str, LabelledSplit]:
        """Return the splits; raise `DataError` if they cannot be read.

        "train" alone is divided by the rule of `gatewise.data.splitting`; "validation" and "test" are used as given.
        """


class MaskedSource(Source):
    """A source of images with masks."""

    content = "images with masks"
    hint = "For masks set task to segment."

    @abstractmethod
    def read_masked(self, location: Location) -> Mapping[str, MaskedSplit]:
        """Return the splits, as for labelled images; raise `DataError` if they cannot be read."""


_registry: dict[str, Source] = {}
Kind = TypeVar("Kind", bound=Source)


def register_source(name: str, *, help: str, order: int = 0) -> Callable[[type[Kind]], type[Kind]]:
    """Return a decorator that registers a `LabelledSource` or `MaskedSource`; `Source` documents the arguments.

    Raises:
        InvalidValueError: the name is in use.
    """
    if name in _registry:
        raise errors.InvalidValueError(f"data source {name!r} is already registered. Choose another name.")

    def register(source: type[Kind]) -> type[Kind]:
        source.name, source.help, source.order = name, help, order
        if source.matches is Source.matches:
            source.names = (name,)
        _registry[name] = source()
        return source

    return register


@functools.cache
def _load_plugins() -> None:
    """Import the modules that installed packages name as entry points."""
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        what = f"the data source {entry.name!r} ({entry.value})"
        with as_data_error(what, "cannot be imported", "Upgrade or uninstall its package."):
            entry.load()


def _sources(kind: type[Kind]) -> list[Kind]:
    """Return the sources of one kind, in the order in which they are asked."""
    return [
        source for source in sorted(_registry.values(), key=lambda source: source.order) if isinstance(source, kind)
    ]


def describe_sources(kind: type[Source]) -> str:
    """Return what to give as `--data` for labelled images or for images with masks, as a list in words."""
    *most, last = [source.help for source in _sources(kind)]
    return f"{', '.join(most)}, or {last}"


def is_name(text: str) -> bool:
    """Return whether `--data` with this text is the name of a source, also if there is a folder of that name."""
    _load_plugins()
    return text in _registry


def is_readable(text: str) -> bool:
    """Return whether some source can read `--data` with this text, without reading images."""
    return any(has_source(Location(text), kind) for kind in (LabelledSource, MaskedSource))


def has_source(location: Location, kind: type[Source]) -> bool:
    """Return whether a source of a kind matches a location."""
    _load_plugins()
    return any(source.matches(location) for source in _sources(kind))


def find_source(location: Location, kind: type[Kind]) -> Kind:
    """Return the first source of a kind that matches a location; note a path of its name.

    Raises:
        DataError: no source matches; the message lists what is expected, and what is there.
    """
    _load_plugins()
    for source in _sources(kind):
        if source.matches(location):
            if type(source).matches is Source.matches and location.path.exists():
                location.say(f"{source.name} is the data set of that name; --data ./{source.name} reads your own")
            return source
    if location.is_folder:
        problem = f"{location}: for {kind.content} expected {describe_sources(kind)}; found {location.content()}"
    else:
        what = "is a file" if location.path.exists() else "does not exist"
        shown = _validation.safe_repr(location.text)
        problem = f"data folder {shown} {what}; for {kind.content} expected {describe_sources(kind)}"
    if hint := hint_about_files(location):
        raise errors.DataError(f"{problem}. {hint}")
    kinds: tuple[type[Source], ...] = (LabelledSource, MaskedSource)
    hints = "".join(f" {other.hint}" for other in kinds if any(source.matches(location) for source in _sources(other)))
    if not hints and not location.path.exists():
        hints = _validation.path_meant(location.path, [name for source in _sources(kind) for name in source.names])
    raise errors.DataError(f"{problem}.{hints}")


def hint_about_files(location: Location) -> str:
    """Return what to do about files of a usual kind that no source reads, or ""."""
    if location.text.lower().endswith(_ARCHIVES):
        return "Unpack the archive first."
    if location.is_folder:
        files = location.with_suffix(".json", ".xlsx", ".xls", *_ARCHIVES)
    else:
        files = [location.path] if location.path.is_file() else []
    for file in files:
        if file.suffix == ".json" and _is_coco(file):
            return (
                f"{file.name} is COCO: boxes and polygons are not read. Draw them as masks, or write a table of labels."
            )
        if file.suffix in (".xlsx", ".xls"):
            return f"{file.name} is not read: save it as CSV."
        if file.name.endswith(_ARCHIVES) and not any(location.image_counts().values()):
            return f"Unpack {file.name} first."
    if not location.is_folder:
        return ""
    if files := [path for path in location.with_suffix(".txt") if path.parent.name.lower().startswith("label")]:
        return f"{files[0].name} and others are YOLO: boxes and polygons are not read. Draw them as masks."
    return ""


def _is_coco(file: Path) -> bool:
    """Return whether a JSON file is COCO by its name, or by the words at its start or end."""
    if _ANNOTATIONS.search(file.name.lower()):
        return True
    with contextlib.suppress(OSError), file.open("rb") as opened:
        start = opened.read(4096)
        opened.seek(max(0, file.stat().st_size - 4096))
        return b'"annotations"' in start or (b'"categories"' in opened.read())
    return False
