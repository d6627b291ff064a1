"""Images in class folders: train/CLASS/*.jpg and val/CLASS/*.jpg, as torchvision's ImageFolder reads them."""

import os

from gatewise import errors
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.sources.registry import SPLITS, LabelledSource, LabelledSplit, register_source
from gatewise.data.tables import class_names

_OF_MASKS = {"mask", "label", "annotation", "segmentation"}


@register_source("class_folders", help="a folder with train/CLASS/ and val/CLASS/", order=60)
class ClassFolders(LabelledSource):
    """A folder with files SPLIT/CLASS/*; the folder of the validation split may have any name in `SPLITS`."""

    def matches(self, location: Location) -> bool:
        return any(location.has_folder(name) for names in SPLITS.values() for name in names)

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        splits: dict[str, LabelledSplit] = {}
        for split, names in SPLITS.items():
            name = next((name for name in names if location.has_folder(name)), None)
            if name is None:
                expected = " or ".join(f"{name}/" for name in names)
                raise errors.DataError(
                    f"{location} has no {split} split: expected {expected} with class folders, found "
                    f"{location.content()}."
                )
            splits[split] = _read_split(location, name)
        return splits


def _read_split(location: Location, split: str) -> LabelledSplit:
    folder, classes = location.path / split, tuple(location.folders(split))
    if not classes:
        raise errors.DataError(f"{folder}: Couldn't find any class folder in {folder}.")
    singular = {name.lower().rstrip("s") for name in classes}
    if singular <= _OF_MASKS | {"image", "img"} and singular & _OF_MASKS:
        raise errors.DataError(
            f"{folder}: expected one folder per class, with images of that class, found folders of images and masks "
            f"({', '.join(classes)}). For masks set task to segment."
        )
    images: dict[str, list[str]] = {name: [] for name in classes}
    for file in location.images(split):
        name, _, inside = file.removeprefix(f"{folder}{os.sep}").partition(os.sep)
        if inside:
            images[name].append(file)
    if empty := [name for name, files in images.items() if not files]:
        raise errors.DataError(f"{folder}: Found no valid file for the classes {', '.join(empty)}.")
    labels = [label for label, files in enumerate(images.values()) for _ in files]
    names = class_names(str(folder), labels, classes)
    return LabelledSplit(EncodedFiles([file for files in images.values() for file in files]), labels, names)
