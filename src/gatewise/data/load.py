"""Load a data set by name or folder, in memory or streamed."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
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
_HELD_PAIRS = 2000  # most pairs of a split that "auto" decodes at the start: more would delay it
_MEMORY_LIMIT = 2**30  # most bytes of pixels of a split that "auto" decodes at the start


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Labelled images and the options for reading them; `load_dataset` documents the fields."""

    data: str
    image_size: int | None = None
    loading: str = "auto"

    def load(self) -> Dataset | SegmentationDataset:
        """Return the data set."""
        return load_dataset(self.data, self.image_size, self.loading)

    def of_validation(self) -> Self:
        """Return the source with defaults for the options that do not change the validation images."""
        return dataclasses.replace(self, loading="auto")


@dataclass(frozen=True, kw_only=True)
class PairSource(DataSource):
    """Images with masks and the options for reading them; `load_pairs` documents the fields."""

    crop_size: int | None = None
    ignore_index: int = IGNORED
    foreground: str | None = None
    class_names: str | None = None

    def load(self) -> SegmentationDataset:
        return load_pairs(
            self.data,
            self.image_size,
            self.loading,
            crop_size=self.crop_size,
            ignore_index=self.ignore_index,
            foreground=self.foreground,
            class_names=self.class_names,
        )

    def of_validation(self) -> Self:
        return dataclasses.replace(super().of_validation(), crop_size=None)


def load_dataset(source: str | Path, image_size: int | None = None, loading: str = "auto") -> Dataset:
    """Load labelled images by name or from a folder.

    Args:
        source: "digits" (bundled with scikit-learn); "cifar10" or "cifar100" (torchvision's files, downloaded if
            missing); "hub:NAME" (a data set that the library `datasets` can load); or a folder with train*.parquet and
            validation*, val* or test*.parquet in the Hugging Face layout, with torchvision's CIFAR files, or with
            images in train/CLASS/ and val/CLASS/.
        image_size: side in pixels; the shorter side is scaled to it and the centre cropped. Needed if sizes differ.
        loading: "memory" decodes all images at the start, "stream" decodes each when it is needed, "auto" streams
            splits that would take more than 1 GiB.

    Raises:
        DataError: a folder or split is missing, a file cannot be read, an image is truncated, image sizes differ, a
            label is missing or negative, a class has no training images, there are fewer than two classes, or the
            splits have different classes. The message names the file. Streamed images are checked when they are used.
        InvalidValueError: an option is invalid.

    The encoded images of parquet files are kept in memory; use "hub:FOLDER", which memory-maps them, for larger data.
    """
    if image_size is not None:
        _validation.check_integer_at_least(4, image_size=image_size)
    _validation.check_one_of("loading", loading, LOADINGS)
    if str(source) == "digits":
        if image_size is not None:
            raise errors.InvalidValueError(f"digits are 8x8, got image_size {image_size}. Omit it.")
        return read_digits()
    splits = _read(source, image_size)
    (train, classes), (validation, other) = splits["train"], splits["validation"]
    _check_classes(str(source), classes, other)
    _check_no_empty_class(str(source), classes, train.labels)
    train, validation = (_decoded_if_small(images, loading) for images in (train, validation))
    if train.shape != validation.shape:
        sizes = [images.shape[1:] for images in (train, validation)]
        raise errors.DataError(f"{source}: train images are {sizes[0]}, validation images {sizes[1]}. Set image_size.")
    return Dataset(str(source), classes, train, validation, padding=max(1, train.shape[1] // 8), flip=True)


def _read(source: str | Path, image_size: int | None) -> dict[str, Any]:
    """Return both splits of a source of any kind, with their class names."""
    name = str(source)
    if name.startswith(HUB):
        return read_hub(name.removeprefix(HUB), image_size)
    if name in FOLDERS and not Path(name).exists():
        return _with_fixed_size(read_torchvision(name, default_root()), name, image_size)
    folder = Path(source)
    if not folder.exists():
        raise errors.DataError(
            f"data folder {name!r} does not exist; expected digits, cifar10, cifar100, a folder, "
            f"or {HUB}NAME for a data set on the Hugging Face hub."
        )
    if not folder.is_dir():
        raise errors.DataError(f"{folder} is a file; expected 'digits' or a folder with train*.parquet or train/.")
    if data_set := holds_torchvision_files(folder):
        return _with_fixed_size(read_torchvision(data_set, folder), str(folder), image_size)
    if class_folders(folder) and not any(folder.rglob("*.parquet")):
        return read_class_folders(folder, image_size)
    return read_parquet(folder, image_size)


def _with_fixed_size(splits: dict[str, Any], name: str, image_size: int | None) -> dict[str, Any]:
    if image_size not in {None, 32}:
        raise errors.InvalidValueError(f"{name} has images of 32x32, got image_size {image_size}. Omit it.")
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
            f"Labels start at 0; remove the class, or add images."
        )


def _decoded_if_small(images: Images | EncodedImages, loading: str) -> Images | EncodedImages:
    """Return a split decoded if `loading` is "memory", or "auto" and its size is within the limit."""
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
        source: a folder with train*.parquet and val*.parquet that have columns image and mask (encoded files); a
            folder with SPLIT/images/ and SPLIT/masks/, or images/SPLIT/ and masks/SPLIT/, for the splits train and
            val, where an image and its mask have the same name; a folder with images/ and masks/ without splits, where
            every tenth pair is used for validation; "voc2007" to "voc2012" (torchvision's files, downloaded if
            missing); or a folder with these files.
        image_size: length in pixels to which the shorter side of images and masks is scaled; None keeps their size.
        loading: "memory" decodes all pairs at the start, "stream" decodes each when it is needed, "auto" streams
            splits of more than 2,000 pairs or 1 GiB.
        crop_size: side in pixels of the square training crop; None uses the size of the first image.
        ignore_index: mask value of pixels that are excluded from loss and score.
        foreground: name of the class to find; all other classes become background.
        class_names: names in the order of the mask values, separated by commas. None reads classes.txt in the folder
            if it exists. Otherwise 256 masks are sampled per split: if their only values are 0 and 255, the classes
            are background and foreground, else they are numbered up to the highest value.

    Raises:
        DataError: a folder, split, image or mask is missing, a file cannot be read, or a mask has another size than
            its image, colours instead of class indices, or values without a class. The message names the file.
            Streamed pairs are checked when they are used.
        InvalidValueError: an option is invalid.
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
