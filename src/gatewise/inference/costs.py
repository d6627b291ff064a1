"""A persistent cache of measured layer times, by machine."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta, Struct

from gatewise import errors
from gatewise.core.files import read_json, write_json
from gatewise.core.schema import convert
from gatewise.graph.measure import environment

_FORMAT = 1
_logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return `$GATEWISE_CACHE`, or costs.json in the user's cache folder."""
    given = os.environ.get("GATEWISE_CACHE")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else folder / "gatewise" / "costs.json"


class Costs:
    """Measured seconds for this machine and number of threads, stored in a JSON file.

    An invalid file causes a warning and is replaced at the next `save`; entries of other machines are kept.
    """

    def __init__(self, file: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.file = file
        facts = environment(device)
        self.machine = f"{facts['hardware']}, torch {facts['torch']}, gatewise {facts['gatewise']}, {dtype}"
        self._all = _read(file)
        self._own = dict(self._all.get(self.machine, {}))
        self._new: dict[str, list[float]] = {}
        if self._all and not self._own:
            _logger.info("%s has no costs for this machine (%s); the layers are measured now.", file, self.machine)

    def of(self, what: str, count: int, measure: Callable[[], list[float]]) -> list[float]:
        """Return the `count` stored numbers of `what`; call `measure` and store the result if there are none."""
        if len(self._own.get(what, ())) != count:
            self._own[what] = self._new[what] = measure()
        return self._own[what]

    def save(self) -> None:
        """Merge the new measurements into the file; warn if it cannot be written."""
        if not self._new:
            return
        with warnings.catch_warnings(action="ignore"):  # it has warned on the first read
            self._all = _read(self.file)
        self._all[self.machine] = self._all.get(self.machine, {}) | self._new
        try:
            write_json(self.file, {"format": _FORMAT, "machines": self._all})
            self._new = {}
        except OSError as error:
            warnings.warn(f"cannot write the measured costs to {self.file}: {error}.", stacklevel=2)


def _read(file: Path) -> dict[str, dict[str, list[float]]]:
    """Return the costs of each machine in the file; empty with a warning if it is invalid."""
    if not file.exists():
        return {}
    try:
        return convert("the content", read_json(file), _Content).machines
    except errors.GatewiseError as error:
        warnings.warn(f"{file} is not a valid file of costs ({error}); the layers are measured again.", stacklevel=2)
        return {}


class _Content(Struct):
    """Content of the file."""

    format: Annotated[int, Meta(ge=_FORMAT, le=_FORMAT)]
    machines: dict[str, dict[str, Annotated[list[Annotated[float, Meta(ge=0, lt=1e6)]], Meta(min_length=1)]]]
