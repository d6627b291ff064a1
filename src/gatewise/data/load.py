"""Load a data set from its source, in memory or streamed."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.broken import broken_images, counting_broken, without_broken
from gatewise.data.division import Division, divide
from gatewise.data.folders import Location
from gatewise.data.grouping import keys_of
from gatewise.data.image_sizes import chosen_side
from gatewise.data.images import Dataset, EncodedImages, Images
from gatewise.data.labels import Interpreter, Kind, LabelledSplit, label_text, targets
from gatewise.data.masks import IGNORED, MaskEncoding, checked_names, infer_mask_encoding
from gatewise.data.pairs import SegmentationDataset, SegmentationSplit
from gatewise.data.pixel_format import PixelFormat
from gatewise.data.pixel_survey import find_pixel_format
from gatewise.data.reading import Reading
from gatewise.data.sources.registry import LabelledSource, MaskedSource, MaskedSplit, Source, find_source, has_source
from gatewise.data.splitting import named_splits, strata_of

LOADINGS = ("auto", "memory", "stream")
_HELD_PAIRS = 2000  # most pairs of a split that "auto" decodes at the start: more would delay it
_MEMORY_LIMIT = 2**30  # most bytes of pixels of a split that "auto" decodes at the start
AnySource = TypeVar("AnySource", bound=Source)
AnyPart = TypeVar("AnyPart")
AnyImages = TypeVar("AnyImages", bound=Images | EncodedImages | SegmentationSplit)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Labelled images and the options for reading them; `load_dataset` documents the fields."""

    data: str
    image_size: int | None = None
    loading: str = "auto"
    reading: Reading = dataclasses.field(default_factory=Reading)
    labels: Kind = "class"
    class_names: str | None = None
    classes: tuple[str, ...] | None = None
    pixel_format: PixelFormat | None = None
    preferred_size: int | None = None
    delimiter: str | None = None

    def load(self) -> Dataset | SegmentationDataset:
        """Return the data set."""
        return load_dataset(
            self.data,
            self.image_size,
            self.loading,
            self.reading,
            self.labels,
            self.class_names,
            self.classes,
            self.pixel_format,
            self.preferred_size,
            self.delimiter,
        )

    def of_validation(self) -> Self:
        """Return the source with defaults for the options that do not change the validation images."""
        return dataclasses.replace(self, loading="auto")


@dataclass(frozen=True, kw_only=True)
class PairSource(DataSource):
    """Images with masks and the options for reading them; `load_pairs` documents the fields."""

    crop_size: int | None = None
    ignore_index: int = IGNORED
    foreground: str | None = None
    mask_threshold: float | None = None
    meaning: MaskEncoding | None = None

    def load(self) -> SegmentationDataset:
        return load_pairs(
            self.data,
            self.image_size,
            self.loading,
            crop_size=self.crop_size,
            ignore_index=self.ignore_index,
            foreground=self.foreground,
            class_names=self.class_names,
            mask_threshold=self.mask_threshold,
            reading=self.reading,
            pixel_format=self.pixel_format,
            meaning=self.meaning,
        )

    def of_validation(self) -> Self:
        return dataclasses.replace(super().of_validation(), crop_size=None)


def load_dataset(
    source: str | Path,
    image_size: int | None = None,
    loading: str = "auto",
    reading: Reading | None = None,
    labels: Kind = "class",
    class_names: str | None = None,
    classes: tuple[str, ...] | None = None,
    pixel_format: PixelFormat | None = None,
    preferred_size: int | None = None,
    delimiter: str | None = None,
) -> Dataset:
    """Load labelled images from a source: a name, an address or a folder.

    Args:
        source: what one of the registered sources of labelled images matches; `gatewise train --help` and
            `describe_sources` list them.
        image_size: side in pixels; the shorter side is scaled to it and the centre cropped. None keeps the size of the
            images, or, if a sample of them differs in size, takes the median of their shorter sides, at most 224.
        loading: "memory" decodes all images at the start, "stream" decodes each when it is needed, "auto" streams
            splits that would take more than 1 GiB.
        reading: how the source is read and divided; None uses the defaults.
        labels: what a label is: "class", "classes" (several for each image) or "number".
        class_names: the classes to keep, separated by commas, in the order of the network's outputs; None keeps all
            that have training images.
        classes: the classes of a trained network; the data may lack some of them.
        pixel_format: how a trained network gets image files; None finds it from `reading` and the training images.
        preferred_size: `image_size` of image files if none is given, that of pretrained weights.
        delimiter: text between the labels of one image in the data of a trained network, unless `reading` has one.

    Raises:
        DataError: a folder or split is missing, a file cannot be read, an image is truncated, image sizes differ, a
            label is missing or of another kind, there are fewer than two classes, or validation images have a class
            without training images. The message names the file. Streamed images are checked when they are used.
        InvalidValueError: an option is invalid.
    """
    if image_size is not None:
        _validation.check_integer_at_least(4, image_size=image_size)
    _validation.check_one_of("loading", loading, LOADINGS)
    location, found = _found(Location(source, reading, labels), LabelledSource)
    delimiter = location.reading.label_delimiter or delimiter
    interpret = Interpreter(labels, delimiter, class_names, classes, location.say)
    divided, division = _read_and_divided(location, found, interpret)
    with counting_broken([split.images for split in divided.values()]):
        pixel_format = pixel_format or _pixel_format(location, divided)
        side = image_size or _side(location, divided, preferred_size)
        splits = _of_each(
            divided, lambda split: _decoded_if_small(_images(location, split, labels, side, pixel_format), loading)
        )
        _check_streamed(location, splits)
    own = splits["train"]
    return Dataset(
        str(source),
        divided["train"].classes,
        own,
        splits["validation"],
        padding=max(1, own.shape[1] // 8),
        flip=found.flip,
        test=splits.get("test"),
        labels=labels,
        delimiter=divided["train"].delimiter,
        pixel_format=pixel_format,
        notes=tuple(location.notes),
        training_notes=tuple(location.training_notes),
        division=division,
    )


def _read_and_divided(
    location: Location, source: LabelledSource, interpret: Interpreter
) -> tuple[dict[str, LabelledSplit], Division]:
    """Return train and validation images, and test images if there are any, and the record of the division."""
    _check_columns_used(location, source)
    read = dict(source.read_labelled(location))
    if "test" in read and not read["test"].is_labelled:
        location.say(f"{read['test'].shown or 'test'} has no labels and is not used")
        del read["test"]
    _check_images(location, read)
    whole, skipped = without_broken(location, named_splits(location, read, location.reading))
    whole = interpret(location, whole)
    kind, names = interpret.kind, whole["train"].classes
    fraction = min(location.reading.fractions, default=1.0)
    strata = {name: strata_of(split.labels, kind, fraction) for name, split in whole.items()}
    texts = {name: [label_text(label, kind, names) for label in split.labels] for name, split in whole.items()}
    divided, division = divide(location, whole, strata, texts, skipped)
    if division.folder:
        location.say_ignored()
    if kind != "number":
        _say_missing_classes(location, divided)
    return divided, division


def _side(location: Location, splits: Mapping[str, LabelledSplit], preferred: int | None) -> int | None:
    """Return the side in pixels to which images are scaled, None to keep their size; note what was chosen."""
    if preferred is not None and not isinstance(splits["train"].images, Tensor):
        location.say(
            f"images are scaled, and their centre cropped, to {preferred}x{preferred}, the size of the pretrained "
            f"weights; --image-size chooses another"
        )
        return preferred
    side, note = chosen_side([splits[name].images for name in dict.fromkeys(("train", *splits))])
    if note:
        location.say(note)
    return side


def _of_each(splits: Mapping[str, AnyPart], make: Callable[[AnyPart], AnyImages]) -> dict[str, AnyImages]:
    """Return what `make` returns for each split, called once for splits that are the same images."""
    made = {key: make(split) for key, split in {id(split): split for split in splits.values()}.items()}
    return {name: made[id(split)] for name, split in splits.items()}


def _check_streamed(location: Location, splits: Mapping[str, Images | EncodedImages]) -> None:
    """Raise if the splits have images of different sizes, or a streamed test image cannot be read.

    Test images are scored after the last epoch, when it is too late to stop; others are used in the first epoch.
    """
    shape = splits["train"].shape
    for name, images in splits.items():
        if images.shape != shape:
            raise errors.DataError(
                f"{location}: train images are {shape[1:]}, {name} images {images.shape[1:]}. Set image_size."
            )
    streamed = {name: images for name, images in splits.items() if isinstance(images, EncodedImages)}
    if (test := streamed.get("test")) is not None and (broken := broken_images(test.files)):
        raise errors.DataError(next(iter(broken.values())))
    if streamed and location.reading.on_broken != "skip":
        location.say(
            f"{' and '.join(name for name in streamed if name != 'test')} images are read while the network trains: "
            f"one that cannot be read stops it then, and gatewise check finds it first",
            of_training=True,
        )


def _found(location: Location, kind: type[AnySource]) -> tuple[Location, AnySource]:
    """Return the source that reads a location, or the only folder in it."""
    inside = location
    while inside.is_folder and not has_source(inside, kind):
        if (only := inside.only_folder()) is None:
            return location, find_source(location, kind)
        inside = only
    return inside, find_source(inside, kind)


def _check_columns_used(location: Location, source: Source) -> None:
    """Raise if an option about columns is given for data without columns."""
    for name in ("image_column", "label_column", "label_delimiter", "data_root"):
        value = getattr(location.reading, name)
        if value is not None and not source.has_columns:
            raise errors.InvalidValueError(
                f"{name} is {value!r}, but {location} is read as {source.help}: it has no columns. Omit it, or "
                f"give a table."
            )


def _say_missing_classes(location: Location, splits: Mapping[str, LabelledSplit]) -> None:
    """Say which classes have no validation image, and how many they have in training."""
    counts = {
        name: Counter[int](part for own in strata_of(splits[name].labels, location.labels) for part in own)
        for name in ("train", "validation")
    }
    classes = splits["train"].classes
    lacking = [
        f"{name} ({counts['train'][n]:,} in train)" for n, name in enumerate(classes) if not counts["validation"][n]
    ]
    if lacking:
        location.say(
            f"warning: no validation image of class {_validation.listed(lacking, 5)}; how well "
            f"{'it is' if len(lacking) == 1 else 'they are'} recognised is not measured",
            of_training=True,
        )


def _check_images(location: Location, splits: Mapping[str, LabelledSplit]) -> None:
    for name, split in splits.items():
        images, labels = len(split.images), len(split.labels)
        if images != labels:
            raise errors.DataError(f"{location}, {name}: expected one label per image, got {labels} for {images}.")
        if not images:
            raise errors.DataError(f"{location}, {split.shown or name}: expected images, got none.")


def _pixel_format(location: Location, splits: Mapping[str, LabelledSplit] | Mapping[str, MaskedSplit]) -> PixelFormat:
    """Return how the images of all splits become channels; note what was decided."""
    reading = location.reading
    images = [splits[name].images for name in sorted(splits, key=lambda name: name != "train")]
    if files := [split for split in images if not isinstance(split, Tensor)]:
        found, notes = find_pixel_format(files, reading.channels, reading.value_range)
        for note in notes:
            location.say(note)
        return found
    for name, value in (("channels", reading.channels), ("value_range", reading.value_range)):
        if value != "auto":
            raise errors.InvalidValueError(f"{location} has no image files, so {name} {value!r} is not used. Omit it.")
    return PixelFormat.of_count(images[0].shape[1])  # type: ignore[union-attr]


def _images(
    location: Location, split: LabelledSplit, kind: Kind, image_size: int | None, pixel_format: PixelFormat
) -> Images | EncodedImages:
    labels = targets(split.labels, kind, len(split.classes))
    if not isinstance(split.images, Tensor):
        return EncodedImages(split.images, labels, image_size, pixel_format)
    height, width = split.images.shape[2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise errors.InvalidValueError(
            f"{location} has images of {width}x{height}, got image_size {image_size}. Omit it."
        )
    return Images(split.images, labels)


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
    mask_threshold: float | None = None,
    reading: Reading | None = None,
    pixel_format: PixelFormat | None = None,
    meaning: MaskEncoding | None = None,
) -> SegmentationDataset:
    """Load images with masks from a source: a name or a folder.

    Args:
        source: what one of the registered sources of images with masks matches; `gatewise train --help` and
            `describe_sources` list them.
        image_size: length in pixels to which the shorter side of images and masks is scaled; None keeps their size.
        loading: "memory" decodes all pairs at the start, "stream" decodes each when it is needed, "auto" streams
            splits of more than 2,000 pairs or 1 GiB.
        crop_size: side in pixels of the square training crop; None uses the size of the first image.
        ignore_index: mask value of pixels that are excluded from loss and score.
        foreground: name of the class to find; all other classes become background.
        class_names: names in the order of the mask values, separated by commas. None reads classes.txt in the folder
            if it exists. Otherwise 256 masks are sampled per split: if their only values are 0 and 255, the classes
            are background and foreground, else they are numbered up to the highest value.
        mask_threshold: value from which a pixel is foreground, for masks whose values are brightness; None for class
            indices.
        reading: how the source is read and divided; None uses the defaults.
        pixel_format: as for `load_dataset`.
        meaning: what mask values mean to a trained network; the masks may lack some of its classes. None finds it from
            the options above and the masks.

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
    location, found = _found(Location(source, reading), MaskedSource)
    read, skipped = without_broken(location, named_splits(location, found.read_masked(location), location.reading))
    names = read["train"].classes
    if class_names is not None:
        _validation.check_str("class_names", class_names)
        names = checked_names("class_names", class_names.split(","))
    if meaning is None:
        masks = [read[name].masks for name in ("train", "validation", "test") if name in read]
        meaning = infer_mask_encoding(masks, names, ignore_index, foreground, mask_threshold)
    meaning.check_names(location, names)
    for split in read.values():
        meaning.warn_of_values(split.masks, location.say)
    strata = {name: [(0,)] * len(split.images) for name, split in read.items()}
    texts = {name: [""] * len(part) for name, part in strata.items()}
    divided, division = divide(location, read, strata, texts, skipped)
    if division.folder:
        location.say_ignored()
        division = division.with_labels(_masks_of_images(location, divided))
    pixel_format = pixel_format or _pixel_format(location, divided)

    def pairs_of(split: MaskedSplit) -> SegmentationSplit:
        pairs = SegmentationSplit(
            split.images, split.masks, meaning, side=image_size, crop=crop_size, pixel_format=pixel_format
        )
        few = len(pairs) <= _HELD_PAIRS and len(pairs) * math.prod(pairs.shape) <= _MEMORY_LIMIT
        if loading == "memory" or (loading == "auto" and few):
            pairs.hold()
        return pairs

    splits = _of_each(divided, pairs_of)
    return SegmentationDataset(
        str(source),
        splits["train"],
        splits["validation"],
        test=splits.get("test"),
        notes=tuple(location.notes),
        training_notes=tuple(location.training_notes),
        division=division,
    )


def _masks_of_images(location: Location, splits: Mapping[str, MaskedSplit]) -> dict[str, str]:
    """Return the name of the mask of each image."""
    return {
        image: mask
        for split in splits.values()
        for image, mask in zip(*(keys_of(files, location.root) for files in (split.images, split.masks)), strict=True)
    }
