"""Write the model card of a run: results, use and training recipe, as Markdown with the hub's YAML header."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gatewise import errors
from gatewise.data import HUB
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import read_metrics, read_tensors
from gatewise.training import TITLES, Recipe

_PIPELINES = {"classify": "image-classification", "segment": "image-segmentation"}
_MANY_CLASSES = 20

_USE = """\
```python
import torch
import gatewise as gw

net = gw.PretrainedNet.from_pretrained("FOLDER")  # or "user/name" on the hub
pixels = torch.zeros(1, {in_chans}, {size})  # 0 to 255
mean, std = (torch.tensor(net.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
logits = net((pixels - mean) / std)
```

Or, with a downloaded folder: `gatewise predict FOLDER photo.jpg`.
"""


@dataclass(frozen=True)
class Results:
    """Config, metrics and recipe of a finished run.

    Attributes:
        config: content of `config.json`.
        metrics: content of `metrics.json`.
        recipe: recipe of the training.
        images: number of validation images that the score was computed on, or None if unknown.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    recipe: Recipe
    images: int | None

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> "Results":
        """Read the files of a run folder; raise `DataError` if the run has not finished."""
        if absent := [key for key in ("classes", "image_size", "in_chans") if key not in config]:
            raise errors.DataError(f"{folder / 'config.json'} has no {', '.join(absent)}. Was it written by gatewise?")
        metrics = folder / "metrics.json"
        if not metrics.exists():
            raise errors.DataError(
                f"{folder} has no metrics.json: the run has not finished. Resume it with gatewise train --resume."
            )
        predictions = folder / "predictions.safetensors"
        images = len(next(iter(read_tensors(predictions).values()))) if predictions.exists() else None
        return cls(config, read_metrics(folder), Recipe.load(folder / "recipe.yaml"), images)

    @property
    def score(self) -> str:
        """Name of the main metric, a key of `TITLES`."""
        return self.metrics.get("score", "accuracy")

    @property
    def data(self) -> str:
        """Name of the data set, without parent folders."""
        data = self.recipe.data
        return data.removeprefix(HUB) if data.startswith(HUB) else Path(data).name


def model_card(results: Results) -> str:
    """Return the model card: a YAML header for the hub, then Markdown."""
    header = yaml.safe_dump(_header(results), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join(_sections(results))


def _header(results: Results) -> dict[str, Any]:
    spec = ModelSpec.from_dict(results.config["spec"])
    task = _PIPELINES[results.config.get("task", "classify")]
    header: dict[str, Any] = {
        "library_name": "gatewise",
        "pipeline_tag": task,
        "tags": sorted({"gatewise", spec.model, *(choice.name for choice in spec.gates)}),
    }
    if results.recipe.data.startswith(HUB):
        header["datasets"] = [results.data]
    metric = {"type": results.score, "value": round(results.metrics[results.score], 6)}
    found = {"task": {"type": task}, "dataset": {"type": results.data, "name": results.data}, "metrics": [metric]}
    return {**header, "model-index": [{"name": str(spec), "results": [found]}]}


def _sections(results: Results) -> Iterator[str]:
    config, recipe = results.config, results.recipe
    classes = list(config["classes"])
    named = ", ".join(classes[:_MANY_CLASSES]) + (", ..." if len(classes) > _MANY_CLASSES else "")
    yield f"# {recipe.model} with {recipe.gate or 'no gates'}\n"
    yield f"Trained with gatewise on {results.data}: {len(classes)} classes ({named}).\n"
    yield "## Results\n\n| | |\n| --- | --- |"
    yield from (f"| {what} | {value} |" for what, value in _rows(results))
    yield (
        "\nAfter the last epoch, not the best epoch. From one training with one seed; the variation between seeds is "
        "not known.\n"
    )
    size = ", ".join(map(str, config["image_size"]))
    yield "## Use\n\n" + _USE.format(in_chans=config["in_chans"], size=size)
    yield "## How it was trained\n\n```yaml\n" + yaml.safe_dump(_shareable(recipe), sort_keys=False) + "```"
    hardware = ", ".join(f"{key} {value}" for key, value in results.metrics["environment"].items())
    yield f"\nPrecision {results.metrics['precision']}; {hardware}.\n"


def _rows(results: Results) -> Iterator[tuple[str, str]]:
    metrics = results.metrics
    images = f" on {results.images:,} validation images" if results.images else ""
    yield TITLES[results.score], f"**{100 * metrics[results.score]:.2f} %**{images}"
    yield "parameters", f"{metrics['parameters']:,}"
    if "open_fraction" in metrics:
        yield "open gates", f"{100 * metrics['open_fraction']:.1f} % on average"
    if "executed_macs" in metrics:
        yield "MACs executed per image, on average", f"{metrics['executed_macs'] / 1e6:,.1f} million"
    yield "epochs", str(metrics["epochs"])


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe with paths cut to their last part, so that no local folders are published."""
    values = dataclasses.asdict(recipe)
    paths = ("data", "init", "gater_init", "class_names")
    return {
        key: Path(value).name if key in paths and isinstance(value, str) and not value.startswith(HUB) else value
        for key, value in values.items()
    }
