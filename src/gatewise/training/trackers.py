"""Experiment trackers by name, through Accelerate; a tracker that fails does not stop the training."""

# pyright: basic

import contextlib
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import reason_of

DEFAULT = ("tensorboard",)
TENSORBOARD, NONE = "tensorboard", "none"
_PROJECT = "gatewise"


def parse_trackers(text: str) -> tuple[str, ...]:
    """Parse names of trackers, separated by commas, or none.

    Raises:
        InvalidValueError: Accelerate does not know a tracker.
        MissingExtraError: the package of a tracker is not installed.

    >>> parse_trackers("none"), parse_trackers("tensorboard")
    ((), ('tensorboard',))
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if names == [NONE]:
        return ()
    tracking = _validation.import_optional("accelerate.tracking", "training")
    known = {str(name): name for name in tracking.LOGGER_TYPE_TO_CLASS}
    for name in names:
        _validation.check_one_of("track", name, [NONE, *known])
        if name not in {TENSORBOARD, *map(str, tracking.get_available_trackers())}:
            raise errors.MissingExtraError(f"tracking with {name} needs its package. Install it: pip install {name}.")
    return tuple(dict.fromkeys(names))


def format_trackers(names: Sequence[str]) -> str:
    """Return the text that `parse_trackers` parses to these names.

    >>> format_trackers(["wandb", "mlflow"]), format_trackers([])
    ('wandb,mlflow', 'none')
    """
    return ",".join(names) or NONE


class Trackers:
    """Log the rows of a training to trackers other than TensorBoard, which has its own file (`tensorboard.py`).

    Args:
        names: names of trackers, as `parse_trackers` returns them.
        out: the run folder; a resumed training continues the tracker's run of the same folder, where trackers can.
        title: name of the run.
        config: the recipe.
        say: function that shows a warning.
    """

    def __init__(
        self, names: Sequence[str], out: Path, title: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._trackers: dict[str, Any] = {}
        names = [name for name in names if name != TENSORBOARD]
        classes = _validation.import_optional("accelerate.tracking", "training").LOGGER_TYPE_TO_CLASS if names else {}
        plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in config.items()}
        identity = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": title, "dir": str(out), "id": identity, "resume": "allow"},
            "mlflow": {"run_name": title},
        }
        for name in names:
            with self._surviving(name):
                kind = classes[name]
                folder = (str(out / name),) if kind.requires_logging_directory else ()
                tracker = kind(_PROJECT, *folder, **options.get(name, {}))
                tracker.start()
                self._trackers[name] = tracker
                tracker.store_init_configuration(plain)

    def add(self, row: Mapping[str, Any]) -> None:
        """Log every number of a row at its step."""
        values = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.log(values, step=row["step"])

    def close(self) -> None:
        """Finish the trackers' runs."""
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.finish()
        self._trackers = {}

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Generator[None]:
        """On an error warn, and log nothing more to a tracker."""
        try:
            yield
        except Exception as error:
            self._trackers.pop(name, None)
            self._say(f"warning: cannot log to {name}, tracking with it stops: {reason_of(error)}")
