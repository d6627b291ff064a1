"""Every argument check of the package and the wording of every refusal.

A refusal says who expected what, what came, and what to do next. All refusals derive from `GatewiseError`, so
the command line can tell a user's mistake (one line, exit code 2) from a defect (a traceback).
"""

import difflib
import errno
import importlib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch


class GatewiseError(Exception):
    """A mistake that the caller can mend; its message says how."""


class InvalidValueError(GatewiseError, ValueError):
    """An argument of the right type has a value that cannot be used."""


class InvalidTypeError(GatewiseError, TypeError):
    """An argument has a type that cannot be used."""


class DataError(GatewiseError, ValueError):
    """A file or folder of images cannot be used; the message names it."""


class MissingExtraError(GatewiseError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class NewerFormatError(DataError):
    """A file was written by a later version; the message has both numbers. It is not damaged: leave it alone."""


class StorageError(GatewiseError, OSError):
    """A file cannot be written; the message names it and the reason. What was there before is untouched."""


class TrainingError(GatewiseError, RuntimeError):
    """A training cannot go on; the message names the step."""


class UnsavedError(TrainingError):
    """A training cannot go on because its files cannot be written; the message names the last good checkpoint."""


def one_of(what: str, value: object, options: Iterable[str]) -> str:
    """Return `value` if it is one of `options`; refuse it with the nearest match otherwise.

    >>> one_of("mode", "l3", ["l1", "l2"])
    Traceback (most recent call last):
        ...
    gatewise._checks.InvalidValueError: unknown mode 'l3'; expected one of 'l1', 'l2'. Did you mean 'l2'?
    """
    options = sorted(options)
    if isinstance(value, str) and value in options:
        return value
    hint = nearest(value, options)
    listed = ", ".join(map(repr, options)) or "nothing (there are none)"
    raise InvalidValueError(f"unknown {what} {value!r}; expected one of {listed}.{hint}")


def nearest(value: object, options: Sequence[str]) -> str:
    """Return " Did you mean ...?" with the option nearest to `value`, or '' if none is near.

    >>> nearest("resnet2", ["resnet20", "vgg11"])
    " Did you mean 'resnet20'?"
    """
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def integer_at_least(minimum: int, **values: object) -> None:
    """Refuse every named value that is not an integer of at least `minimum`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}).")
        if value < minimum:
            raise InvalidValueError(f"{name} must be at least {minimum}, got {value}.")


def odd(**values: object) -> None:
    """Refuse every named value that is not an odd integer of at least 1: a window needs a centre."""
    integer_at_least(1, **values)
    for name, value in values.items():
        if isinstance(value, int) and value % 2 == 0:
            raise InvalidValueError(f"{name} must be odd, got {value}. Choose {value - 1} or {value + 1}.")


def number_between(low: float, high: float, **values: object) -> None:
    """Refuse every named value that is not a finite number in [low, high]."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidTypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}).")
        if not math.isfinite(value) or not low <= value <= high:
            raise InvalidValueError(f"{name} must lie between {low:g} and {high:g}, got {value!r}.")


def regular_expression(what: str, text: str) -> None:
    """Refuse text that is no regular expression; `what` says where it was given."""
    try:
        re.compile(text)
    except re.error as error:
        raise InvalidValueError(f"{what} is no regular expression ({error}).") from None


def boolean(**values: object) -> None:
    """Refuse every named value that is not True or False: any other word would count as true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InvalidTypeError(f"{name} must be true or false, got {value!r} ({type(value).__name__}).")


def feature_map(owner: str, x: torch.Tensor, channels: int, spatial_dims: int) -> None:
    """Refuse `x` unless it is a floating-point map of shape (N, channels, *spatial_dims sizes)."""
    no_symbolic_trace(owner, x)
    axes = ("L", "HW", "DHW")[spatial_dims - 1]
    expected = f"(N, {channels}, {', '.join(axes)})"
    if x.dim() != spatial_dims + 2:
        raise InvalidValueError(
            f"{owner} expects a feature map of shape {expected}, got {x.dim()} axes: {tuple(x.shape)}. "
            f"Add the missing axis, or build the gate with the matching spatial_dims."
        )
    if x.shape[1] != channels:
        raise InvalidValueError(
            f"{owner} expects a feature map of shape {expected}, got {tuple(x.shape)}. "
            f"Build it with channels={x.shape[1]}, or pass the output of a layer with {channels} channels."
        )
    if not x.is_floating_point():
        raise InvalidTypeError(
            f"{owner} expects floating-point input, got {x.dtype}. Convert it first, for example x.float() / 255."
        )


def no_symbolic_trace(owner: str, x: object) -> None:
    """Refuse the stand-in for a tensor by which torch.fx traces: its shape and values are not known."""
    if isinstance(x, torch.fx.Proxy):
        raise InvalidTypeError(
            f"{owner} expects a tensor, got a Proxy of torch.fx.symbolic_trace, which cannot see what depends on the "
            f"input. Read the network with torch.export.export(network, (example,)) instead."
        )


def unchanged_width(owner: str, expected: int, came: int) -> None:
    """Refuse a map of another width than a GaterNet counted when it was made: somebody has cut its backbone."""
    if came != expected:
        raise InvalidValueError(
            f"{owner} expect a map of {expected} channels, got {came}: the backbone was changed after GaterNet was put "
            f"around it. Prune a network before; gatewise.compact takes closed filters out of a GaterNet."
        )


def options_of(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse option names that `owner` does not have."""
    known = list(known)
    for name in sorted(given):
        one_of(f"option of {owner}", name, known)


def optional_module(name: str, purpose: str, extra: str = "train") -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'gatewise[{extra}]'"
        ) from None


def existing_path(what: str, path: str | Path) -> Path:
    """Return `path` as a Path if it exists."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{what} {str(path)!r} does not exist. Check the path.")
    return path


_WAYS_OUT = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
}


def cannot_write(path: Path, error: OSError, size_bytes: int | None = None) -> StorageError:
    """Return the refusal of a file that could not be written, for `raise ... from error`."""
    size = "" if size_bytes is None else f" ({size_bytes:,} bytes)"
    way_out = _WAYS_OUT.get(error.errno or 0, "Make its folder writable")
    refusal = StorageError(
        f"{path} cannot be written{size}: {error.strerror or error}. {way_out}, or choose another folder; what was "
        f"there before is untouched."
    )
    refusal.errno = error.errno
    return refusal


def known_format(path: Path, found: object, newest: int) -> None:
    """Refuse the format number of a file if it is none, or above the newest that is known here."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise DataError(f"{path} is of format {found!r}; expected a number from 1 to {newest}. Restore it from a copy.")
    if found > newest:
        raise NewerFormatError(
            f"{path} is of format {found}, and this gatewise knows formats up to {newest}: a newer version wrote it. "
            f"Use that version (pip install --upgrade gatewise), or another folder; nothing was changed."
        )
