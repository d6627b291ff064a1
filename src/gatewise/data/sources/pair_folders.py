"""Images and masks in two folders: train/images/ and train/masks/, images/train/ and masks/train/, or undivided."""

from collections.abc import Iterator
from pathlib import Path

from gatewise import errors
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.masks import named_classes
from gatewise.data.sources.registry import SPLITS, MaskedSource, MaskedSplit, register_source

_HELD_OUT = 10  # without splits, every tenth pair is used for validation
Folders = tuple[tuple[str, ...], tuple[str, ...]]  # of images and of masks


@register_source("pair_folders", help="a folder with images/ and masks/ (in train/ and val/, or undivided)", order=70)
class PairFolders(MaskedSource):
    """A folder with images and masks of the same names; without splits every tenth pair is used for validation."""

    def matches(self, location: Location) -> bool:
        undivided = (("images",), ("masks",))
        layouts = (undivided, *(layout for names in SPLITS.values() for layout in _layouts(names)))
        return any(location.has_folder(*below) for layout in layouts for below in layout)

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        classes = named_classes(location.path)
        splits: dict[str, MaskedSplit] = {}
        for split, names in SPLITS.items():
            found = (folders for folders in _layouts(names) if any(location.has_folder(*below) for below in folders))
            folders = next(found, None)
            if folders is not None:
                splits[split] = _encoded(list(_matched(location, *folders)), classes)
        if set(splits) == set(SPLITS):
            return splits
        if not splits and location.has_folder("images"):
            pairs = list(_matched(location, ("images",), ("masks",)))
            if len(pairs) < _HELD_OUT:
                raise errors.DataError(
                    f"{location} has {len(pairs)} pairs and no splits; expected at least {_HELD_OUT} pairs (every "
                    f"tenth is used for validation), or train/ and val/ with images/ and masks/ in each."
                )
            train = [pair for number, pair in enumerate(pairs, 1) if number % _HELD_OUT]
            held_out = pairs[_HELD_OUT - 1 :: _HELD_OUT]
            return {"train": _encoded(train, classes), "validation": _encoded(held_out, classes)}
        missing = " and ".join(split for split in SPLITS if split not in splits)
        raise errors.DataError(
            f"{location} has no {missing} split: expected train/ and val/ with images/ and masks/ in each, or images/ "
            f"and masks/ with train/ and val/ in each; found {location.content()}."
        )


def _layouts(names: tuple[str, ...]) -> list[Folders]:
    """Return the folders in which images and masks of a split can be, given the names of the split."""
    layouts: list[Folders] = [((name, "images"), (name, "masks")) for name in names]
    return layouts + [(("images", name), ("masks", name)) for name in names]


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


def _encoded(pairs: list[tuple[str, str]], classes: tuple[str, ...]) -> MaskedSplit:
    images, masks = (EncodedFiles([pair[part] for pair in pairs]) for part in (0, 1))
    return MaskedSplit(images, masks, classes)
