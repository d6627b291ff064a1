"""Trained runs, opened to be looked at."""

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

from gatewise import _validation, errors
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
from gatewise.files import read_json_lines
from gatewise.serialization import CONFIG, WEIGHTS, check_weights_finite, load_model, read_metrics
from gatewise.spec import ModelSpec
from gatewise.training import BatchResults, Recipe, make_task

Split = Literal["validation", "train"]
_BATCH, _VALUES = 250, 2**24  # images in a batch at most, and numbers in it
_REQUIRED = ("spec", "classes", "mean", "std", "in_chans", "image_size")  # of a config, by what its page needs


@dataclass(frozen=True)
class Run:
    """A trained run, opened.

    Attributes:
        name: what it is called on a page.
        slug: what names of its figures end with.
        model: in eval mode.
        config: its `config.json`.
        rows: of its log.
        metrics: its `metrics.json`.
        recipe: that it was trained with.
        dataset: whose images are shown to the gates, or None.
        shown: what those images are called.
        split: which of the data set's images they are.
        missing: why there are none.
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
        """What is shown to the gates, or None."""
        return getattr(self.dataset, self.split, None)

    @property
    def source(self) -> DataSource:
        """Where the images are that it was trained on."""
        return self.recipe.source

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the labels."""
        return self.config["classes"]

    @property
    def task(self) -> str:
        """What the network was trained for."""
        return self.config.get("task", "classify")

    @property
    def score(self) -> str:
        """What the run is judged by, a key of `TITLES`."""
        return self.metrics.get("score", "accuracy")

    @property
    def image_classes(self) -> list[str]:
        """Names of the classes that a whole image can have: none where each pixel has its own."""
        return self.classes if self.task == "classify" else []

    @property
    def spec(self) -> ModelSpec:
        """What the model was built from."""
        return ModelSpec.from_dict(self.config["spec"])

    def of(self, split: Split) -> "Run":
        """Return the same run with the images of another split."""
        return dataclasses.replace(self, split=split)

    def new_results(self) -> BatchResults:
        """Return what scores the network on the images."""
        assert self.dataset is not None
        return make_task(self.recipe, self.dataset).new_results(self.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images in their own order, as the network takes them, and their labels or masks."""
        assert self.images is not None
        return self._batches(self.images)

    def first(self, count: int | None = None) -> "FirstImages":
        """Return batches of the first images, or of all, without labels, as often as they are asked for."""
        return FirstImages(self, count)

    def by_class(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and their labels, all 0 where images have no class as a whole."""
        for images, labels in self.batches():
            yield images, labels if self.image_classes else labels.new_zeros(len(labels))

    def pictures(self, images: Tensor) -> Tensor:
        """Return images as the network takes them as they are for the eye: (N, C, H, W) in [0, 1]."""
        mean, std = (torch.tensor(self.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        return (images.cpu() * std + mean) / 255

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return a few images, as the network takes them, and their labels or masks.

        They are the first of each of the first `count` classes; of images with masks `count` at equal distances that
        have the size of the first.
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
        found, labels = (torch.cat(part) for part in parts)
        return found, labels

    def _batches(self, images: Images | EncodedImages | SegmentationSplit) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = torch.tensor(self.config["mean"]), torch.tensor(self.config["std"])
        size = max(1, min(_BATCH, _VALUES // math.prod(images.shape)))
        options: Any = {"augmentation": Augmentation(), "device": self.device, "workers": min(8, os.cpu_count() or 0)}
        return make_batches(images, size, mean, std, **options).evaluation()


@dataclass(frozen=True)
class FirstImages:
    """The first `count` images of a run, or all, in batches; can be gone through again and again."""

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
    """Open run folders, named by the shortest ends of their paths that tell them apart.

    Args:
        folders: of finished runs.
        data: images to show the gates instead of the runs' own.
        split: which of the images.

    Refused with ValueError: no folder, the same twice. With `DataError`: a folder that is no finished run, damaged
    weights or files, a data set with other classes, image channels or image size. If a run's own images are gone, the
    reason is noted instead.
    """
    _validation.check_one_of("split", split, ("validation", "train"))
    if not folders:
        raise errors.InvalidValueError("no run to explain; give at least one run folder.")
    load = functools.cache(DataSource.load)  # runs of one comparison share their images
    names = _names(folders)
    return [
        _open(Path(folder), name, slug, data, split, load)
        for folder, name, slug in zip(folders, names, _slugs(names), strict=True)
    ]


def _open(folder: Path, name: str, slug: str, data: str | None, split: Split, load: Callable[[DataSource], Any]) -> Run:
    if (folder / "results.json").exists():
        raise errors.DataError(f"{folder} holds a comparison; give its runs, for example {folder}/runs/*/seed_0.")
    model, config = load_model(folder)
    check_weights_finite(folder / WEIGHTS, model, "Train the run anew")
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
        came, expected = ("x".join(map(str, size)) for size in (dataset.size, config["image_size"]))
        raise errors.DataError(
            f"{dataset.name} has images of {came}; the run in {folder} was trained with {expected}. "
            f"Give images of that size."
        )


def _names(folders: Sequence[str | Path]) -> list[str]:
    """Return what of the paths tells the runs apart, without the folders that all begin and end with."""
    paths = [Path(folder).resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise errors.InvalidValueError("the same run is given twice. Give each once.")
    while len(paths) > 1 and min(map(len, paths)) > 2 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    parts = next(count for count in itertools.count(1) if len({path[-count:] for path in paths}) == len(paths))
    return ["/".join(path[-parts:]) for path in paths]


def _slugs(names: Sequence[str]) -> list[str]:
    """Return names as files and ids can bear them, each different from the others."""
    readable = ["".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name) for name in names]
    count = Counter(readable)
    return [slug if count[slug] == 1 else f"{slug}-{number}" for number, slug in enumerate(readable, 1)]
