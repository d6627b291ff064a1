"""What the commands share: the application, its errors and exit codes, numbers, JSON and tables."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table as RichTable

from gatewise import errors
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


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which is taken as Ctrl-C is."""


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Terminated


@contextlib.contextmanager
def _taking_sigterm_as_ctrl_c() -> Generator[None]:
    """Raise `Terminated` at SIGTERM; outside the main thread, where Python allows no handlers, leave it alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failed training, 2 for a user's mistake."""
    with _taking_sigterm_as_ctrl_c():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(arguments, print_error=False, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()  # what cannot be printed is said here, and not by Python at its end
    except cyclopts.MissingArgumentError as error:
        given = error.argument is not None and bool(error.argument.tokens or error.keyword)
        return _complain(error if given or error.argument is None else f"{error.argument.name} is missing.", 2)
    except cyclopts.CycloptsError as error:
        return _complain(error, 2)
    except BrokenPipeError:  # whoever read what is printed has gone, as head does
        _leave_standard_output()
        return 128 + 13
    except errors.TrainingError as error:
        return _complain(error, 1)
    except errors.GatewiseError as error:
        return _complain(error, 2)
    except OSError as error:
        if error.filename is not None:
            return _complain(error, 2)
        _leave_standard_output()  # the one file without a name
        return _complain(f"the result cannot be printed: {error.strerror}. What was written to files is whole.", 2)
    except Interrupted as error:
        return _complain(error, 128 + error.signal)
    except KeyboardInterrupt as error:
        code = 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
        return _complain("interrupted; give the same command again to go on (train: with --resume)", code)
    return 0


def _leave_standard_output() -> None:
    """Let what is still to be printed go nowhere, so that Python does not complain once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: object, code: int) -> int:
    print(f"gatewise: {' '.join(str(error).split())}", file=sys.stderr)
    return code
