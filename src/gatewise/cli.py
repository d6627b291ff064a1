"""The command line: parse, call, print."""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table as RichTable

from gatewise import _checks, registry
from gatewise.analysis.page import Cell, Table
from gatewise.compare import compare as compare_gates
from gatewise.compare import table as comparison_table
from gatewise.spec import parse_gates_list
from gatewise.training import Progress, Recipe
from gatewise.training import train as train_recipe

app = cyclopts.App(name="gatewise", help="Compare, train and insert gates on the channels of convolutional networks.")


def _flags(name: str, *left_out: str) -> type:
    """Make a dataclass with one optional flag for each field of the recipe, its help taken from the recipe's text."""
    described = dict(re.findall(r"^ {8}(\w+): (.+)$", Recipe.__doc__ or "", flags=re.MULTILINE))
    fields = []
    for field in dataclasses.fields(Recipe):
        if field.name not in left_out:
            text = f"{described[field.name].rstrip('.')} [{field.default}]"
            kind: Any = Annotated[field.type | None, Parameter(help=text, show_default=False)]  # type: ignore[operator]
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


@app.command
def gates(*, json_output: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the gates: what each is, where its paper puts it, and its options.

    Example: gatewise gates

    Parameters
    ----------
    json_output
        Print JSON instead of a table.
    """
    facts = [registry.gate_spec(name) for name in registry.gate_names()]
    if json_output:
        rows = [
            {"name": f.name, "title": f.title, "place": f.place, "options": list(f.options), "paper": f.paper}
            for f in facts
        ]
        print(json.dumps(rows, indent=2))
        return
    columns = ["gate", "what", "place", "identity at init", "options", "paper"]
    _print_table(Table(columns, [[Cell(text) for text in _describe(fact)] for fact in facts]))


def _describe(fact: registry.GateSpec) -> tuple[str, ...]:
    identity = "yes" if fact.make(64).identity_at_init else "no"
    return fact.name, fact.title, fact.place, identity, ", ".join(fact.options), fact.paper


@app.command
def train(
    *,
    out: Path,
    recipe: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[TrainFlags, Parameter(name="*")] = TrainFlags(),  # noqa: B008  # pyright: ignore
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
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
        Go on behind the last epoch of an interrupted run; start afresh where there is none.
    json_output
        Print the metrics as JSON.
    """
    metrics = train_recipe(_recipe(recipe, flags), out, resume=resume, progress=Progress())
    if json_output:
        print(json.dumps(metrics, indent=2))
    else:
        print(
            f"accuracy {100 * metrics['accuracy']:.2f} % after {metrics['epochs']} epochs, "
            f"{metrics['images_per_second']:.0f} training images/s; run: {out}"
        )


@app.command
def compare(
    *,
    out: Path,
    gates: str = "none,se,gct,gc",
    seeds: int = 3,
    recipe: Path | None = None,
    flags: Annotated[CompareFlags, Parameter(name="*")] = CompareFlags(),  # noqa: B008  # pyright: ignore
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train several gates with several seeds and tell which helps, by how much, if it is more than luck, at what cost.

    Example: gatewise compare --data digits --model resnet20 --gates none,se,gct --seeds 3 --epochs 20 --out comparison

    An interrupted comparison goes on when the same command is given again.

    Parameters
    ----------
    out
        The folder of the comparison.
    gates
        What to compare, separated by commas: none, gct, gct:mode=l1@before_conv, gct+se, ...
    seeds
        How many seeds, counted from 0.
    recipe
        A YAML file with the flags below; flags given here win over it.
    flags
        The recipe.
    json_output
        Print the results as JSON.
    """
    results = compare_gates(_recipe(recipe, flags), parse_gates_list(gates), seeds, out, progress=Progress())
    if json_output:
        print(json.dumps(results, indent=2))
        return
    _print_table(comparison_table(results))
    where = results["environment"]
    print(f"{where['hardware']}, torch {where['torch']}, {results['precision']}; latency: {results['latency']}")
    print(f"report: {(out / 'report.html').resolve()}")


def _print_table(table: Table) -> None:
    console = Console(width=None if sys.stdout.isatty() else 220)
    rich_table = RichTable(*table.columns)
    for row in table.rows:
        rich_table.add_row(*(cell.text for cell in row))
    console.print(rich_table)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failed training, 2 for a user's mistake."""
    try:
        app(arguments, print_error=False, exit_on_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _complain(error, 2)
    except _checks.TrainingError as error:
        return _complain(error, 1)
    except (_checks.GatewiseError, OSError) as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("interrupted; give the same command again to go on (train: with --resume)", 130)
    return 0


def _complain(error: object, code: int) -> int:
    print(f"gatewise: {' '.join(str(error).split())}", file=sys.stderr)
    return code
