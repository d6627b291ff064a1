"""Read images with masks from parquet files, folders images/ and masks/, or torchvision's files of Pascal VOC."""

# pyright: basic

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_text
from gatewise.data.folders import EncodedFiles, is_image
from gatewise.data.images import EncodedSource
from gatewise.data.tables import IMAGE_COLUMNS, SPLITS, EncodedRows, listed, read_table, split_files
from gatewise.data.torchvision_sets import default_root

MASK_COLUMNS = ("mask", "label", "annotation", "segmentation")
VOC = {  # torchvision's folder for each year
    f"voc{year}": f"{'TrainVal/' if year == 2011 else ''}VOCdevkit/VOC{year}" for year in range(2007, 2013)
}
VOC_CLASSES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
_HELD_OUT = 10  # without splits, every tenth pair is used for validation
EncodedPairs = tuple[EncodedSource, EncodedSource]  # images and masks


def read_pairs(source: str | Path) -> tuple[dict[str, EncodedPairs], tuple[str, ...]]:
    """Return both splits of a data set with masks, and its class names, () if they are not stored.

    Args:
        source: a name or folder as in `load_pairs`.

    Raises:
        DataError: a folder, split, image or mask is missing, or a file cannot be read.
    """
    name, folder = str(source), Path(source)
    if name in VOC and not folder.exists():
        return _read_voc(default_root(), name, download=True)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise errors.DataError(
            f"data folder {name!r} {problem}; for task segment expected a folder with images and masks, or one of "
            f"{', '.join(VOC)}."
        )
    if years := sorted(name for name, inside in VOC.items() if (folder / inside).is_dir()):
        if len(years) > 1:
            listed = " and ".join(str(folder / VOC[name]) for name in years)
            raise errors.DataError(f"{folder} contains several years: {listed}. Expected a folder with one of them.")
        return _read_voc(folder, years[0], download=False)
    if next(folder.rglob("*.parquet"), None) is not None:
        return _read_parquet(folder), named_classes(folder)
    return _read_folders(folder), named_classes(folder)


def named_classes(folder: Path) -> tuple[str, ...]:
    """Return the class names in classes.txt (one per line, in the order of the values), or () without this file."""
    file = folder / "classes.txt"
    if not file.exists():
        return ()
    return checked_names(str(file), read_text(file).removeprefix("\ufeff").rstrip().splitlines())


def checked_names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return class names without surrounding spaces; raise `DataError` if one is empty or occurs twice."""
    names = tuple(name.strip() for name in names)
    for value, name in enumerate(names):
        if not name:
            raise errors.DataError(f"{where}: class {value} has no name. Give each mask value a name.")
        if name in names[:value]:
            raise errors.DataError(f"{where}: {name!r} is given twice. Give each class a different name.")
    return names


def _read_parquet(folder: Path) -> dict[str, EncodedPairs]:
    return {split: _of_tables(split_files(folder, split)) for split in SPLITS}


def _of_tables(files: list[Path]) -> EncodedPairs:
    tables = [(str(file), read_table(file)) for file in files]
    parts: list[list[tuple[str, Any]]] = []
    for what, known in (("image", IMAGE_COLUMNS), ("mask", MASK_COLUMNS)):
        parts.append([(where, table[_column(where, table, what, known)]) for where, table in tables])
    if not any(len(table) for _, table in tables):
        raise errors.DataError(f"{files[0]} has no rows; expected images and masks.")
    images, masks = map(EncodedRows, parts)
    return images, masks


def _column(where: str, table: Any, what: str, known: tuple[str, ...]) -> str:
    found = next((name for name in known if name in table.column_names), None)
    if found is None:
        found = listed(table.column_names)
        raise errors.DataError(f"{where}: expected columns 'image' and 'mask', found {found}; {what} is missing.")
    if not any(kind in str(table.schema.field(found).type) for kind in ("struct", "binary", "string")):
        raise errors.DataError(
            f"{where}: expected image files in column {found!r}, found {table.schema.field(found).type}. "
            f"For one label per image set task to classify."
        )
    return found


def _read_folders(folder: Path) -> dict[str, EncodedPairs]:
    """Return both splits from train/images and train/masks, images/train and masks/train, or images and masks."""
    splits: dict[str, EncodedPairs] = {}
    for split, names in SPLITS.items():
        layouts = [(folder / name / "images", folder / name / "masks") for name in names]
        layouts += [(folder / "images" / name, folder / "masks" / name) for name in names]
        layout = next((paths for paths in layouts if paths[0].is_dir() or paths[1].is_dir()), None)
        if layout is not None:
            splits[split] = _encoded(list(_matched(*layout)))
    if set(splits) == set(SPLITS):
        return splits
    if not splits and (folder / "images").is_dir():
        pairs = list(_matched(folder / "images", folder / "masks"))
        if len(pairs) < _HELD_OUT:
            raise errors.DataError(
                f"{folder} has {len(pairs)} pairs and no splits; expected at least {_HELD_OUT} pairs (every tenth is "
                f"used for validation), or train/ and val/ with images/ and masks/ in each."
            )
        train = [pair for number, pair in enumerate(pairs, 1) if number % _HELD_OUT]
        return {"train": _encoded(train), "validation": _encoded(pairs[_HELD_OUT - 1 :: _HELD_OUT])}
    existing = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    missing = " and ".join(split for split in SPLITS if split not in splits)
    raise errors.DataError(
        f"{folder} has no {missing} split: expected train/ and val/ with images/ and masks/ in each, images/ and "
        f"masks/ with train/ and val/ in each, or parquet files; found {existing}. "
        f"For class folders set task to classify."
    )


def _matched(images: Path, masks: Path) -> Iterator[tuple[str, str]]:
    """Yield the paths of each image and its mask, sorted by name; raise `DataError` if one is missing."""
    for path in (images, masks):
        if not path.is_dir():
            raise errors.DataError(
                f"{path} does not exist; expected {images} and {masks} with files of the same names."
            )
    own, other = _by_stem(images), _by_stem(masks)
    for stem in sorted(own.keys() ^ other.keys()):
        single, where, kind = (own[stem], masks, "mask") if stem in own else (other[stem], images, "image")
        count = len(own.keys() ^ other.keys())
        raise errors.DataError(
            f"{single} has no {kind}: expected {where / stem}.* ({count} files have no partner). "
            f"Add the {kind}, or remove this file."
        )
    if not own:
        raise errors.DataError(f"{images} has no image files.")
    for stem in sorted(own):
        yield own[stem], other[stem]


def _by_stem(folder: Path) -> dict[str, str]:
    """Return the image files at any depth, by relative path without suffix."""
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if not is_image(path.name):
            continue
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in files:
            raise errors.DataError(f"{path} and {files[stem]} have the same name apart from the suffix. Remove one.")
        files[stem] = str(path)
    return files


def _encoded(pairs: list[tuple[str, str]]) -> EncodedPairs:
    images, masks = (EncodedFiles([pair[part] for pair in pairs]) for part in (0, 1))
    return images, masks


def _read_voc(root: Path, name: str, *, download: bool) -> tuple[dict[str, EncodedPairs], tuple[str, ...]]:
    """Return the splits train and val of Pascal VOC segmentation, and its class names, from torchvision's files."""
    datasets = _validation.import_optional("torchvision.datasets", f"the data set {name}")
    exists = (root / VOC[name]).is_dir()
    splits = {}
    for split, image_set in (("train", "train"), ("validation", "val")):
        try:
            dataset = datasets.VOCSegmentation(str(root), name[3:], image_set, download=download and not exists)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            problem = "is incomplete" if exists else "could not be downloaded"
            raise errors.DataError(f"{root / VOC[name]} {problem} ({reason}).") from None
        splits[split] = _encoded([(str(a), str(b)) for a, b in zip(dataset.images, dataset.masks, strict=True)])
    return splits, tuple(VOC_CLASSES.split(","))
