"""Images in class folders: train/CLASS/*.jpg and val/CLASS/*.jpg, as torchvision's ImageFolder reads them."""

import os
from pathlib import Path

from gatewise import _checks
from gatewise.data.images import Encoded, EncodedImages
from gatewise.data.tables import SPLITS, Split, class_names
from gatewise.files import read_bytes

_OF_MASKS = {"mask", "label", "annotation", "segmentation"}


class EncodedFiles(Encoded):
    """Images in files of their own."""

    def __init__(self, files: list[str]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        return self._files[index]

    def content(self, index: int) -> bytes:
        return read_bytes(Path(self._files[index]))


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits that are there: train, and validation, valid, val or test."""
    found = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLITS.items()
    }
    return {split: path for split, path in found.items() if path is not None}


def read_class_folders(folder: Path, image_size: int | None) -> dict[str, Split]:
    """Return both splits of a folder whose sub-folders are named after splits, and theirs after classes."""
    found = class_folders(folder)
    for split, names in SPLITS.items():
        if split not in found:
            wanted = " or ".join(f"{name}/" for name in names)
            there = ", ".join(sorted(path.name for path in folder.iterdir()))[:200]
            raise _checks.DataError(
                f"{folder} has no {split} split: expected {wanted} with class folders, found {there}."
            )
    return {split: _read_split(path, image_size) for split, path in found.items()}


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image: torchvision's list, and animations."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return path.lower().endswith((*IMG_EXTENSIONS, ".gif", ".avif"))


def _refuse_circles(folder: Path) -> None:
    """Refuse a link to a folder that it lies in: whoever follows two of those, as torchvision does, never ends."""
    for path, folders, _ in os.walk(folder, followlinks=True):
        for name in folders:
            link = Path(path, name)
            if link.is_symlink() and Path(path).resolve().is_relative_to(link.resolve()):
                raise _checks.DataError(f"{link} is a link to a folder that it lies in. Remove it.")


def _read_split(folder: Path, image_size: int | None) -> Split:
    torchvision = _checks.optional_module("torchvision.datasets", "reading class folders")
    for path in (folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())):
        if not os.access(path, os.R_OK | os.X_OK):  # os.walk would pass over it without a word
            raise _checks.DataError(f"{path}: no permission to read this folder.")
    _refuse_circles(folder)
    try:
        images = torchvision.ImageFolder(str(folder), is_valid_file=is_image)
    except FileNotFoundError as error:
        raise _checks.DataError(f"{folder}: {' '.join(str(error).split()).rstrip('.')}.") from None
    names = {name.lower().rstrip("s") for name in images.classes}
    if names <= _OF_MASKS | {"image", "img"} and names & _OF_MASKS:
        raise _checks.DataError(
            f"{folder}: the folders {', '.join(images.classes)} hold images and masks, which have a class for each "
            f"pixel; set task to segment for them. Expected one folder for each class, full of images of that class."
        )
    files, labels = zip(*images.samples, strict=True)
    found = EncodedImages(EncodedFiles(list(files)), labels, image_size)
    return found, class_names(str(folder), labels, tuple(images.classes))
