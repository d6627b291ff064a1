"""The compare command."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import Integer, Json, OptionalInteger, app, print_answer, print_json, print_table
from gatewise.cli.recipe_flags import flag_of, given_flags, recipe_flags, with_flags
from gatewise.cli.training import worker_count

CompareFlags: Any = recipe_flags("CompareFlags", omitted=("gate", "seed"))
_EXAMPLE = (
    "--command 'python train.py --model {gates} --seed {seed} --output {out}' --score-from summary.csv:eval_top1:last"
)


@dataclass(frozen=True, kw_only=True)
class CommandFlags:
    """The flags of a comparison whose trainings are runs of a command.

    Parameters
    ----------
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
    """

    command: str | None = None
    score_from: str | None = None
    baseline: str | None = None
    lower_is_better: Annotated[bool, Parameter(negative="")] = False
    unit: str = ""

    @property
    def given(self) -> list[str]:
        """The names of the given flags."""
        return [flag_of(name) for name, value in dataclasses.asdict(self).items() if value]


@app.command
def compare(
    *,
    out: Path,
    gates: str = "none,se,gct,gc",
    seeds: Integer = 3,
    detect: float | None = None,
    recipe: Path | None = None,
    flags: Annotated[CompareFlags, Parameter(name="*")] = CompareFlags(),  # noqa: B008  # pyright: ignore
    workers: OptionalInteger = None,
    ray: Annotated[bool | str, Parameter(negative="")] = False,
    rivals: str = "",
    corruptions: Annotated[bool, Parameter(negative="")] = False,
    track: str | None = None,
    of_command: Annotated[CommandFlags, Parameter(name="*")] = CommandFlags(),
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
        Experiment trackers, separated by commas, or none: tensorboard, wandb, mlflow, ... as Accelerate names them
        [tensorboard].
    of_command
        Flags of a comparison of your own trainings.
    json_output
        Print the results as JSON.
    """
    from gatewise.comparison import compare as compare_gates
    from gatewise.gates.spec import parse_gates_list
    from gatewise.training import Processes, Progress
    from gatewise.training.trackers import DEFAULT, parse_trackers

    if of_command.command is not None or of_command.score_from is not None:
        others = {
            "--recipe": recipe is not None,
            "--workers": workers is not None,
            "--rivals": bool(rivals),
            "--corruptions": corruptions,
            "--track": track is not None,
        }
        unused = [*map(flag_of, given_flags(flags)), *(name for name, given in others.items() if given)]
        results = _compare_command(of_command, unused, gates.split(","), seeds, out, detect=detect, ray=ray)
    elif of_command.given:
        raise errors.InvalidValueError(f"{of_command.given[0]} is for --command. Omit it.")
    else:
        results = compare_gates(
            with_flags(recipe, flags),
            parse_gates_list(gates),
            seeds,
            out,
            workers=workers if ray and workers is None else worker_count(workers),
            progress=Progress(),
            ray=ray,
            detect=detect,
            rivals=[rivals] if rivals else [],
            corruptions=corruptions,
            track=DEFAULT if track is None else parse_trackers(track),
        )
    if Processes().is_main:
        _print_comparison(results, out, json_output=json_output)


def _compare_command(
    flags: CommandFlags, unused: list[str], entries: list[str], seeds: int, out: Path, **options: Any
) -> dict[str, Any]:
    """Compare the trainings of a command; raise if a flag is missing, or given although the command does not see it."""
    from gatewise.comparison import compare_command
    from gatewise.training import Progress

    if flags.command is None or flags.score_from is None:
        raise errors.InvalidValueError(f"--command and --score-from go together: {_EXAMPLE}.")
    if unused:
        raise errors.InvalidValueError(f"{unused[0]} is not for --command, so write it into the command.")
    return compare_command(
        flags.command,
        entries,
        seeds,
        out,
        score_from=flags.score_from,
        baseline=flags.baseline,
        lower_is_better=flags.lower_is_better,
        unit=flags.unit,
        progress=Progress(),
        written_as=shlex.join(["gatewise", *sys.argv[1:]]),
        **options,
    )


def _print_comparison(results: dict[str, Any], out: Path, *, json_output: bool) -> None:
    """Print the answer and the table of a comparison; raise if some of its trainings have failed."""
    from gatewise.comparison import table as comparison_table

    if json_output:
        print_json(results)
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
