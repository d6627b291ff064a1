"""Open trained runs: their files, network and images."""

# pyright: basic

import copy
import dataclasses
import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.run_files import CONFIG, LOG, METRICS, PREDICTIONS, RECIPE, WEIGHTS
from gatewise.data import (
    Augmentation,
    Dataset,
    DataSource,
    EncodedImages,
    Images,
    PairSource,
    SegmentationDataset,
    SegmentationSplit,
    evenly_spaced,
    make_batches,
)
from gatewise.data.division import SPLIT_FILE
from gatewise.data.masks import MaskEncoding
from gatewise.data.pixel_format import PixelFormat
from gatewise.data.reading import OtherReading, Reading
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import check_weights_finite, load_model, read_config, read_metrics, read_tensors
from gatewise.models.stored_spec import as_stored
from gatewise.training import BatchResults, Recipe, Score, Task, TaskSpec
from gatewise.training.run_folder import is_finished, read_log

Split = Literal["validation", "train"]
_BATCH, _VALUES = 250, 2**24  # maximum number of images and of values in a batch


def _load(source: DataSource) -> Dataset | SegmentationDataset:
    return source.load()


def stored_task(file: Path, config: Mapping[str, Any]) -> Task:
    """Return the task that `config`, the content of `config.json` or of an exported file, names."""
    try:
        task = TaskSpec.parse(config.get("task", "classify")).make(config["classes"])
        task.restore(config)
    except errors.GatewiseError as error:
        raise errors.DataError(f"{file}: {error} Restore the file.") from None
    if (outputs := config.get("num_classes", task.outputs)) != task.outputs:
        raise errors.DataError(
            f"{file}: task {task.name} has {task.outputs} outputs for {len(task.classes)} classes, but num_classes is "
            f"{outputs}. Restore the file."
        )
    return task


@dataclass(eq=False)
class Run:
    """A run folder, or a folder of `save_pretrained`; each file is read and validated when it is first used.

    Attributes:
        folder: the folder.
        name: name of the run on a page.
        slug: suffix of the names of its figures.
        data: data set whose images are shown to the gates; None is the data set of the training.
        split: "validation" or "train" images of the data set.
        load: function that loads a data set.
    """

    folder: Path
    name: str
    slug: str
    data: str | None = None
    split: Split = "validation"
    load: Callable[[DataSource], Dataset | SegmentationDataset] = _load

    @classmethod
    def open(cls, folder: str | Path, data: str | None = None) -> "Run":
        """Open one folder, named by the last part of its path.

        Raises:
            DataError: the folder does not exist, has no valid `config.json`, or contains a comparison.
        """
        folder = _validation.check_path_exists("run folder", folder)
        (name,) = _names([folder])
        run = cls(folder, name, _slugs([name])[0], data)
        _ = run.config
        return run

    def checked(self) -> "Run":
        """Return this run after reading all its files.

        Raises:
            DataError: the run has not finished, a file is missing or damaged, or `data` is not available or has other
                classes, image channels or image sizes.
        """
        self.check_image_entries()
        _ = self.model, self.task, self.recipe, self.metrics, self.log, self.dataset
        return self

    def check_image_entries(self) -> None:
        """Raise `DataError` if `config.json` lacks the classes or the preprocessing of images."""
        check_image_entries(self.folder / CONFIG, self.config)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Content of `config.json`."""
        return read_config(self.folder)

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """Content of `metrics.json`."""
        if not is_finished(self.folder):
            raise self._not_finished(METRICS)
        metrics = read_metrics(self.folder)
        if (found := metrics.get("score", "accuracy")) != (expected := self.score.name):
            raise errors.DataError(
                f"{self.folder / METRICS}: expected {expected!r} as the score of task {self.task.name}, got {found!r}. "
                f"Restore the file."
            )
        return metrics

    def _not_finished(self, absent: str) -> errors.DataError:
        return errors.DataError(
            f"{self.folder} has no {absent}: the run has not finished. Resume it with gatewise train --resume."
        )

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Recipe of the training."""
        return Recipe.load(self.folder / RECIPE)

    @functools.cached_property
    def log(self) -> list[dict[str, Any]]:
        """Rows of the training log, one per epoch; [] if there is none."""
        rows, wanted = read_log(self.folder), f"validation_{self.score.name}"
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get(wanted), int | float):
                raise errors.DataError(
                    f"{self.folder / LOG}, line {number}: no number for '{wanted}'. Restore the file."
                )
        return rows

    @functools.cached_property
    def predictions(self) -> dict[str, Tensor]:
        """Tensors about each validation image, such as predicted classes; {} for a compacted run."""
        file = self.folder / PREDICTIONS
        return read_tensors(file) if file.exists() else {}

    def network(self) -> nn.Module:
        """Build the network and return it with its weights, in eval mode, on the CPU."""
        model, _ = load_model(self.folder)
        check_weights_finite(self.folder / WEIGHTS, model, "Train the run again")
        return model

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode, on the GPU if there is one."""
        return self.network().to("cuda" if torch.cuda.is_available() else "cpu")

    @functools.cached_property
    def _found(self) -> tuple[Dataset | SegmentationDataset | None, str]:
        """The data set, or None and the reason."""
        try:
            dataset = self.load(self.source) if self.data is None else self._other_data()
            if self.data is None and self._is_divided_otherwise(dataset):
                dataset = self.load(self._recorded_source)
            _check_same_data(dataset, self.config, self.folder)
        except (errors.DataError, errors.MissingExtraError, OSError) as error:
            if self.data is not None:
                raise
            return None, str(error)
        return dataset, ""

    def _other_data(self) -> Dataset | SegmentationDataset:
        """Load other data than that of the training; it may lack some of its classes, and the columns of its table."""
        assert self.data is not None
        height, width = self.config.get("image_size", (0, 1))
        side = height if height == width and not self.task.any_size else None
        source = dataclasses.replace(
            self.source, data=self.data, classes=tuple(self.classes), image_size=self.source.image_size or side
        )
        missing: errors.InvalidValueError | None = None
        for reading in _of_other_data(self.source.reading, source.classes or ()):
            try:
                return self.load(dataclasses.replace(source, reading=reading))
            except errors.InvalidValueError as error:
                missing = missing or error
            except errors.DataError:
                if missing is None:
                    raise
        assert missing is not None
        raise missing

    @property
    def _recorded_source(self) -> DataSource:
        """The split.csv of the run as a source: the files of the training, also if others were added later."""
        reading = dataclasses.replace(
            self.source.reading,
            image_column="file_name",
            label_column="label",
            label_delimiter="|",
            group=None,
            validation_split=Reading.validation_split,
            test_split=None,
        )
        data, classes = str(self.folder / SPLIT_FILE), tuple(self.classes)
        return dataclasses.replace(self.source, data=data, reading=reading, classes=classes)

    def _is_divided_otherwise(self, dataset: Dataset | SegmentationDataset) -> bool:
        """Whether files that were divided by the rule are other ones now than in the training."""
        stored = self.config.get("split") or {}
        division = dataset.division
        by_rule = bool(stored.get("rule")) and bool(stored.get("folder"))
        if division is None or not by_rule or not (self.folder / SPLIT_FILE).exists() or self.task.class_per_pixel:
            return False
        return division.details["sha256"] != stored.get("sha256")

    @property
    def dataset(self) -> Dataset | SegmentationDataset | None:
        """Data set whose images are shown to the gates, or None if that of the training is not available."""
        return self._found[0]

    @property
    def missing(self) -> str:
        """Reason why there is no data set, or ""."""
        return self._found[1]

    def check_has_images(self, purpose: str = "") -> None:
        """Raise `DataError` if there is no data set; `purpose` says what for, as in " to compare outputs"."""
        if self.dataset is None:
            raise errors.DataError(
                f"the images of {self.folder} are needed{purpose}: {self.missing} Give them with data (--data)."
            )

    @property
    def scale(self) -> int | None:
        """Length of the shorter side of images for a segmentation network; None keeps their size."""
        return self.recipe.image_size if (self.folder / RECIPE).exists() else self.config.get("scale")

    @property
    def shown(self) -> str:
        """Name of the data set whose images are shown to the gates."""
        return self.data or self.recipe.data

    @property
    def images(self) -> Images | EncodedImages | SegmentationSplit | None:
        """Images that are shown to the gates, or None."""
        return getattr(self.dataset, self.split, None)

    @property
    def source(self) -> DataSource:
        """Source of the images of the training, read with its channels, ranges, delimiter of labels and mask values."""
        delimiter = self.config.get("label_delimiter")
        source = dataclasses.replace(self.recipe.source, pixel_format=self.pixel_format, delimiter=delimiter)
        if not isinstance(source, PairSource):
            return source
        return dataclasses.replace(source, meaning=MaskEncoding.of_config(self.folder / CONFIG, self.config))

    @property
    def pixel_format(self) -> PixelFormat:
        """How image files become channels."""
        return PixelFormat.of_config(self.folder / CONFIG, self.config)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return self.config["classes"]

    @property
    def task(self) -> Task:
        """What the network was trained to do; its own options are those in `config.json`."""
        task = stored_task(self.folder / CONFIG, self.config)
        if not (self.folder / RECIPE).exists():
            return task
        stored = self.config.get("task", "classify")
        task = dataclasses.replace(self.recipe, task=stored).task_spec.make(self.classes)
        task.restore(self.config)
        return task

    @property
    def score(self) -> Score:
        """The main score."""
        return self.task.score

    @property
    def image_classes(self) -> list[str]:
        """Names of the classes of images; empty if an image has no class, as in segmentation."""
        return self.classes if self.task.class_per_image else []

    @property
    def spec(self) -> ModelSpec:
        """Specification that the model was built from, with all options."""
        return as_stored(self.config["spec"])

    def of(self, split: Split) -> "Run":
        """Return the same run with the images of another split."""
        other = copy.copy(self)  # with the files that were read
        other.split = split
        return other

    def new_results(self) -> BatchResults:
        """Return an empty accumulator of the scores on the images."""
        return self.task.new_results(self.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the images in order, normalised, and of their labels or masks."""
        assert self.images is not None
        return self._batches(self.images)

    def first(self, count: int | None = None) -> "FirstImages":
        """Return an iterable over batches of the first `count` images (None: all), without labels."""
        return FirstImages(self, count)

    def by_class(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and labels; all labels are 0 if images have no class."""
        for images, labels in self.batches():
            yield images, labels if self.image_classes else torch.zeros(len(labels), dtype=torch.long)

    def pictures(self, images: Tensor) -> Tensor:
        """Undo the normalisation of images: (N, C, H, W), in [0, 1] afterwards."""
        mean, std = (torch.tensor(self.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        return (images.cpu() * std + mean) / 255

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return a few normalised images and their labels or masks.

        If images have a class: the first image of each of the first `count` classes. Otherwise `count` evenly spaced
        images; for masks those of them with the size of the first.
        """
        images = self.images
        assert images is not None
        if isinstance(images, SegmentationSplit):
            pairs = [images[index] for index in evenly_spaced(len(images), count)]
            alike = [pair for pair in pairs if pair[1].shape == pairs[0][1].shape]
            pixels, labels = (torch.stack(parts) for parts in zip(*alike, strict=True))
        else:
            chosen = evenly_spaced(len(images), count)
            if self.image_classes:
                classes = images.labels.unique()[:count].tolist()
                chosen = [int((images.labels == label).nonzero()[0]) for label in classes]
            pixels, labels = torch.stack([images[index] for index in chosen]), images.labels[chosen]
        parts = zip(*self._batches(Images(pixels, labels)), strict=True)
        batched, labels = (torch.cat(part) for part in parts)
        return batched, labels

    def _batches(self, images: Images | EncodedImages | SegmentationSplit) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = torch.tensor(self.config["mean"]), torch.tensor(self.config["std"])
        size = max(1, min(_BATCH, _VALUES // math.prod(images.shape)))
        options: Any = {"augmentation": Augmentation(), "device": self.device, "workers": min(8, os.cpu_count() or 0)}
        return make_batches(images, size, mean, std, **options).evaluation()


def _of_other_data(reading: Reading, classes: tuple[str, ...]) -> list[OtherReading]:
    """Return how data that is not that of the training may be read: with the columns of the training, or without.

    How the training's data was divided says nothing of other data.
    """
    own = {"group": None, "validation_split": Reading.validation_split, "test_split": None, "data_root": None}
    undivided = OtherReading.like(reading, **own, classes=classes)
    without = dataclasses.replace(undivided, image_column=None, label_column=None)
    return list(dict.fromkeys((undivided, without, dataclasses.replace(without, label_delimiter=None))))


def check_image_entries(file: Path, config: Mapping[str, Any]) -> None:
    """Raise `DataError` if the metadata of a network, read from `file`, lacks the classes or the preprocessing."""
    present = {name: value for name, value in config.items() if value is not None}
    _validation.entries_of(file, present, "classes", "mean", "std", "in_chans", "image_size")


@dataclass(frozen=True)
class FirstImages:
    """Batches of the first `count` images of a run (None: all); can be iterated over repeatedly."""

    run: Run
    count: int | None

    def __iter__(self) -> Iterator[Tensor]:
        left = self.count if self.count is not None else len(self.run.images or ())
        for batch, _ in self.run.batches():
            if left <= 0:
                return
            yield batch[:left]
            left -= len(batch)


def open_runs(folders: Sequence[str | Path], data: str | None = None, split: Split = "validation") -> list[Run]:
    """Open run folders; each run is named by the shortest end of its path that is unique.

    Args:
        folders: folders of finished runs.
        data: data set whose images are shown to the gates; None uses the data set of each run. If a run's own data set
            is not available, its `dataset` is None and `missing` has the reason.
        split: "validation" or "train" images of the data set.

    Returns:
        The runs, in the order of `folders`.

    Raises:
        InvalidValueError: if there is no folder, or the same folder twice.
        DataError: if a folder is not a finished run, if weights or files are damaged, or if the data set has other
            classes, image channels or image sizes.
    """
    _validation.check_one_of("split", split, ("validation", "train"))
    if not folders:
        raise errors.InvalidValueError("no run to explain; give at least one run folder.")
    load = functools.cache(_load)  # runs of a comparison share one data set
    names = _names(folders)
    runs = [Run.open(folder, data) for folder in folders]
    for run, run.name, run.slug in zip(runs, names, _slugs(names), strict=True):
        run.split, run.load = split, load
        run.checked()
    return runs


def _check_same_data(dataset: Dataset | SegmentationDataset, config: dict[str, Any], folder: Path) -> None:
    if list(dataset.classes) != config["classes"] or dataset.channels != config["in_chans"]:
        raise errors.DataError(
            f"{dataset.name} has {len(dataset.classes)} classes ({', '.join(dataset.classes[:5])}, ...) and "
            f"{dataset.channels} channels; the run in {folder} was trained with {len(config['classes'])} "
            f"({', '.join(config['classes'][:5])}, ...) and {config['in_chans']}. Give the data it was trained with."
        )
    if isinstance(dataset, Dataset) and list(dataset.size) != list(config["image_size"]):
        given, expected = ("x".join(map(str, size)) for size in (dataset.size, config["image_size"]))
        raise errors.DataError(
            f"{dataset.name} has images of {given}; the run in {folder} was trained with {expected}. "
            f"Give images of that size."
        )


def _names(folders: Sequence[str | Path]) -> list[str]:
    """Return the shortest unique ends of the paths, after removing the last folders that all paths share."""
    paths = [Path(folder).resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise errors.InvalidValueError("the same run is given twice. Give each once.")
    while len(paths) > 1 and min(map(len, paths)) > 2 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    parts = next(count for count in itertools.count(1) if len({path[-count:] for path in paths}) == len(paths))
    return ["/".join(path[-parts:]) for path in paths]


def _slugs(names: Sequence[str]) -> list[str]:
    """Return the names as unique strings that are valid in file names and ids."""
    readable = ["".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name) for name in names]
    count = Counter(readable)
    return [slug if count[slug] == 1 else f"{slug}-{number}" for number, slug in enumerate(readable, 1)]
