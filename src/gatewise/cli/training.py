"""The commands that train: train and compare."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gatewise import _validation, errors
from gatewise.cli.app import Json, Whole, app, print_table, whole
from gatewise.comparison import compare as compare_gates
from gatewise.comparison import table as comparison_table
from gatewise.spec import GATER, GateChoice, format_gates, parse_gates, parse_gates_list
from gatewise.training import TITLES, Processes, Progress, Recipe
from gatewise.training import train as train_recipe


def _flags(name: str, *left_out: str) -> type:
    """Make a dataclass with one optional flag for each field of the recipe, its help taken from the recipe's text."""
    described = dict(re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)$", Recipe.__doc__ or "", flags=re.MULTILINE))
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(Recipe):
        if field.name not in left_out:
            text = f"{' '.join(described[field.name].split()).rstrip('.')} [{field.default}]"
            convert = whole if field.type in {int, int | None} else None
            parameter = Parameter(help=text, show_default=False, converter=convert)
            kind: Any = Annotated[field.type | None, parameter]  # type: ignore[operator]
            fields.append((field.name, kind, dataclasses.field(default=None)))
    # cyclopts reads the fields of classes that belong to a module of ours, and make_dataclass says "types".
    return dataclasses.make_dataclass(name, fields, kw_only=True, frozen=True, namespace={"__module__": __name__})


TrainFlags: Any = _flags("TrainFlags")
CompareFlags: Any = _flags("CompareFlags", "gate", "seed")


def _recipe(file: Path | None, flags: Any) -> Recipe:
    """Return the recipe of `file` (or the default one) with the flags that were given."""
    base = Recipe.load(file) if file else Recipe()
    given = {name: value for name, value in dataclasses.asdict(flags).items() if value is not None}
    return dataclasses.replace(base, **given)


def _with_gater(recipe: Recipe, **options: Any) -> Recipe:
    """Return the recipe with a gater of these options, those that are None left out; without any, as it is."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return recipe
    gates = (*parse_gates(recipe.gate), GateChoice(GATER, given))
    return dataclasses.replace(recipe, gate=format_gates(gates))


def _workers(given: int | None) -> int:
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _validation.check_integer_at_least(0, workers=given)
    return given


@app.command
def train(
    *,
    out: Path,
    recipe: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[TrainFlags, Parameter(name="*")] = TrainFlags(),  # noqa: B008  # pyright: ignore
    gater: str | None = None,
    sites: str | None = None,
    budget: float | None = None,
    workers: Whole | None = None,
    json_output: Json = False,
) -> None:
    """Train one network, with or without gates, into a run folder.

    Example: gatewise train --data digits --model resnet20 --gate gct --epochs 20 --seed 0 --out runs/gct

    Parameters
    ----------
    out
        The run folder.
    recipe
        A YAML file with the flags below; flags given here win over it.
    flags
        The recipe.
    resume
        Go on behind the last checkpoint of an interrupted run; start afresh where there is none.
    gater
        Put a GaterNet around the network, with this gater: light, resnet20 or local [light, where --sites or
        --budget is given].
    sites
        Which of its filters are gated: inner or residual.
    budget
        Share of their multiply-adds that shall be open.
    workers
        Processes that decode and augment images where that is done one by one [one for each processor].
    json_output
        Print the metrics as JSON.
    """
    chosen = _with_gater(_recipe(recipe, flags), gater=gater, sites=sites, budget=budget)
    metrics = train_recipe(chosen, out, resume=resume, workers=_workers(workers), progress=Progress())
    if not Processes().is_main:
        return
    if json_output:
        print(json.dumps(metrics, indent=2))
    else:
        score = metrics["score"]
        print(
            f"{TITLES[score]} {100 * metrics[score]:.2f} % after {metrics['epochs']} epochs, {_work_done(metrics)}"
            f"{metrics['images_per_second']:.0f} training images/s; run: {out}"
        )


def _work_done(metrics: dict[str, Any]) -> str:
    """Say what a network that chooses its filters did."""
    if "open_fraction" not in metrics:
        return ""
    return f"{metrics['open_fraction']:.3f} open, {metrics['executed_macs'] / 1e6:.2f} M MACs an image, "


@app.command
def compare(
    *,
    out: Path,
    gates: str = "none,se,gct,gc",
    seeds: Whole = 3,
    recipe: Path | None = None,
    flags: Annotated[CompareFlags, Parameter(name="*")] = CompareFlags(),  # noqa: B008  # pyright: ignore
    workers: Whole | None = None,
    ray: Annotated[bool | str, Parameter(negative="")] = False,
    json_output: Json = False,
) -> None:
    """Train several gates with several seeds and tell which helps, by how much, if it is more than luck, at what cost.

    Example: gatewise compare --data digits --model resnet20 --gates none,se,gct --seeds 3 --epochs 20 --out comparison

    An interrupted comparison goes on when the same command is given again.

    Parameters
    ----------
    out
        The folder of the comparison.
    gates
        What to compare, separated by commas: none, gct, gct:mode=l1@before_conv, gct+se, ... Differences are to
        none, or to the first where none is not listed.
    seeds
        How many seeds, counted from 0.
    recipe
        A YAML file with the flags below; flags given here win over it, and --gates and --seeds over its gate and seed.
    flags
        The recipe.
    workers
        Processes that decode and augment images where that is done one by one [one for each processor; with --ray the
        share of the processors that a GPU has].
    ray
        Spread the runs over a Ray cluster, by its address (192.168.0.1:6379, or auto for the one that runs here); alone
        over the processors or GPUs of this machine. All machines must share --out and the data.
    json_output
        Print the results as JSON.
    """
    results = compare_gates(
        _recipe(recipe, flags),
        parse_gates_list(gates),
        seeds,
        out,
        workers=workers if ray and workers is None else _workers(workers),
        progress=Progress(),
        ray=ray,
    )
    if not Processes().is_main:
        return
    if json_output:
        print(json.dumps(results, indent=2))
    else:
        print_table(comparison_table(results))
        where = results["environment"]
        print(f"{where['hardware']}, torch {where['torch']}, {results['precision']}; latency: {results['latency']}")
        print(f"report: {(out / 'report.html').resolve()}")
    if results["failed"]:
        reasons = "; ".join(f"{name}, {reason}" for name, reason in results["failed"].items())
        raise errors.TrainingError(f"left out of the table: {reasons}")
