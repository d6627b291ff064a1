"""Trained runs, opened to be looked at."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gatewise import _checks
from gatewise.checkpoint import load_model, read_json, read_json_lines
from gatewise.data import Augmentation, Dataset, EncodedImages, Images, load_dataset, make_batches
from gatewise.spec import ModelSpec
from gatewise.training import Recipe

Split = Literal["validation", "train"]
_BATCH = 250


@dataclass(frozen=True)
class Run:
    """A trained run, opened.

    Attributes:
        name: what it is called on a page.
        model: in eval mode.
        config: its `config.json`.
        rows: of its log.
        metrics: its `metrics.json`.
        images: to show the gates, or None.
        split: which of the data set's images they are.
        missing: why there are none.
    """

    name: str
    model: nn.Module
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    metrics: dict[str, Any]
    images: Images | EncodedImages | None
    split: Split = "validation"
    missing: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the labels."""
        return self.config["classes"]

    @property
    def spec(self) -> ModelSpec:
        """What the model was built from."""
        return ModelSpec.from_dict(self.config["spec"])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images in their own order, as the network takes them, and their labels."""
        assert self.images is not None
        mean, std = torch.tensor(self.config["mean"]), torch.tensor(self.config["std"])
        options: Any = {"augmentation": Augmentation(), "device": self.device, "workers": 0}
        return make_batches(self.images, _BATCH, mean, std, **options).evaluation()


def open_runs(folders: Sequence[str | Path], data: str | None = None, split: Split = "validation") -> list[Run]:
    """Open run folders, named by the shortest ends of their paths that tell them apart.

    Args:
        folders: of finished runs.
        data: images to show the gates instead of the runs' own.
        split: which of the images.

    Refused with ValueError: no folder, the same twice. With `DataError`: a folder that is no finished run, damaged
    weights, a data set with other classes or image channels. If a run's own images are gone, the reason is noted
    instead.
    """
    _checks.one_of("split", split, ("validation", "train"))
    if not folders:
        raise _checks.InvalidValueError("no run to explain; give at least one run folder.")
    return [_open(Path(folder), name, data, split) for folder, name in zip(folders, _names(folders), strict=True)]


def _open(folder: Path, name: str, data: str | None, split: Split) -> Run:
    model, config = load_model(folder)
    recipe = Recipe.load(folder / "recipe.yaml")
    log, metrics = folder / "log.jsonl", read_json(folder / "metrics.json")
    rows = read_json_lines(log) if log.exists() else []
    images, missing = None, ""
    try:
        dataset = load_dataset(data or recipe.data, recipe.image_size, recipe.loading)
        _refuse_other_classes(dataset, config, folder)
        images = getattr(dataset, split)
    except (_checks.DataError, _checks.MissingExtraError) as error:
        if data is not None:
            raise
        missing = str(error)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Run(name, model, config, rows, metrics, images, split, missing)


def _refuse_other_classes(dataset: Dataset, config: dict[str, Any], folder: Path) -> None:
    if list(dataset.classes) != config["classes"] or dataset.channels != config["in_chans"]:
        raise _checks.DataError(
            f"{dataset.name} has {len(dataset.classes)} classes ({', '.join(dataset.classes[:5])}, ...) and "
            f"{dataset.channels} channels; the run in {folder} was trained with {len(config['classes'])} "
            f"({', '.join(config['classes'][:5])}, ...) and {config['in_chans']}. Give the data it was trained with."
        )


def _names(folders: Sequence[str | Path]) -> list[str]:
    """Return what of the paths tells the runs apart, without the folders that all begin and end with."""
    paths = [Path(folder).resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise _checks.InvalidValueError("the same run is given twice. Give each once.")
    while len(paths) > 1 and min(map(len, paths)) > 2 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    parts = next(count for count in itertools.count(1) if len({path[-count:] for path in paths}) == len(paths))
    return ["/".join(path[-parts:]) for path in paths]
