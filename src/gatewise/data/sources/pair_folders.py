"""Images and masks in two folders: train/images/ and train/masks/, images/train/ and masks/train/, or undivided."""

from collections.abc import Iterator
from pathlib import Path

from gatewise import errors
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.layout import by_split
from gatewise.data.masks import named_classes
from gatewise.data.sources.registry import MaskedSource, MaskedSplit, register_source

Folders = tuple[tuple[str, ...], tuple[str, ...]]  # of images and of masks


@register_source("pair_folders", help="a folder with images/ and masks/ (in train/ and val/, or undivided)", order=70)
class PairFolders(MaskedSource):
    """A folder with images and masks of the same names, in the folders of splits or undivided."""

    def matches(self, location: Location) -> bool:
        return location.is_folder and bool(_layouts(location))

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        classes = named_classes(location.path)
        layouts = _layouts(location)
        if "train" not in layouts:
            raise errors.DataError(
                f"{location} has no train split: expected train/ and val/ with images/ and masks/ in each, or images/ "
                f"and masks/ with train/ and val/ in each, or undivided; found {location.content()}."
            )
        return {split: _encoded(location, folders, classes) for split, folders in layouts.items()}


def _layouts(location: Location) -> dict[str, Folders]:
    """Return the folders of images and of masks of each split; undivided ones are train."""
    whole = (("images",), ("masks",))
    inside = {name for below in whole if location.has_folder(*below) for name in location.folders(*below)}
    outside = [name for name in location.image_counts() if any(location.has_folder(name, *below) for below in whole)]
    if splits := by_split(location, outside):
        return {split: ((name, "images"), (name, "masks")) for split, name in splits.items()}
    if splits := by_split(location, sorted(inside)):
        return {split: (("images", name), ("masks", name)) for split, name in splits.items()}
    return {"train": whole} if any(location.has_folder(*below) for below in whole) else {}


def _matched(location: Location, images: tuple[str, ...], masks: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the paths of each image and its mask, sorted by name; raise `DataError` if one is missing."""
    paths = [location.path.joinpath(*below) for below in (images, masks)]
    for path, below in zip(paths, (images, masks), strict=True):
        if not location.has_folder(*below):
            raise errors.DataError(
                f"{path} does not exist; expected {paths[0]} and {paths[1]} with files of the same names."
            )
    own, other = _by_stem(location, images), _by_stem(location, masks)
    for stem in sorted(own.keys() ^ other.keys()):
        single, where, kind = (own[stem], paths[1], "mask") if stem in own else (other[stem], paths[0], "image")
        count = len(own.keys() ^ other.keys())
        raise errors.DataError(
            f"{single} has no {kind}: expected {where / stem}.* ({count} files have no partner). "
            f"Add the {kind}, or remove this file."
        )
    if not own:
        raise errors.DataError(f"{paths[0]} has no image files.")
    for stem in sorted(own):
        yield own[stem], other[stem]


def _by_stem(location: Location, below: tuple[str, ...]) -> dict[str, str]:
    """Return the image files at any depth, by relative path without suffix."""
    folder, files = location.path.joinpath(*below), dict[str, str]()
    for path in sorted(location.images(*below)):
        stem = str(Path(path).relative_to(folder).with_suffix(""))
        if stem in files:
            raise errors.DataError(f"{path} and {files[stem]} have the same name apart from the suffix. Remove one.")
        files[stem] = path
    return files


def _encoded(location: Location, folders: Folders, classes: tuple[str, ...]) -> MaskedSplit:
    """Return the pairs of one split."""
    pairs = list(_matched(location, *folders))
    images, masks = (EncodedFiles([pair[part] for pair in pairs]) for part in (0, 1))
    return MaskedSplit(images, masks, classes, shown="" if folders[0] == ("images",) else f"{'/'.join(folders[0])}/")
