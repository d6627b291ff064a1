"""Find a data set by its name or folder, and decide whether it is held in memory."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gatewise import _validation, errors
from gatewise.data.digits import read_digits
from gatewise.data.folders import class_folders, read_class_folders
from gatewise.data.images import Dataset, EncodedImages, Images
from gatewise.data.masks import IGNORED, infer_mask_encoding
from gatewise.data.pair_readers import checked_names, read_pairs
from gatewise.data.pairs import SegmentationDataset, SegmentationSplit
from gatewise.data.tables import read_hub, read_parquet
from gatewise.data.torchvision_sets import FOLDERS, default_root, holds_torchvision_files, read_torchvision

LOADINGS = ("auto", "memory", "stream")
HUB = "hub:"
_HELD_PAIRS = 2000  # in one split up to which "auto" does so: decoding more would delay the start
_MEMORY_LIMIT = 2**30  # bytes of pixels in one split up to which "auto" decodes it once


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Which images, and how they are read; `load_dataset` and `load_pairs` explain the fields."""

    task: str
    data: str
    image_size: int | None = None
    loading: str = "auto"
    crop_size: int | None = None
    ignore_index: int = IGNORED
    foreground: str | None = None
    class_names: str | None = None

    def load(self) -> Dataset | SegmentationDataset:
        """Return images with labels, or for task segment with masks."""
        if self.task == "classify":
            return load_dataset(self.data, self.image_size, self.loading)
        return load_pairs(
            self.data,
            self.image_size,
            self.loading,
            crop_size=self.crop_size,
            ignore_index=self.ignore_index,
            foreground=self.foreground,
            class_names=self.class_names,
        )


def load_dataset(source: str | Path, image_size: int | None = None, loading: str = "auto") -> Dataset:
    """Load labelled images by name or from a folder.

    Args:
        source: "digits" (bundled with scikit-learn); "cifar10" or "cifar100" (torchvision's files, downloaded if they
            are missing); "hub:NAME" (a data set that the library `datasets` can load); or a folder that holds
            train*.parquet and validation*, val* or test*.parquet in the Hugging Face layout, or torchvision's CIFAR
            files, or train/CLASS/ and val/CLASS/ with images.
        image_size: scale the shorter side to this and crop the centre; needed where sizes differ.
        loading: "memory" decodes every image once, "stream" when it is needed, "auto" streams what would take more
            than 1 GiB a split.

    Refused with `DataError`, which names the file: a missing folder or split, an unreadable file, a truncated image,
    images of several sizes, a missing or negative label, a class without train images, fewer than two classes, classes
    that differ between splits. In streaming, an image is looked at when its turn comes; the encoded images of parquet
    files stay in memory, so a set larger than that wants "hub:FOLDER", which `datasets` maps from the disk.
    """
    if image_size is not None:
        _validation.check_integer_at_least(4, image_size=image_size)
    _validation.check_one_of("loading", loading, LOADINGS)
    if str(source) == "digits":
        if image_size is not None:
            raise errors.InvalidValueError(f"digits are 8x8, got image_size {image_size}. Leave it out.")
        return read_digits()
    splits = _read(source, image_size)
    (train, classes), (validation, other) = splits["train"], splits["validation"]
    _check_classes(str(source), classes, other)
    _check_no_empty_class(str(source), classes, train.labels)
    train, validation = (_held(images, loading) for images in (train, validation))
    if train.shape != validation.shape:
        sizes = [images.shape[1:] for images in (train, validation)]
        raise errors.DataError(f"{source}: train images are {sizes[0]}, validation images {sizes[1]}; set image_size.")
    return Dataset(str(source), classes, train, validation, padding=max(1, train.shape[1] // 8), flip=True)


def _read(source: str | Path, image_size: int | None) -> dict[str, Any]:
    """Return both splits, with their class names, of whatever `source` is."""
    name = str(source)
    if name.startswith(HUB):
        return read_hub(name.removeprefix(HUB), image_size)
    if name in FOLDERS and not Path(name).exists():
        return _own_size(read_torchvision(name, default_root()), name, image_size)
    folder = Path(source)
    if not folder.exists():
        raise errors.DataError(
            f"data folder {name!r} does not exist; expected digits, cifar10, cifar100, a folder, "
            f"or {HUB}NAME for a data set of the Hugging Face hub."
        )
    if not folder.is_dir():
        raise errors.DataError(f"{folder} is a file; expected 'digits' or a folder with train*.parquet or train/.")
    if found := holds_torchvision_files(folder):
        return _own_size(read_torchvision(found, folder), str(folder), image_size)
    if class_folders(folder) and not any(folder.rglob("*.parquet")):
        return read_class_folders(folder, image_size)
    return read_parquet(folder, image_size)


def _own_size(splits: dict[str, Any], name: str, image_size: int | None) -> dict[str, Any]:
    if image_size not in {None, 32}:
        raise errors.InvalidValueError(f"{name} has images of 32x32, got image_size {image_size}. Leave it out.")
    return splits


def _check_classes(source: str, train: tuple[str, ...], validation: tuple[str, ...]) -> None:
    if train != validation:
        only = [
            (split, sorted(set(a) - set(b))[:5])
            for split, a, b in (("train", train, validation), ("validation", validation, train))
        ]
        differing = "; ".join(f"only in {split}: {names}" for split, names in only if names)
        which = differing or "the same names in another order"
        raise errors.DataError(f"{source}: the splits have different classes; {which}.")


def _check_no_empty_class(source: str, classes: tuple[str, ...], labels: Tensor) -> None:
    missing = [classes[n] for n, count in enumerate(labels.bincount(minlength=len(classes))) if not count]
    if missing:
        listed = ", ".join(repr(name) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise errors.DataError(
            f"{source}: no train image of class {listed} ({len(missing)} of {len(classes)} classes are empty). "
            f"Labels count from 0; take the class out, or add images."
        )


def _held(images: Images | EncodedImages, loading: str) -> Images | EncodedImages:
    """Decode a split if it is to be held in memory."""
    if isinstance(images, Images) or loading == "stream":
        return images
    channels, height, width = images.shape
    large = len(images) * channels * height * width > _MEMORY_LIMIT
    return images if large and loading == "auto" else images.decoded()


def load_pairs(
    source: str | Path,
    image_size: int | None = None,
    loading: str = "auto",
    *,
    crop_size: int | None = None,
    ignore_index: int = IGNORED,
    foreground: str | None = None,
    class_names: str | None = None,
) -> SegmentationDataset:
    """Load images with masks by name or from a folder.

    Args:
        source: a folder that holds train*.parquet and val*.parquet with columns image and mask (encoded files); or
            train/ and val/ with images/ and masks/ in each (or the other way round), where files of one name belong
            together; or images/ and masks/ undivided, of which every tenth pair becomes validation; or "voc2007" to
            "voc2012" (torchvision's files, downloaded if they are missing), or the folder that holds them.
        image_size: length to which the shorter side of images and masks is scaled; None leaves them as they are.
        loading: "memory" decodes every pair once, "stream" when it is needed, "auto" streams what is more than 2,000
            pairs or 1 GiB a split.
        crop_size: side of the square that a training step sees; None takes the size of the first image.
        ignore_index: value of pixels that count neither in the loss nor in the score.
        foreground: name of the one class to find, all others being background.
        class_names: names in the order of the masks' values, joined by commas; None takes those of classes.txt in the
            folder, or numbers up to the highest value of 256 masks; values of 0 and 255 alone are background and
            foreground.

    Refused with `DataError`, which names the file: a missing folder, split or partner, an unreadable file, a mask of
    another size than its image, of colours instead of class indices, or with values beyond the classes. A pair that is
    streamed is looked at when its turn comes.
    """
    for name, value in (("image_size", image_size), ("crop_size", crop_size)):
        if value is not None:
            _validation.check_integer_at_least(4, **{name: value})
    _validation.check_one_of("loading", loading, LOADINGS)
    _validation.check_integer_at_least(0, ignore_index=ignore_index)
    _validation.check_number_between(0, 2**16, ignore_index=ignore_index)
    encoded, names = read_pairs(source)
    if class_names is not None:
        _validation.check_str("class_names", class_names)
        names = checked_names("class_names", class_names.split(","))
    masks = [masks for _, masks in encoded.values()]
    meaning = infer_mask_encoding(masks, names, ignore_index, foreground)
    splits = {
        name: SegmentationSplit(*parts, meaning, side=image_size, crop=crop_size) for name, parts in encoded.items()
    }
    for pairs in splits.values():
        few = len(pairs) <= _HELD_PAIRS and len(pairs) * math.prod(pairs.shape) <= _MEMORY_LIMIT
        if loading == "memory" or (loading == "auto" and few):
            pairs.hold()
    return SegmentationDataset(str(source), splits["train"], splits["validation"])
