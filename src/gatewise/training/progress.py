"""Show the progress of a training: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from gatewise.core import _validation
from gatewise.training.tasks import main_score

_logger = logging.getLogger(__name__)


def epoch_line(title: str, epochs: int, row: Mapping[str, Any]) -> str:
    """Return a one-line summary of an epoch.

    Args:
        title: name of the training.
        epochs: number of epochs of the training.
        row: the epoch's row of the log.
    """
    score = main_score(row)
    of_gates = f" + {row['gate_loss']:.4f} of the gates" if "gate_loss" in row else ""
    return (
        f"{title}: epoch {row['epoch']}/{epochs}, loss {row['loss']:.4f}{of_gates}, "
        f"{score.title} {score.text(row[f'validation_{score.name}'])}, {row['images_per_second']:.0f} images/s"
    )


class Progress:
    """Show the progress of one training after another on standard error.

    Args:
        quiet: show nothing; the lines go to the logger "gatewise.training.progress" instead, at level INFO.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._title, self._epochs, self._started = "", 0, 0.0
        self._bar: Any = None
        self._task: Any = None

    def start(self, title: str, epochs: int, steps: int, done: int = 0, step: int = 0) -> None:
        """Start a training of `epochs` epochs of `steps` steps, after `done` completed epochs and `step` steps."""
        self._title, self._epochs, self._started = title, epochs, time.monotonic()
        if self.quiet or not sys.stderr.isatty():
            return
        rich = _validation.import_optional("rich.progress", "the progress bar")
        console = _validation.import_optional("rich.console", "the progress bar").Console(stderr=True)
        columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn())
        self._bar = rich.Progress(*columns, console=console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(title, total=epochs * steps, completed=done * steps + step)

    def step(self) -> None:
        """Advance by one step."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print a completed epoch; `row` is its row of the log."""
        line = f"{epoch_line(self._title, self._epochs, row)}, {time.monotonic() - self._started:.0f} s"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)  # stays above the bar
        else:
            self.say(line)

    def say(self, line: str) -> None:
        """Print one line."""
        if self.quiet:
            _logger.info("%s", line)
        else:
            print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
