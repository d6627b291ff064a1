"""Images with masks: in parquet files, in folders images/ and masks/, or as torchvision lays out Pascal VOC."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gatewise import _checks
from gatewise.data.folders import EncodedFiles, is_image
from gatewise.data.images import Encoded
from gatewise.data.tables import IMAGE_COLUMNS, SPLITS, EncodedRows, listed, read_table, split_files
from gatewise.data.torchvision_sets import default_root
from gatewise.files import read_text

MASK_COLUMNS = ("mask", "label", "annotation", "segmentation")
VOC = {  # where torchvision puts each year
    f"voc{year}": f"{'TrainVal/' if year == 2011 else ''}VOCdevkit/VOC{year}" for year in range(2007, 2013)
}
VOC_CLASSES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
_HELD_OUT = 10  # where there are no splits, every tenth pair is for validation
EncodedPairs = tuple[Encoded, Encoded]  # images and masks


def read_pairs(source: str | Path) -> tuple[dict[str, EncodedPairs], tuple[str, ...]]:
    """Return both splits of whatever `source` is, and the names of the classes, () where they are not told."""
    name, folder = str(source), Path(source)
    if name in VOC and not folder.exists():
        return _read_voc(default_root(), name, download=True)
    if not folder.is_dir():
        there = "is a file" if folder.exists() else "does not exist"
        raise _checks.DataError(
            f"data folder {name!r} {there}; for task segment expected a folder with images and masks, or one of "
            f"{', '.join(VOC)}."
        )
    if years := sorted(name for name, inside in VOC.items() if (folder / inside).is_dir()):
        if len(years) > 1:
            listed = " and ".join(str(folder / VOC[name]) for name in years)
            raise _checks.DataError(f"{folder} holds {listed}; which is meant? Give a folder with one of them.")
        return _read_voc(folder, years[0], download=False)
    if next(folder.rglob("*.parquet"), None) is not None:
        return _read_parquet(folder), named_classes(folder)
    return _read_folders(folder), named_classes(folder)


def named_classes(folder: Path) -> tuple[str, ...]:
    """Return the names in classes.txt, one a line in the order of the values; () where there is no such file."""
    file = folder / "classes.txt"
    if not file.exists():
        return ()
    return checked_names(str(file), read_text(file).removeprefix("\ufeff").rstrip().splitlines())


def checked_names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes in the order of their values; an empty one and one given twice are refused."""
    names = tuple(name.strip() for name in names)
    for value, name in enumerate(names):
        if not name:
            raise _checks.DataError(f"{where}: class {value} has no name. Give each value of the masks a name.")
        if name in names[:value]:
            raise _checks.DataError(f"{where}: {name!r} is given twice. Give each class a name of its own.")
    return names


def _read_parquet(folder: Path) -> dict[str, EncodedPairs]:
    return {split: _of_tables(split_files(folder, split)) for split in SPLITS}


def _of_tables(files: list[Path]) -> EncodedPairs:
    tables = [(str(file), read_table(file)) for file in files]
    parts: list[list[tuple[str, Any]]] = []
    for what, known in (("image", IMAGE_COLUMNS), ("mask", MASK_COLUMNS)):
        parts.append([(where, table[_column(where, table, what, known)]) for where, table in tables])
    if not any(len(table) for _, table in tables):
        raise _checks.DataError(f"{files[0]} has no rows; expected images and masks.")
    images, masks = map(EncodedRows, parts)
    return images, masks


def _column(where: str, table: Any, what: str, known: tuple[str, ...]) -> str:
    found = next((name for name in known if name in table.column_names), None)
    if found is None:
        found = listed(table.column_names)
        raise _checks.DataError(f"{where}: expected columns 'image' and 'mask', found {found}; no {what}.")
    if not any(kind in str(table.schema.field(found).type) for kind in ("struct", "binary", "string")):
        raise _checks.DataError(
            f"{where}: column {found!r} holds {table.schema.field(found).type}, not image files. "
            f"For one label an image leave task at classify."
        )
    return found


def _read_folders(folder: Path) -> dict[str, EncodedPairs]:
    """Return both splits of train/images + train/masks, images/train + masks/train, or images + masks undivided."""
    splits: dict[str, EncodedPairs] = {}
    for split, names in SPLITS.items():
        ways = [(folder / name / "images", folder / name / "masks") for name in names]
        ways += [(folder / "images" / name, folder / "masks" / name) for name in names]
        found = next((way for way in ways if way[0].is_dir() or way[1].is_dir()), None)
        if found is not None:
            splits[split] = _encoded(list(_matched(*found)))
    if set(splits) == set(SPLITS):
        return splits
    if not splits and (folder / "images").is_dir():
        pairs = list(_matched(folder / "images", folder / "masks"))
        if len(pairs) < _HELD_OUT:
            raise _checks.DataError(
                f"{folder} has {len(pairs)} pairs and no splits; expected at least {_HELD_OUT}, of which every tenth "
                f"is held out for validation, or train/ and val/ with images/ and masks/ in each."
            )
        train = [pair for number, pair in enumerate(pairs, 1) if number % _HELD_OUT]
        return {"train": _encoded(train), "validation": _encoded(pairs[_HELD_OUT - 1 :: _HELD_OUT])}
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    missing = " and ".join(split for split in SPLITS if split not in splits)
    raise _checks.DataError(
        f"{folder} has no {missing} split: expected train/ and val/ with images/ and masks/ in each, images/ and "
        f"masks/ with train/ and val/ in each, or parquet files; found {there}. "
        f"For folders of classes leave task at classify."
    )


def _matched(images: Path, masks: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of images and masks of one name, in the order of their names; refuse any without a partner."""
    for path in (images, masks):
        if not path.is_dir():
            raise _checks.DataError(f"{path} does not exist; expected a folder of files as in its neighbour.")
    own, other = _by_stem(images), _by_stem(masks)
    for stem in sorted(own.keys() ^ other.keys()):
        lonely, where, kind = (own[stem], masks, "mask") if stem in own else (other[stem], images, "image")
        count = len(own.keys() ^ other.keys())
        raise _checks.DataError(
            f"{lonely} has no {kind}: expected {where / stem}.* ({count} files have no partner). "
            f"Add it, or remove this."
        )
    if not own:
        raise _checks.DataError(f"{images} has no image files.")
    for stem in sorted(own):
        yield own[stem], other[stem]


def _by_stem(folder: Path) -> dict[str, str]:
    """Return the image files at any depth by their path without suffix."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if not is_image(path.name):
            continue
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise _checks.DataError(f"{path} and {found[stem]} have one name; which of them is meant? Remove one.")
        found[stem] = str(path)
    return found


def _encoded(pairs: list[tuple[str, str]]) -> EncodedPairs:
    images, masks = (EncodedFiles([pair[part] for pair in pairs]) for part in (0, 1))
    return images, masks


def _read_voc(root: Path, name: str, *, download: bool) -> tuple[dict[str, EncodedPairs], tuple[str, ...]]:
    """Return the splits train and val of Pascal VOC's segmentation from torchvision's files under `root`."""
    datasets = _checks.optional_module("torchvision.datasets", f"the data set {name}")
    there = (root / VOC[name]).is_dir()
    splits = {}
    for split, image_set in (("train", "train"), ("validation", "val")):
        try:
            found = datasets.VOCSegmentation(str(root), name[3:], image_set, download=download and not there)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            todo = "is not complete" if there else "could not be downloaded"
            raise _checks.DataError(f"{root / VOC[name]} {todo} ({reason}).") from None
        splits[split] = _encoded([(str(a), str(b)) for a, b in zip(found.images, found.masks, strict=True)])
    return splits, tuple(VOC_CLASSES.split(","))
