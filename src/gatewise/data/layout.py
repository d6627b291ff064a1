"""Which folders, files and names are splits, and which folders are classes."""

import re
from collections.abc import Iterable
from pathlib import Path

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.wording import counted
from gatewise.data.folders import Location
from gatewise.data.reading import NO_SPLIT, Reading

SPLIT_WORDS = {  # the words by which the library `datasets` knows the splits
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
MASK_FOLDERS = ("masks", "mask", "segmentationclass", "annotations", "labels", "label")  # the likeliest first
_BETWEEN = re.compile(r"[-._\s\d]+")


def split_of(name: str) -> str | None:
    """Return the split that a name means, or None: one of its words names a split, and no other word another.

    >>> split_of("seg_train"), split_of("Val2017"), split_of("train_val"), split_of("bus")
    ('train', 'validation', None, None)
    """
    words = set(_BETWEEN.split(name.lower()))
    found = [split for split, known in SPLIT_WORDS.items() if words.intersection(known)]
    return found[0] if len(found) == 1 else None


def is_left_out(split: str, reading: Reading) -> bool:
    """Return whether a split is not even read: that of test images, if no option asks for it."""
    return split == "test" and reading.test_split == NO_SPLIT and split_of(str(reading.validation_split)) != "test"


def split_of_file(location: Location, file: Path) -> str | None:
    """Return the split that the name of a file, or of the folder in the location that contains it, means, or None."""
    inside = location.is_folder and file.parent != location.path
    return split_of(file.stem) or (split_of(file.parent.name) if inside else None)


def by_split(where: object, names: Iterable[str]) -> dict[str, str]:
    """Return the name of each split among names, in the order train, validation, test.

    Raises:
        DataError: two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in found:
            raise errors.DataError(f"{where}: is {found[split]} or {name} the {split} split? Rename or move one.")
        if split is not None:
            found[split] = name
    return {split: found[split] for split in SPLIT_WORDS if split in found}


def split_folders(location: Location) -> dict[str, str]:
    """Return the folder of each split; {} if the folders are not named as splits.

    A folder named as a split counts if every folder next to it with images is one too, or if it has class folders or a
    table itself: in bus/, car/ and train/ with images, train is a class.

    Raises:
        DataError: two folders are named as one split, or it is not clear whether a folder is a split or a class.
    """
    counts = location.image_counts()
    named = [name for name, count in counts.items() if split_of(name) and (count or location.tables(name))]
    others = [name for name, count in counts.items() if count and name not in named]
    if not others:
        return by_split(location, named)
    found = by_split(location, [n for n in named if class_folders(location, n) or location.tables(n)])
    if len(found) == 1 and not location.tables(*found.values()):
        (folder,) = found.values()
        raise errors.DataError(
            f"{location}: is {folder}/ a split with classes in it, or a class next to {_validation.listed(others, 5)}? "
            f"Rename it, or move the others away."
        )
    if found:
        count = counted(sum(counts[name] for name in others), "image")
        location.say(f"{count} outside of the splits not used ({_validation.listed(others, 5)})")
    return found


def class_folders(location: Location, *below: str) -> dict[str, list[str]]:
    """Return the image files of each folder with images in a folder."""
    return {
        name: files for name, files in location.images_by_folder(*inner(location, *below)).items() if name and files
    }


def inner(location: Location, *below: str) -> tuple[str, ...]:
    """Return a folder, or the one of the same name in it, as unpacked archives have it: seg_train/seg_train/."""
    if below and location.folders(*below) == [below[-1]]:
        return *below, below[-1]
    return below
