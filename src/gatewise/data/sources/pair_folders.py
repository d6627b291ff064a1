"""Images and masks in two folders, in train/ and val/, divided into splits themselves or undivided; or side by side."""

import re
from collections.abc import Iterator
from pathlib import Path

from gatewise import errors
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.layout import MASK_FOLDERS, by_split, is_left_out, split_of
from gatewise.data.masks import named_classes
from gatewise.data.reading import OtherReading
from gatewise.data.sources.registry import MaskedSource, MaskedSplit, register_source

IMAGES = ("images", "image", "imgs", "img", "jpegimages")  # names of folders, in lower case, the likeliest first
_MASK = re.compile(r"[-_. ](masks?|seg|segmentation|annotations?|labels?|gt)$", re.IGNORECASE)  # ends of names
_IMAGE = re.compile(r"[-_. ](images?|imgs?|sat)$", re.IGNORECASE)
Folder = tuple[str, ...]
Folders = tuple[Folder, Folder]  # of images and of masks; the same for both where they lie side by side


@register_source(
    "pair_folders",
    help="a folder with images/ and masks/, or with NAME.* and NAME_mask.* (in train/ and val/, or undivided)",
    order=70,
)
class PairFolders(MaskedSource):
    """A folder with images and masks of the same names, in the folders of splits or undivided.

    The folders are named as `IMAGES` and `MASK_FOLDERS`. A mask may be named after its image with an ending such as
    _mask, -seg or _gt; then images and masks may also lie in one folder.
    """

    def matches(self, location: Location) -> bool:
        return location.is_folder and bool(_layouts(location))

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        classes = named_classes(location.path)
        layouts = _layouts(location)
        if "train" not in layouts and not isinstance(location.reading, OtherReading):
            raise errors.DataError(
                f"{location} has no train split: expected train/ and val/ with images/ and masks/ in each, or images/ "
                f"and masks/ with train/ and val/ in each, or undivided; found {location.content()}."
            )
        layouts = {split: folders for split, folders in layouts.items() if not is_left_out(split, location.reading)}
        if "test" in layouts and not location.images(*layouts["test"][1]):
            location.say(f"{'/'.join(layouts['test'][0])}/ has no masks and is not used")
            del layouts["test"]
        return {split: _encoded(location, folders, classes) for split, folders in layouts.items()}


def _layouts(location: Location) -> dict[str, Folders]:
    """Return the folders of images and of masks of each split; undivided ones are train."""
    counts = location.image_counts()
    divided = {name: _folders(location, name) for name in counts if split_of(name)}
    if splits := by_split(location, [name for name, folders in divided.items() if folders is not None]):
        for name in [name for name, folders in divided.items() if folders is None and counts[name]]:
            location.say(f"{name}/ has no masks and is not used")
        return {split: folders for split, name in splits.items() if (folders := divided[name]) is not None}
    whole = _folders(location)
    if whole is None:
        return {}
    images, masks = whole
    inside = {name for below in whole if location.has_folder(*below) for name in location.folders(*below)}
    if images != masks and (splits := by_split(location, sorted(inside))):
        return {split: ((*images, name), (*masks, name)) for split, name in splits.items()}
    return {"train": whole}


def _folders(location: Location, *below: str) -> Folders | None:
    """Return where the images and masks in a folder are, or None; of two missing folders one may be named."""
    names = {name.lower(): name for name in location.folders(*below)}
    found = [next((names[name] for name in known if name in names), None) for known in (IMAGES, MASK_FOLDERS)]
    if any(found):
        images, masks = found
        return (*below, images or "images"), (*below, masks or "masks")
    direct = location.images_by_folder(*below).get("", [])
    return (below, below) if any(_MASK.search(Path(file).stem) for file in direct) else None


def _matched(location: Location, images: Folder, masks: Folder) -> Iterator[tuple[str, str]]:
    """Yield the paths of each image and its mask, sorted by name; raise `DataError` if one is missing."""
    paths = [location.path.joinpath(*below) for below in (images, masks)]
    for path, below in zip(paths, (images, masks), strict=True):
        if not location.has_folder(*below):
            raise errors.DataError(
                f"{path} does not exist; expected {paths[0]} and {paths[1]} with files of the same names."
            )
    files = [location.images(*below) for below in (images, masks)]
    if images == masks:
        files = [
            [file for file in files[0] if bool(_MASK.search(Path(file).stem)) is is_mask] for is_mask in (False, True)
        ]
    own, other = (_by_stem(path, part) for path, part in zip(paths, files, strict=True))
    if own.keys() != other.keys():
        own, other = (_by_stem(path, part, end) for path, part, end in zip(paths, files, (_IMAGE, _MASK), strict=True))
    if own and not other:
        _check_no_polygons(location, paths[1])
    for stem in sorted(own.keys() ^ other.keys()):
        single, where, kind = (own[stem], paths[1], "mask") if stem in own else (other[stem], paths[0], "image")
        count = len(own.keys() ^ other.keys())
        ending = "*" if kind == "mask" and images == masks else ".*"
        raise errors.DataError(
            f"{single} has no {kind}: expected {where / stem}{ending} ({count} files have no partner). "
            f"Add the {kind}, or remove this file."
        )
    if not own:
        raise errors.DataError(f"{paths[0]} has no image files.")
    for stem in sorted(own):
        yield own[stem], other[stem]


def _by_stem(folder: Path, paths: list[str], end: re.Pattern[str] | None = None) -> dict[str, str]:
    """Return image files by relative path without suffix, and without an `end` of the name."""
    files: dict[str, str] = {}
    for path in sorted(paths):
        stem = str(Path(path).relative_to(folder).with_suffix(""))
        stem = stem if end is None else end.sub("", stem)
        if stem in files:
            raise errors.DataError(f"{path} and {files[stem]} have the same name apart from the suffix. Remove one.")
        files[stem] = path
    return files


def _check_no_polygons(location: Location, folder: Path) -> None:
    """Raise if a folder of masks has annotations of another kind."""
    for suffix, kind in ((".txt", "YOLO polygons"), (".json", "COCO or LabelMe polygons"), (".xml", "VOC boxes")):
        if any(file.is_relative_to(folder) for file in location.with_suffix(suffix)):
            raise errors.DataError(f"{folder}/*{suffix} are {kind}, which are not read; expected masks as image files.")


def _encoded(location: Location, folders: Folders, classes: tuple[str, ...]) -> MaskedSplit:
    """Return the pairs of one split."""
    pairs = list(_matched(location, *folders))
    images, masks = (EncodedFiles([pair[part] for pair in pairs]) for part in (0, 1))
    return MaskedSplit(images, masks, classes, shown="" if folders[0] == ("images",) else f"{'/'.join(folders[0])}/")
