"""Images in class folders: train/CLASS/*.jpg and val/CLASS/*.jpg, as torchvision's ImageFolder reads them."""

import os
from pathlib import Path

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.data.images import EncodedImages, EncodedSource
from gatewise.data.tables import SPLITS, Split, class_names

_OF_MASKS = {"mask", "label", "annotation", "segmentation"}


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


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each split that exists: train, and the first of validation, valid, val and test."""
    paths = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLITS.items()
    }
    return {split: path for split, path in paths.items() if path is not None}


def read_class_folders(folder: Path, image_size: int | None) -> dict[str, Split]:
    """Return both splits of a folder with files SPLIT/CLASS/*.

    Raises:
        DataError: a split is missing or cannot be read.
    """
    paths = class_folders(folder)
    for split, names in SPLITS.items():
        if split not in paths:
            expected = " or ".join(f"{name}/" for name in names)
            existing = ", ".join(sorted(path.name for path in folder.iterdir()))[:200]
            raise errors.DataError(
                f"{folder} has no {split} split: expected {expected} with class folders, found {existing}."
            )
    return {split: _read_split(path, image_size) for split, path in paths.items()}


def is_image(path: str) -> bool:
    """Return whether a file has an image suffix: those of torchvision, .gif and .avif."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return path.lower().endswith((*IMG_EXTENSIONS, ".gif", ".avif"))


def _check_no_cycle(folder: Path) -> None:
    """Raise if a symbolic link points to a folder that contains it: with two of them torchvision never terminates."""
    for path, folders, _ in os.walk(folder, followlinks=True):
        for name in folders:
            link = Path(path, name)
            if link.is_symlink() and Path(path).resolve().is_relative_to(link.resolve()):
                raise errors.DataError(f"{link} is a symbolic link to a folder that contains it. Remove the link.")


def _read_split(folder: Path, image_size: int | None) -> Split:
    torchvision = _validation.import_optional("torchvision.datasets", "reading class folders")
    for path in (folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())):
        if not os.access(path, os.R_OK | os.X_OK):  # os.walk would skip it silently
            raise errors.DataError(f"{path}: no permission to read this folder.")
    _check_no_cycle(folder)
    try:
        images = torchvision.ImageFolder(str(folder), is_valid_file=is_image)
    except FileNotFoundError as error:
        raise errors.DataError(f"{folder}: {' '.join(str(error).split()).rstrip('.')}.") from None
    names = {name.lower().rstrip("s") for name in images.classes}
    if names <= _OF_MASKS | {"image", "img"} and names & _OF_MASKS:
        raise errors.DataError(
            f"{folder}: expected one folder per class, with images of that class, found folders of images and masks "
            f"({', '.join(images.classes)}). For masks set task to segment."
        )
    files, labels = zip(*images.samples, strict=True)
    encoded = EncodedImages(EncodedFiles(list(files)), labels, image_size)
    return encoded, class_names(str(folder), labels, tuple(images.classes))
