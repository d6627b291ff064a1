"""The train command."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gatewise.cli.app import NOT_GIVEN, Json, OptionalInteger, app, print_json
from gatewise.cli.recipe_flags import recipe_flags, with_flags

if TYPE_CHECKING:
    from gatewise.training import Recipe


TrainFlags: Any = recipe_flags("TrainFlags")
_GATER_FLAG = Parameter(show_default=False)


def _with_gater(recipe: "Recipe", **options: Any) -> "Recipe":
    """Return the recipe with these options of its gater, which is added if there is none; None removes one."""
    from gatewise.gates.spec import GATER, GateChoice, format_gates, parse_gates

    given = {name: value for name, value in options.items() if value is not NOT_GIVEN}
    gates = parse_gates(recipe.gate)
    own = next((dict(gate.options) for gate in gates if gate.is_gater), None)
    if not given or (own is None and all(value is None for value in given.values())):
        return recipe
    chosen = {name: value for name, value in ((own or {}) | given).items() if name not in given or value is not None}
    others = (gate for gate in gates if not gate.is_gater)
    return dataclasses.replace(recipe, gate=format_gates((*others, GateChoice(GATER, chosen))))


def worker_count(given: int | None) -> int:
    """Return the given number of worker processes, or one per processor."""
    from gatewise.core import _validation
    from gatewise.training.distributed import usable_processors

    if given is None:
        return usable_processors()
    _validation.check_integer_at_least(0, workers=given)
    return given


@app.command
def train(
    *,
    out: Path,
    recipe: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[TrainFlags, Parameter(name="*")] = TrainFlags(),  # noqa: B008  # pyright: ignore
    gater: Annotated[str, _GATER_FLAG] = NOT_GIVEN,
    sites: Annotated[str, _GATER_FLAG] = NOT_GIVEN,
    budget: Annotated[float | None, _GATER_FLAG] = NOT_GIVEN,
    routes: Annotated[OptionalInteger, _GATER_FLAG] = NOT_GIVEN,
    workers: OptionalInteger = None,
    track: str = "tensorboard",
    json_output: Json = False,
) -> None:
    """Train one network, with or without gates, and write a run folder.

    Example: gatewise train --data digits --gate gct --epochs 20 --out runs/gct

    Parameters
    ----------
    out
        Run folder to write.
    recipe
        YAML file with values for the recipe flags below; flags on the command line override it.
    flags
        Training options, one flag per field of the recipe.
    resume
        Resume from the last checkpoint, or start if there is none.
    gater
        Wrap the network in a GaterNet with this gater: light, resnet20 or local [light if --sites, --budget or --routes
        is given, otherwise no gater].
    sites
        Filters that the GaterNet gates: inner or residual.
    budget
        Target fraction of the gated filters' MACs.
    routes
        Number of filter sets of equal cost, of which the gater picks one for each image.
    workers
        Number of worker processes that decode and augment images [one per processor].
    track
        Experiment trackers, separated by commas, or none: tensorboard, wandb, mlflow, ... as Accelerate names them.
    json_output
        Print the metrics as JSON.
    """
    from gatewise.training import Processes, Progress, score_named
    from gatewise.training import train as train_recipe
    from gatewise.training.trackers import parse_trackers

    chosen = _with_gater(with_flags(recipe, flags), gater=gater, sites=sites, budget=budget, routes=routes)
    metrics = train_recipe(
        chosen, out, resume=resume, workers=worker_count(workers), progress=Progress(), track=parse_trackers(track)
    )
    if not Processes().is_main:
        return
    if json_output:
        print_json(metrics)
    else:
        score, epochs = score_named(metrics["score"]), metrics["epochs"]
        print(
            f"{score.title} {score.text(metrics[score.name])} after {epochs} {'epoch' if epochs == 1 else 'epochs'}, "
            f"{_work_done(metrics)}, "
            f"{metrics['images_per_second']:.0f} training images/s; run: {out}"
        )


def _work_done(metrics: dict[str, Any]) -> str:
    """Return parameters and multiply-adds per image of a network, and open and dependent gates of a GaterNet."""
    parts: list[str] = []
    executed = ""
    if "open_fraction" in metrics:
        from gatewise.gaternet.budget import describe_open_fraction

        open_fraction = describe_open_fraction(metrics["open_fraction"], metrics.get("budget"))
        parts.append(f"{open_fraction} of the gated filters' multiply-adds open")
        if "dependent_gates" in metrics:  # missing in runs of earlier versions
            parts.append(f"{100 * metrics['dependent_gates']:.0f} % of the gates depend on the image")
        executed = " (open filters and gater)"
    parts.append(f"{metrics['parameters']:,} parameters")
    if "executed_macs" in metrics:
        parts.append(f"{metrics['executed_macs'] / 1e6:.2f} M multiply-adds per image{executed}")
    return ", ".join(parts)
