"""Write the model card of a run: results, use and training recipe, as Markdown with the hub's YAML header."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gatewise.data import HUB
from gatewise.training import Recipe
from gatewise.training.recipe_paths import PATHS
from gatewise.training.runs import Run

_MANY_CLASSES = 20

_USE = """\
```python
import torch
import gatewise as gw

net = gw.PretrainedNet.from_pretrained("FOLDER")  # or "user/name" on the hub
pixels = torch.zeros(1, {in_chans}, {size})  # 0 to 255
mean, std = (torch.tensor(net.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
logits = net((pixels - mean) / std)
{use}```

Or, with a downloaded folder: `gatewise predict FOLDER photo.jpg`.
"""


def model_card(run: Run) -> str:
    """Return the model card of a finished run: a YAML header for the hub, then Markdown."""
    header = yaml.safe_dump(_header(run), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join(_sections(run))


def _header(run: Run) -> dict[str, Any]:
    spec, tag, data, score = run.recipe.spec, run.task.pipeline_tag, _data(run), run.score.name
    header: dict[str, Any] = {
        "library_name": "gatewise",
        "pipeline_tag": tag,
        "tags": sorted({"gatewise", spec.model, *(choice.name for choice in spec.gates)}),
    }
    if run.recipe.data.startswith(HUB):
        header["datasets"] = [data]
    metric = {"type": score, "value": round(run.metrics[score], 6)}
    found = {"task": {"type": tag}, "dataset": {"type": data, "name": data}, "metrics": [metric]}
    return {**header, "model-index": [{"name": str(spec), "results": [found]}]}


def _sections(run: Run) -> Iterator[str]:
    config, recipe = run.config, run.recipe
    classes = list(config["classes"])
    named = ", ".join(classes[:_MANY_CLASSES]) + (", ..." if len(classes) > _MANY_CLASSES else "")
    yield f"# {recipe.model} with {recipe.gate or 'no gates'}\n"
    yield f"Trained with gatewise on {_data(run)}: {_outputs(run)} ({named}).\n"
    yield "## Results\n\n| | |\n| --- | --- |"
    yield from (f"| {what} | {value} |" for what, value in _rows(run))
    yield (
        "\nAfter the last epoch, not the best epoch. From one training with one seed; the variation between seeds is "
        "not known.\n"
    )
    size = ", ".join(map(str, config["image_size"]))
    yield "## Use\n\n" + _USE.format(in_chans=config["in_chans"], size=size, use=run.task.use and f"{run.task.use}\n")
    yield "## How it was trained\n\n```yaml\n" + yaml.safe_dump(_shareable(recipe), sort_keys=False) + "```"
    hardware = ", ".join(f"{key} {value}" for key, value in run.metrics["environment"].items())
    yield f"\nPrecision {run.metrics['precision']}; {hardware}.\n"


def _rows(run: Run) -> Iterator[tuple[str, str]]:
    metrics = run.metrics
    images = next((f" on {len(each):,} validation images" for each in run.predictions.values()), "")
    yield run.score.title, f"**{run.score.text(metrics[run.score.name])}**{images}"
    yield "parameters", f"{metrics['parameters']:,}"
    if "open_fraction" in metrics:
        yield "open gates", f"{100 * metrics['open_fraction']:.1f} % on average"
    if "executed_macs" in metrics:
        mean = " (open filters and gater), on average" if "open_fraction" in metrics else ""
        yield f"multiply-adds per image{mean}", f"{metrics['executed_macs'] / 1e6:,.1f} million"
    yield "epochs", str(metrics["epochs"])


def _outputs(run: Run) -> str:
    """Return what the network predicts, with its number if there are several."""
    count = len(run.classes)
    return f"{count} {run.task.outputs_are}" if count > 1 else run.task.outputs_are


def _data(run: Run) -> str:
    """Return the name of the data set, without parent folders."""
    data = run.recipe.data
    return data.removeprefix(HUB) if data.startswith(HUB) else Path(data).name


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe with paths cut to their last part, so that no local folders are published."""
    values = dataclasses.asdict(recipe)
    paths = (*PATHS, "class_names")
    return {
        key: Path(value).name if key in paths and isinstance(value, str) and not value.startswith(HUB) else value
        for key, value in values.items()
    }
