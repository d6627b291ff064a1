"""Folders of images: the location given as `--data`, listed once, and its image files."""

import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.core.wording import counted
from gatewise.data.images import EncodedSource
from gatewise.data.reading import Kind, Reading

# the suffixes that torchvision reads, others of JPEG, .gif, .avif and arrays of NumPy
_IMAGES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif"),
    ".npy",
)
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_CONTAINERS = (*TABLES, ".npz", ".tar")
# images that are not read, with what they are and what to save them as
_UNREAD = {
    **dict.fromkeys((".heic", ".heif"), ("HEIC", "JPEG")),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), ("camera raw", "JPEG or TIFF")),
    ".dcm": ("DICOM", "PNG or TIFF"),
    **dict.fromkeys((".nii", ".nii.gz"), ("NIfTI", "PNG or TIFF")),
    ".psd": ("Photoshop", "PNG"),
    ".svg": ("SVG", "PNG"),
    ".jxl": ("JPEG XL", "PNG"),
}

_IMAGES_AND_UNREAD = (*_IMAGES, *_UNREAD)


def is_image(name: str) -> bool:
    """Return whether a file has an image suffix.

    >>> is_image("a.JPG"), is_image("a.txt")
    (True, False)
    """
    return name.lower().endswith(_IMAGES)


def printable(text: str) -> str:
    r"""Return text with "?" in place of bytes that are not UTF-8, as in names from archives made with another encoding.

    >>> printable("ol\udce9.png")
    'ol?.png'
    """
    return text.encode(errors="replace").decode()


def _is_in_other_encoding(path: str) -> bool:
    return printable(path) != path


def is_hidden(name: str) -> bool:
    """Return whether a name is not meant for people, such as .ipynb_checkpoints, ._1.jpg or __MACOSX."""
    return name.startswith((".", "__"))


def expanded(path: str | Path) -> Path:
    """Return a path with a home folder in place of ~; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (pathlib raises for an unknown user)


class Location:
    """A data set's name, address or path; a folder is listed once, however many sources look into it.

    Below a folder, symbolic links are followed, and hidden names are left out. The arguments `below` of its methods are
    names of folders, each in the one before.

    Args:
        source: the name or path, as given by the user.
        reading: how it is to be read; None uses the defaults.
        labels: what a label is: "class", "classes" or "number".

    Attributes:
        text: the name or path, as text.
        path: the same, as a path, with which the paths of all images in it begin.
        group: what says which images belong together, see `Reading`; a source that reads a split.csv sets it.
        root: the folder to which the names of images are relative; a source that reads a table sets it.
        notes: what was found and left out while reading, a line each.
        training_notes: those of them that concern a training only, not every use of the images.
    """

    def __init__(self, source: str | Path, reading: Reading | None = None, labels: Kind = "class") -> None:
        self.text, path = str(source), expanded(source)
        self.path = path if path.parts else path.absolute()  # "." is no start of the paths in it
        self.root = self.path
        self.reading = reading or Reading()
        self.group = self.reading.group
        self.labels: Kind = labels
        self.notes: list[str] = []
        self.training_notes: list[str] = []

    def __str__(self) -> str:
        return self.text

    def say(self, line: str, *, of_training: bool = False) -> None:
        """Add a line to `notes`, once, and to `training_notes` if it concerns a training only."""
        line = printable(line)
        if line not in self.notes:
            self.notes.append(line)
            self.training_notes += [line] * of_training

    @property
    def is_folder(self) -> bool:
        """Whether the path is an existing folder."""
        return self.path.is_dir()

    def has_folder(self, *below: str) -> bool:
        """Return whether a folder exists; this lists nothing."""
        return self.path.joinpath(*below).is_dir()

    def only_folder(self) -> "Location | None":
        """Return the one folder in this folder, as unpacked archives have it; None if it has images, tables or more."""
        names = self._listing[0].get("", [])
        folders = list(self.image_counts())
        if len(folders) != 1 or any(name.lower().endswith((*_IMAGES, *_CONTAINERS)) for name in names):
            return None
        inner = Location(self.path / folders[0], self.reading, self.labels)
        inner.notes, inner.training_notes = self.notes, self.training_notes
        return inner

    @functools.cached_property
    def _listing(self) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
        """The names of the files in each folder; folders that are not listed, each with the reason; hidden names.

        The keys are relative paths, sorted; the root is "". Hidden folders end in a slash.
        """
        top = str(self.path)
        names: dict[str, list[str]] = {}
        omitted: dict[str, str] = {}
        hidden: list[str] = []

        def relative(folder: str) -> str:
            return folder[len(top) :].lstrip(os.sep)

        def unreadable(error: OSError) -> None:
            omitted[relative(str(error.filename))] = ": no permission to read this folder"

        for folder, inside, files in os.walk(top, followlinks=True, onerror=unreadable):
            key = relative(folder)
            hidden += [f"{name}/" for name in inside if is_hidden(name)] + [name for name in files if is_hidden(name)]
            inside[:] = [name for name in inside if not is_hidden(name)]
            names[key] = sorted(name for name in files if not is_hidden(name))
            for name in [name for name in inside if _links_to_parent(Path(folder, name))]:  # would never end
                omitted[str(Path(key, name))] = " is a symbolic link to a folder that contains it. Remove the link"
                inside.remove(name)
        return dict(sorted(names.items())), omitted, hidden

    @functools.cached_property
    def _files(self) -> dict[str, tuple[list[str], list[str]]]:
        """The images and the other files in each folder of the listing; images whose name is not UTF-8 are others."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for folder, names in self._listing[0].items():
            found[folder], start = ([], []), f"{self.path / folder}{os.sep}"
            for name in names:
                found[folder][not is_image(name) or _is_in_other_encoding(start + name)].append(name)
        return found

    def _below(self, below: tuple[str, ...]) -> dict[str, tuple[list[str], list[str]]]:
        """Return images and other files of a folder and all folders in it; raise `DataError` if one is not listed."""
        start = str(Path(*below)) if below else ""
        for folder, reason in self._listing[1].items():
            if _is_below(folder, start):
                raise errors.DataError(f"{self.path / folder}{reason}.")
        return {folder: files for folder, files in self._files.items() if _is_below(folder, start)}

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
            DataError: a folder at any depth cannot be read, or is a link to a folder that contains it; or there are
                images of a kind that is not read, unless `on_broken` is "skip".
        """
        return [file for files in self.images_by_folder(*below).values() for file in files]

    def images_by_folder(self, *below: str) -> dict[str, list[str]]:
        """Return the paths of `images` by the folder in this folder, at any depth; "" has the images in none.

        Folders without images are keys too.
        """
        start = str(Path(*below)) if below else ""
        found: dict[str, list[str]] = {"": []}
        unread: list[str] = []
        for folder, (images, others) in self._below(below).items():
            first = folder[len(start) :].lstrip(os.sep).partition(os.sep)[0]
            path = f"{self.path / folder}{os.sep}"
            found.setdefault(first, []).extend([path + name for name in images])
            unread += [path + name for name in others if name.lower().endswith(_IMAGES_AND_UNREAD)]
        if unread:
            self._refuse(unread)
        return found

    def image_counts(self) -> dict[str, int]:
        """Return the number of images in each folder of the root, at any depth, as far as it can be read."""
        counts: dict[str, int] = {}
        for folder, (images, _) in self._files.items():
            first = folder.partition(os.sep)[0]
            counts[first] = counts.get(first, 0) + len(images)
        return {name: count for name, count in counts.items() if name}

    def _refuse(self, files: list[str]) -> None:
        """Raise for images of a kind that is not read, or say that they are left out."""
        kind, advice = unread_kind(files[0]) or ("", "")
        which = printable(files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} others")
        if self.reading.on_broken == "skip":
            self.say(f"{which}: {kind} is not read; left out")
        else:
            raise errors.DataError(
                f"{which}: {kind} is not read. {advice}, or add --on-broken skip to leave out what cannot be read."
            )

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the sorted paths of all files that are no images and have a suffix, at any depth.

        Folders that cannot be read are left out.
        """
        return sorted(
            self.path / folder / name
            for folder, (_, others) in self._files.items()
            for name in others
            if name.endswith(suffixes)
        )

    def tables(self, *below: str) -> list[Path]:
        """Return the sorted paths of the tables directly in a folder."""
        _, names = self._files.get(str(Path(*below)) if below else "", ([], []))
        return [self.path.joinpath(*below, name) for name in names if name.lower().endswith(TABLES)]

    def say_ignored(self) -> None:
        """Add a note about hidden names, and about files that are neither images nor tables."""
        hidden = self._listing[2]
        folders = [name for name in hidden if name.endswith("/")]
        other = [
            name
            for _, names in self._files.values()
            for name in names
            if not name.lower().endswith((*_CONTAINERS, *_IMAGES_AND_UNREAD)) and name != "classes.txt"
        ]
        groups = {
            "hidden folder": folders,
            "hidden file": [name for name in hidden if not name.endswith("/")],
            "file of another kind": other,
        }
        parts = [counted(len(names), what) for what, names in groups.items() if names]
        if parts:
            examples = [name for names in groups.values() for name, _ in Counter(names).most_common(2)]
            self.say(f"{' and '.join(parts)} ignored ({_validation.listed(examples, 6)})")

    def content(self) -> str:
        """Return the first names in the folder, and the number of images by depth, as text for an error message."""
        names = sorted(path.name for path in self.path.iterdir())
        depths: Counter[int] = Counter()
        for folder, (files, _) in self._files.items():
            depths[len(Path(folder).parts)] += len(files)
        images = ", ".join(f"{count:,} {_DEPTHS[min(depth, 3)]}" for depth, count in sorted(depths.items()) if count)
        return (_validation.listed(names, most=8) or "nothing") + (f" (images: {images})" if images else "")


_DEPTHS = ("in it", "one folder below", "two folders below", "deeper")


def unread_kind(name: str) -> tuple[str, str] | None:
    """Return what an image that is not read is, and what to do about it; None for other files."""
    lower = name.lower()
    if is_image(name) and _is_in_other_encoding(name):
        return "a name in another encoding than UTF-8", "Rename the file or folder"
    found = (of_suffix for suffix, of_suffix in _UNREAD.items() if lower.endswith(suffix))
    return next(((kind, f"Save as {other}") for kind, other in found), None)


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

    def file(self, index: int) -> str:
        return self._files[index]

    def subset(self, chosen: Sequence[int]) -> "EncodedFiles":
        return EncodedFiles([self._files[index] for index in chosen])
