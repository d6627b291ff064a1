"""Folders of images: the location given as `--data`, listed once, and its image files."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.data.images import EncodedSource
from gatewise.data.reading import Reading

# the suffixes that torchvision reads, .gif, .avif and arrays of NumPy
_IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif", ".npy")


def is_image(name: str) -> bool:
    """Return whether a file has an image suffix.

    >>> is_image("a.JPG"), is_image("a.txt")
    (True, False)
    """
    return name.lower().endswith(_IMAGES)


class Location:
    """A data set's name, address or path; a folder is listed once, however many sources look into it.

    Below a folder, symbolic links are followed. The arguments `below` of its methods are names of folders, each in the
    one before.

    Args:
        source: the name or path, as given by the user.
        reading: how it is to be read; None uses the defaults.
        labels: what a label is: "class", "classes" or "number".

    Attributes:
        text: the name or path, as text.
        path: the same, as a path.
        notes: what was left out while reading, a line each.
    """

    def __init__(self, source: str | Path, reading: Reading | None = None, labels: str = "class") -> None:
        self.text, self.path = str(source), Path(source)
        self.reading, self.labels = reading or Reading(), labels
        self.notes: list[str] = []

    def say(self, line: str) -> None:
        """Add a line to `notes`, once."""
        if line not in self.notes:
            self.notes.append(line)

    def __str__(self) -> str:
        return self.text

    @property
    def is_folder(self) -> bool:
        """Whether the path is an existing folder."""
        return self.path.is_dir()

    def has_folder(self, *below: str) -> bool:
        """Return whether a folder exists; this lists nothing."""
        return self.path.joinpath(*below).is_dir()

    @functools.cached_property
    def _listing(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """The names of the files in each folder, and the folders that are not listed, each with the reason.

        The keys are relative paths, sorted; the root is "".
        """
        top = str(self.path)
        names: dict[str, list[str]] = {}
        omitted: dict[str, str] = {}

        def relative(folder: str) -> str:
            return folder[len(top) :].lstrip(os.sep)

        def unreadable(error: OSError) -> None:
            omitted[relative(str(error.filename))] = ": no permission to read this folder"

        for folder, inside, files in os.walk(top, followlinks=True, onerror=unreadable):
            key = relative(folder)
            names[key] = sorted(files)
            for name in [name for name in inside if _links_to_parent(Path(folder, name))]:  # would never end
                omitted[str(Path(key, name))] = " is a symbolic link to a folder that contains it. Remove the link"
                inside.remove(name)
        return dict(sorted(names.items())), omitted

    def _below(self, below: tuple[str, ...]) -> dict[str, list[str]]:
        """Return the listing of a folder and of all folders in it; raise `DataError` if one of them is not listed."""
        listing, omitted = self._listing
        start = str(Path(*below)) if below else ""
        for folder, reason in omitted.items():
            if _is_below(folder, start):
                raise errors.DataError(f"{self.path / folder}{reason}.")
        return {folder: names for folder, names in listing.items() if _is_below(folder, start)}

    def folders(self, *below: str) -> list[str]:
        """Return the sorted names of the folders in a folder.

        Raises:
            DataError: a folder at any depth cannot be read, or is a link to a folder that contains it.
        """
        start = Path(*below)
        return sorted(path.name for path in map(Path, self._below(below)) if path != start and path.parent == start)

    def images(self, *below: str) -> list[str]:
        """Return the paths of the image files in a folder at any depth, sorted by folder and name.

        Raises:
            DataError: a folder at any depth cannot be read, or is a link to a folder that contains it.
        """
        return [
            f"{folder}{os.sep}{name}"
            for folder, names in ((self.path / key, names) for key, names in self._below(below).items())
            for name in names
            if is_image(name)
        ]

    def with_suffix(self, suffix: str) -> list[Path]:
        """Return the sorted paths of all files with a suffix at any depth, except in folders that cannot be read."""
        listing, _ = self._listing
        return sorted(
            self.path / folder / name for folder in listing for name in listing[folder] if name.endswith(suffix)
        )

    def content(self) -> str:
        """Return the first names in the folder as text for an error message."""
        names = sorted(path.name for path in self.path.iterdir())
        return _validation.listed(names, most=8) or "nothing"


def _is_below(folder: str, start: str) -> bool:
    return not start or folder == start or folder.startswith(start + os.sep)


def _links_to_parent(path: Path) -> bool:
    """Return whether a path is a symbolic link to a folder that contains it."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


class EncodedFiles(EncodedSource):
    """Images in separate files.

    Args:
        files: paths of the images.
    """

    def __init__(self, files: list[str]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        return self._files[index]

    def content(self, index: int) -> bytes:
        return read_bytes(Path(self._files[index]))

    def file(self, index: int) -> Path:
        return Path(self._files[index])

    def subset(self, chosen: Sequence[int]) -> "EncodedFiles":
        return EncodedFiles([self._files[index] for index in chosen])
