"""What layers cost on this machine: measured once, and kept in a file with the machine's description."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gatewise.files import read_json, write_json
from gatewise.measure import environment

_FORMAT = 1
_logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return `$GATEWISE_CACHE`, or costs.json in the user's cache folder."""
    given = os.environ.get("GATEWISE_CACHE")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else folder / "gatewise" / "costs.json"


class Costs:
    """Seconds by what was measured, for this machine and this number of threads, kept in a JSON file.

    A file that cannot be read or is no such file is said to be so, and replaced when something new is measured; what
    other machines have measured stays in it.
    """

    def __init__(self, file: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.file = file
        facts = environment(device)
        self.machine = f"{facts['hardware']}, torch {facts['torch']}, gatewise {facts['gatewise']}, {dtype}"
        self._all = _read(file)
        self._own = dict(self._all.get(self.machine, {}))
        self._new: dict[str, list[float]] = {}
        if self._all and not self._own:
            _logger.info("%s has no costs for this machine (%s); layers are measured once.", file, self.machine)

    def of(self, what: str, count: int, measure: Callable[[], list[float]]) -> list[float]:
        """Return the `count` numbers that were measured, or measure them and remember."""
        if len(self._own.get(what, ())) != count:
            self._own[what] = self._new[what] = measure()
        return self._own[what]

    def save(self) -> None:
        """Write what is new beside what others have written meanwhile.

        A folder that cannot be written to costs a warning, and a measurement next time.
        """
        if not self._new:
            return
        with warnings.catch_warnings(action="ignore"):  # it was said when the file was read first
            self._all = _read(self.file)
        self._all[self.machine] = self._all.get(self.machine, {}) | self._new
        try:
            write_json(self.file, {"format": _FORMAT, "machines": self._all})
            self._new = {}
        except OSError as error:
            warnings.warn(f"the costs measured cannot be kept in {self.file}: {error}.", stacklevel=2)


def _read(file: Path) -> dict[str, dict[str, list[float]]]:
    """Return what the file has for each machine, nothing if it is none of ours."""
    if not file.exists():
        return {}
    try:
        return _checked(read_json(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{file} holds no costs that can be read ({reason}); layers are measured anew.", stacklevel=2)
        return {}


def _checked(content: Any) -> dict[str, dict[str, list[float]]]:
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']!r}, expected {_FORMAT}")
    for costs in content["machines"].values():
        for what, values in costs.items():
            if not values or not all(isinstance(value, int | float) and 0 <= value < 1e6 for value in values):
                raise ValueError(f"{what!r} is {str(values)[:50]}, expected seconds")
    return content["machines"]
