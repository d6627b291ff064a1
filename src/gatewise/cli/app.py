"""Shared parts of the command line: the application, exit codes, error output, argument types and tables.

No module of the command line imports torch: its commands import what they call, so help and mistakes take no time.
"""

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table as RichTable

from gatewise import errors
from gatewise.core.stop_signals import stop_signals

if TYPE_CHECKING:
    from gatewise.analysis.table import Table

app = cyclopts.App(
    name="gatewise",
    help="Compare, train and insert gates on the channels of convolutional networks.",
    suppress_keyboard_interrupt=False,  # run() prints how to continue
)


def parse_integer(kind: Any, tokens: Sequence[cyclopts.Token]) -> int:  # noqa: ARG001
    """Parse an integer; cyclopts would round 1.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"expected an integer, got {tokens[0].value!r}.") from None


def parse_optional_integer(kind: Any, tokens: Sequence[cyclopts.Token]) -> int | None:
    """Parse an integer or "none"."""
    return None if tokens[0].value.lower() == "none" else parse_integer(kind, tokens)


Integer = Annotated[int, Parameter(converter=parse_integer)]
OptionalInteger = Annotated[int | None, Parameter(converter=parse_optional_integer)]
_PIPE_WIDTH = 10_000
NOT_GIVEN: Any = object()  # default of flags of which a typed "none" means something
Json = Annotated[bool, Parameter(name="--json", negative="")]


def _import_network(kind: Any, tokens: Sequence[cyclopts.Token]) -> str:  # noqa: ARG001
    """Import the function of a network that was typed; cyclopts would show an error of ours as its own."""
    from gatewise.models import import_network

    import_network(tokens[0].value)
    return tokens[0].value


OwnNetwork = Annotated[str | None, Parameter(name="--model", converter=_import_network)]


_HINTS = {  # by command and by an option that other programs, or other commands, have
    ("compare", "--resume"): "An interrupted comparison goes on when the same command is given again.",
    ("compare", "--learning-rate"): "Did you mean --lr?",
    ("train", "--learning-rate"): "Did you mean --lr?",
}
_AFTER_INTERRUPTION = {"train": " with --resume to continue", "compare": " to continue"}  # others start again
_FIRST_STEPS = """\
gatewise answers: which gate helps on these images, by how much, is it more than luck, and what does it cost?

First steps
  gatewise demo                                  the whole story on handwritten digits, in two minutes
  gatewise check --data FOLDER                   what is in a folder of your images; nothing is trained
  gatewise compare --data FOLDER --out results   train gates and plain networks, and judge them

Then, with one of the runs, such as results/runs/gct/seed_0
  gatewise explain RUN --out page.html           what its gates have learned
  gatewise predict RUN photo.jpg                 the class of an image
  gatewise export RUN --out net.onnx             one file for another runtime

All commands: gatewise --help. Flags and an example: gatewise COMMAND --help. Gates: gatewise gates.
Tab completion: gatewise completion --help.
"""


def literal(text: str) -> str:
    """Return text for a help page, which is Markdown: asterisks of file patterns would begin emphasis."""
    return text.replace("*", r"\*")


def print_table(table: "Table") -> None:
    """Print a table at the width of the terminal or $COLUMNS, or else, in a pipe, each row in one line.

    A table that is too wide is turned, with a column for each row, if it is narrower so.
    """
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH)
    rows = [[cell.text for cell in row] for row in table.rows]
    upright = _rich_table(table.columns, rows)
    if _width(upright) > console.width:
        header, *turned = zip(table.columns, *rows, strict=True)
        upright = min(upright, _rich_table(header, turned), key=_width)
    console.print(upright)


def _rich_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> RichTable:
    rich_table = RichTable()
    for column in columns:
        rich_table.add_column(column, overflow="fold")  # so that names are not cut off
    for row in rows:
        rich_table.add_row(*row)
    return rich_table


def _width(table: RichTable) -> int:
    """Return the width of a table without line breaks in its cells."""
    console = Console(width=_PIPE_WIDTH)
    return console.measure(table).maximum


def print_json(values: Any) -> None:
    """Print values as JSON, null for a number that is not finite."""
    from gatewise.core.files import without_nan

    print(json.dumps(without_nan(values), indent=2))


def print_answer(results: Mapping[str, Any]) -> None:
    """Print the sentences that answer a comparison."""
    print("\n".join(results["summary"]), end="\n\n")


def _page_file(kind: Any, tokens: Sequence[cyclopts.Token]) -> Path:  # noqa: ARG001
    """Parse the name of a page; one without a suffix gets .html."""
    path = Path(tokens[0].value)
    return path if path.suffix or path.is_dir() else path.with_suffix(".html")


PageFile = Annotated[Path, Parameter(converter=_page_file)]


class Terminated(KeyboardInterrupt):
    """Raised with the number of another signal than SIGINT, which is handled like Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Terminated(number)


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Generator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP; do nothing outside the main thread, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _terminate) for number in stop_signals() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: words of the command line; None reads `sys.argv`.

    Returns:
        0 for success, 1 for a failed training, 2 for invalid input, 128 + N after signal N.
    """
    with _signals_as_ctrl_c():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        if not (sys.argv[1:] if arguments is None else arguments):
            print(_FIRST_STEPS, end="")
            return 0
        app(arguments, print_error=False, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()  # report a failed write here, not at interpreter exit
    except cyclopts.MissingArgumentError as error:
        given = error.argument is not None and bool(error.argument.tokens or error.keyword)
        return _print_error(error if given or error.argument is None else f"{error.argument.name} is missing.", 2)
    except cyclopts.UnknownOptionError as error:
        hint = _HINTS.get(((error.command_chain or ("",))[-1], error.token.keyword or ""))
        return _print_error(error if hint is None else f"Unknown option: {error.token.keyword}. {hint}", 2)
    except cyclopts.UnusedCliTokensError as error:
        return _print_error(_too_many(error), 2)
    except cyclopts.CycloptsError as error:
        return _print_error(error, 2)
    except BrokenPipeError:  # the reader closed the pipe, as head does
        _discard_standard_output()
        return 128 + 13
    except errors.TrainingError as error:
        return _print_error(error, 1)
    except errors.GatewiseError as error:
        return _print_error(error, 2)
    except OSError as error:
        if error.filename is not None:
            return _print_error(error, 2)
        _discard_standard_output()  # an error without the name of a file is one of standard output
        return _print_error(f"cannot write to standard output: {error.strerror}. All output files are complete.", 2)
    except errors.Interrupted as error:
        return _print_error(error, 128 + error.signal)
    except KeyboardInterrupt as error:
        code = 128 + (error.args[0] if isinstance(error, Terminated) else signal.SIGINT)
        command = next(iter(sys.argv[1:] if arguments is None else arguments))
        return _print_error(f"interrupted; run the same command again{_AFTER_INTERRUPTION.get(command, '')}", code)
    return 0


def _too_many(error: cyclopts.UnusedCliTokensError) -> str:
    """Return what a command takes, and what to type instead, for words that belong to no option."""
    command, words = " ".join(error.command_chain or ()), shlex.join(error.unused_tokens or ())
    arguments = app[command].assemble_argument_collection()
    taken = [argument.name for argument in arguments if argument.field_info.is_positional]
    has_data = any("--data" in argument.names for argument in arguments)
    advice = [f"give images with --data {words}"] if has_data else []
    advice += [f"call it once for each {taken[0]}"] if taken else []
    takes = f"one {' and one '.join(taken)}" if taken else "options only"
    return f"{command} takes {takes}, got also {words}: {', or '.join(advice) or 'omit it'}."


def _discard_standard_output() -> None:
    """Redirect standard output to the null device, so that the flush at interpreter exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: object, code: int) -> int:
    from gatewise.cli.recipe_flags import with_names_of_flags

    print(f"gatewise: {with_names_of_flags(' '.join(str(error).split()))}", file=sys.stderr)
    return code
