"""What the commands share: the application, its errors and exit codes, numbers, JSON and tables."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table as RichTable

from gatewise import _checks
from gatewise.analysis.table import Table
from gatewise.training import Interrupted

app = cyclopts.App(
    name="gatewise",
    help="Compare, train and insert gates on the channels of convolutional networks.",
    suppress_keyboard_interrupt=False,  # run() says how to go on
)


def whole(kind: Any, tokens: Sequence[cyclopts.Token]) -> int:  # noqa: ARG001
    """Read an integer; cyclopts itself would round 1.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"expected a whole number, got {tokens[0].value!r}.") from None


Whole = Annotated[int, Parameter(converter=whole)]
Json = Annotated[bool, Parameter(name="--json", negative="")]


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or as a wide one where there is none."""
    console = Console(width=None if sys.stdout.isatty() else 220)
    rich_table = RichTable(*table.columns)
    for row in table.rows:
        rich_table.add_row(*(cell.text for cell in row))
    console.print(rich_table)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failed training, 2 for a user's mistake."""
    try:
        app(arguments, print_error=False, exit_on_error=False, result_action="return_value")
    except cyclopts.MissingArgumentError as error:
        given = error.argument is not None and bool(error.argument.tokens or error.keyword)
        return _complain(error if given or error.argument is None else f"{error.argument.name} is missing.", 2)
    except cyclopts.CycloptsError as error:
        return _complain(error, 2)
    except BrokenPipeError:  # whoever read what is printed has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except _checks.TrainingError as error:
        return _complain(error, 1)
    except (_checks.GatewiseError, OSError) as error:
        return _complain(error, 2)
    except Interrupted as error:
        return _complain(error, 128 + error.signal)
    except KeyboardInterrupt:
        return _complain("interrupted; give the same command again to go on (train: with --resume)", 130)
    return 0


def _complain(error: object, code: int) -> int:
    print(f"gatewise: {' '.join(str(error).split())}", file=sys.stderr)
    return code
