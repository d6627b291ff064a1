"""Open trained runs for analysis."""

# pyright: basic

import dataclasses
import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_json_lines
from gatewise.data import (
    Augmentation,
    Dataset,
    DataSource,
    EncodedImages,
    Images,
    SegmentationDataset,
    SegmentationSplit,
    evenly_spaced,
    make_batches,
)
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import CONFIG, WEIGHTS, check_weights_finite, load_model, read_metrics
from gatewise.training import BatchResults, Recipe, Score, Task

Split = Literal["validation", "train"]
_BATCH, _VALUES = 250, 2**24  # maximum number of images and of values in a batch
_REQUIRED = ("spec", "classes", "mean", "std", "in_chans", "image_size")  # entries of config.json that a page needs


@dataclass(frozen=True)
class Run:
    """A trained run, opened.

    Attributes:
        name: name of the run on a page.
        slug: suffix of the names of its figures.
        model: the network, in eval mode.
        config: content of `config.json`.
        rows: rows of the training log.
        metrics: content of `metrics.json`.
        recipe: the recipe of its training.
        dataset: data set whose images are shown to the gates, or None.
        shown: name of that data set.
        split: "validation" or "train".
        missing: reason why there is no data set, or "".
    """

    name: str
    slug: str
    model: nn.Module
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    metrics: dict[str, Any]
    recipe: Recipe
    dataset: Dataset | SegmentationDataset | None = None
    shown: str = ""
    split: Split = "validation"
    missing: str = ""

    @property
    def images(self) -> Images | EncodedImages | SegmentationSplit | None:
        """Images that are shown to the gates, or None."""
        return getattr(self.dataset, self.split, None)

    @property
    def source(self) -> DataSource:
        """Source of the images of the training."""
        return self.recipe.source

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
        """What the network was trained to do."""
        return self.recipe.task_spec.make(self.classes)

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
        """Specification that the model was built from."""
        return ModelSpec.from_dict(self.config["spec"])

    def of(self, split: Split) -> "Run":
        """Return the same run with the images of another split."""
        return dataclasses.replace(self, split=split)

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
            yield images, labels if self.image_classes else labels.new_zeros(len(labels))

    def pictures(self, images: Tensor) -> Tensor:
        """Undo the normalisation of images: (N, C, H, W), in [0, 1] afterwards."""
        mean, std = (torch.tensor(self.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        return (images.cpu() * std + mean) / 255

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return a few normalised images and their labels or masks.

        For classification: the first image of each of the first `count` classes. For segmentation: of `count` evenly
        spaced images, those with the size of the first.
        """
        images = self.images
        assert images is not None
        if isinstance(images, SegmentationSplit):
            pairs = [images[index] for index in evenly_spaced(len(images), count)]
            alike = [pair for pair in pairs if pair[1].shape == pairs[0][1].shape]
            pixels, labels = (torch.stack(parts) for parts in zip(*alike, strict=True))
        else:
            chosen = [int((images.labels == label).nonzero()[0]) for label in images.labels.unique()[:count].tolist()]
            pixels, labels = torch.stack([images[index] for index in chosen]), images.labels[chosen]
        parts = zip(*self._batches(Images(pixels, labels)), strict=True)
        batched, labels = (torch.cat(part) for part in parts)
        return batched, labels

    def _batches(self, images: Images | EncodedImages | SegmentationSplit) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = torch.tensor(self.config["mean"]), torch.tensor(self.config["std"])
        size = max(1, min(_BATCH, _VALUES // math.prod(images.shape)))
        options: Any = {"augmentation": Augmentation(), "device": self.device, "workers": min(8, os.cpu_count() or 0)}
        return make_batches(images, size, mean, std, **options).evaluation()


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
    load = functools.cache(DataSource.load)  # runs of a comparison share one data set
    names = _names(folders)
    return [
        _open(Path(folder), name, slug, data, split, load)
        for folder, name, slug in zip(folders, names, _slugs(names), strict=True)
    ]


def _open(folder: Path, name: str, slug: str, data: str | None, split: Split, load: Callable[[DataSource], Any]) -> Run:
    if (folder / "results.json").exists():
        raise errors.DataError(f"{folder} holds a comparison; give its runs, for example {folder}/runs/*/seed_0.")
    model, config = load_model(folder)
    check_weights_finite(folder / WEIGHTS, model, "Train the run again")
    recipe = Recipe.load(folder / "recipe.yaml")
    log, metrics = folder / "log.jsonl", read_metrics(folder)
    rows = read_json_lines(log) if log.exists() else []
    _check_complete(folder, config, metrics, rows)
    dataset, missing = None, ""
    try:
        dataset = load(dataclasses.replace(recipe.source, data=data or recipe.data))
        _check_same_data(dataset, config, folder)
    except (errors.DataError, errors.MissingExtraError, OSError) as error:
        if data is not None:
            raise
        dataset, missing = None, str(error)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Run(name, slug, model, config, rows, metrics, recipe, dataset, data or recipe.data, split, missing)


def _check_complete(folder: Path, config: dict[str, Any], metrics: dict[str, Any], rows: list[Any]) -> None:
    _validation.entries_of(folder / CONFIG, config, *_REQUIRED)
    score = metrics.get("score", "accuracy")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get(f"validation_{score}"), int | float):
            raise errors.DataError(
                f"{folder / 'log.jsonl'}, line {number}: no number for 'validation_{score}'. Restore the file."
            )


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
