"""The train and compare commands."""

import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import Integer, Json, app, print_answer, print_table
from gatewise.cli.recipe_flags import recipe_flags, with_flags

if TYPE_CHECKING:
    from gatewise.training import Recipe


TrainFlags: Any = recipe_flags("TrainFlags")
CompareFlags: Any = recipe_flags("CompareFlags", omitted=("gate", "seed"))


def _with_gater(recipe: "Recipe", **options: Any) -> "Recipe":
    """Return the recipe with these options of its gater, which is added if there is none; None leaves an option."""
    from gatewise.gates.spec import GATER, GateChoice, format_gates, parse_gates

    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return recipe
    gates = parse_gates(recipe.gate)
    own = next((dict(gate.options) for gate in gates if gate.is_gater), {})
    others = (gate for gate in gates if not gate.is_gater)
    return dataclasses.replace(recipe, gate=format_gates((*others, GateChoice(GATER, own | given))))


def _workers(given: int | None) -> int:
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    from gatewise.core import _validation

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
    routes: Integer | None = None,
    workers: Integer | None = None,
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
        chosen, out, resume=resume, workers=_workers(workers), progress=Progress(), track=parse_trackers(track)
    )
    if not Processes().is_main:
        return
    if json_output:
        print(json.dumps(metrics, indent=2))
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


@app.command
def compare(
    *,
    out: Path,
    gates: str = "none,se,gct,gc",
    seeds: Integer = 3,
    detect: float | None = None,
    recipe: Path | None = None,
    flags: Annotated[CompareFlags, Parameter(name="*")] = CompareFlags(),  # noqa: B008  # pyright: ignore
    workers: Integer | None = None,
    ray: Annotated[bool | str, Parameter(negative="")] = False,
    command: str | None = None,
    score_from: str | None = None,
    baseline: str | None = None,
    lower_is_better: Annotated[bool, Parameter(negative="")] = False,
    unit: str = "",
    rivals: str = "",
    corruptions: Annotated[bool, Parameter(negative="")] = False,
    track: str = "tensorboard",
    json_output: Json = False,
) -> None:
    """Train every gate with every seed, and report each gate's gain, its significance and its cost.

    Example: gatewise compare --data digits --gates none,se,gct --out comparison

    Run the same command again to continue an interrupted comparison.

    Parameters
    ----------
    out
        Folder of the comparison.
    gates
        Gates to compare, separated by commas: none, gct, gct:mode=l1@before_conv, gct+se, ... The baseline is none,
        or the first entry if none is not listed.
    seeds
        Number of seeds: 0 to N - 1; with --detect the most.
    detect
        Difference to be able to see, in percentage points or the unit of the score: seeds are added, from three on,
        until the spread between seeds is small enough to show it for every gate with 80 % probability.
    recipe
        YAML file with values for the recipe flags below; flags on the command line override it, and --gates and --seeds
        override its gate and seed.
    flags
        Training options, one flag per field of the recipe.
    workers
        Number of worker processes per run that decode and augment images [one per processor; with --ray the number of
        processors per GPU].
    ray
        Run on the Ray cluster at this address (192.168.0.1:6379, or auto for the cluster of this machine). Without an
        address: start Ray on this machine. All machines must share --out and the data.
    rivals
        Kinds of cost, separated by commas: params, macs (multiply-adds) or latency (of one image, PyTorch eager). For
        each kind and gate also train a plain network, wider or narrower, that costs the same [none].
    corruptions
        Also score all networks on validation images with 15 common corruptions in five strengths.
    track
        Experiment trackers, separated by commas, or none: tensorboard, wandb, mlflow, ... as Accelerate names them.
    command
        Any command that trains, with {gates}, {seed} and {out}: 'python train.py --model {gates} --seed {seed}
        --output {out}'. It is split into words as by a shell, and run without one, for each entry of --gates, which
        may be any text, and each seed. The recipe flags are not used.
    score_from
        Where the command writes its score, below {out}: FILE:COLUMN:last (or best, max, min) of a CSV or JSON lines
        file, or FILE:path.of.entry of a JSON file. FILE may be a glob with one match.
    baseline
        With --command, the entry to which the others are compared [none, or the first].
    lower_is_better
        With --command, lower scores are better.
    unit
        With --command, the unit of the score; with % it lies between 0 and 100.
    json_output
        Print the results as JSON.
    """
    from gatewise.comparison import compare as compare_gates
    from gatewise.comparison import compare_command
    from gatewise.gates.spec import parse_gates_list
    from gatewise.training import Processes, Progress
    from gatewise.training.trackers import parse_trackers

    if command is not None or score_from is not None:
        _check_command_flags(command, score_from, recipe, flags, rivals=rivals)
        assert command is not None
        assert score_from is not None
        results = compare_command(
            command,
            gates.split(","),
            seeds,
            out,
            score_from=score_from,
            baseline=baseline,
            lower_is_better=lower_is_better,
            unit=unit,
            detect=detect,
            ray=ray,
            progress=Progress(),
            written_as=shlex.join(["gatewise", *sys.argv[1:]]),
        )
        _print_comparison(results, out, json_output=json_output)
        return
    of_command = {"--baseline": baseline, "--lower-is-better": lower_is_better, "--unit": unit}
    if unused := [name for name, value in of_command.items() if value]:
        raise errors.InvalidValueError(f"{unused[0]} is for --command. Omit it.")
    results = compare_gates(
        with_flags(recipe, flags),
        parse_gates_list(gates),
        seeds,
        out,
        workers=workers if ray and workers is None else _workers(workers),
        progress=Progress(),
        ray=ray,
        detect=detect,
        rivals=[rivals] if rivals else [],
        corruptions=corruptions,
        track=parse_trackers(track),
    )
    if not Processes().is_main:
        return
    _print_comparison(results, out, json_output=json_output)


def _check_command_flags(
    command: str | None, score_from: str | None, recipe: Path | None, flags: Any, *, rivals: str | None
) -> None:
    """Raise unless --command and --score-from are given together, without flags that the command would not see."""
    if command is None or score_from is None:
        raise errors.InvalidValueError(
            "--command and --score-from go together: --command 'python train.py --model {gates} --seed {seed} --output "
            "{out}' --score-from summary.csv:eval_top1:last."
        )
    given = [name for name, value in dataclasses.asdict(flags).items() if value is not None]
    given += ["recipe"] * (recipe is not None) + ["rivals"] * bool(rivals)
    if given:
        raise errors.InvalidValueError(
            f"--{given[0].replace('_', '-')} is not for --command, so write it into the command."
        )


def _print_comparison(results: dict[str, Any], out: Path, *, json_output: bool) -> None:
    """Print the answer and the table of a comparison; raise if some of its trainings have failed."""
    from gatewise.comparison import table as comparison_table

    if json_output:
        print(json.dumps(results, indent=2))
    else:
        print_answer(results)
        print_table(comparison_table(results))
        if "environment" in results:
            environment = results["environment"]
            print(
                f"{environment['hardware']}, torch {environment['torch']}, {results['precision']}; "
                f"latency: {results['latency']}"
            )
        print(f"report: {(out / 'report.html').resolve()}")
    if results["failed"]:
        reasons = "; ".join(f"{name}, {reason}" for name, reason in results["failed"].items())
        raise errors.TrainingError(f"failed and missing from the table: {reasons}")
