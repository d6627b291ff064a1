"""Argument validation; each error states what was expected, what was given and what to do next."""

import contextlib
import difflib
import errno
import importlib
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import torch

from gatewise.errors import (
    DataError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
    NewerFormatError,
    StorageError,
)

Option = TypeVar("Option", str, int)


class _Shown(reprlib.Repr):
    """`repr` for error messages: one line of bounded length for any value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 200
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 20
        self.maxlevel = 3  # a few kilobytes of YAML with aliases can define nested lists with billions of entries

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"an integer of {x.bit_length()} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in list(x)[: self.maxdict]]
        return "{" + ", ".join([*items, *(["..."] if len(x) > self.maxdict else [])]) + "}"

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, torch.Tensor):
            return f"a tensor of shape {tuple(x.shape)}, {x.dtype}"
        return " ".join(super().repr_instance(x, level).split())


_SHOWN = _Shown()
_LONGEST = 400
_MOST_LISTED = 12  # names that a message lists in full
_SIMILAR, _SIMILAR_WITH_FIRST = 0.7, 0.5  # similarity, 0 to 1, of names of which one may be a mistyped other


def safe_repr(value: object) -> str:
    """Return `repr(value)` for an error message: in one line, truncated if it is long.

    >>> safe_repr("l3"), len(safe_repr("x" * 5000)), safe_repr(torch.zeros(2, 3))
    ("'l3'", 200, 'a tensor of shape (2, 3), torch.float32')
    >>> len(safe_repr({number: "x" * 500 for number in range(9)}))  # 400 and the dots
    403
    """
    if isinstance(value, torch.Tensor):  # and its subclasses, such as nn.Parameter
        return _SHOWN.repr_instance(value, 1)
    text = _SHOWN.repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_module(owner: str, model: object) -> None:
    """Raise if `model` is not a torch.nn.Module."""
    if not isinstance(model, torch.nn.Module):
        raise InvalidTypeError(f"{owner} expects a network (torch.nn.Module), got {safe_repr(model)}.")


def check_floating_point(owner: str, **tensors: object) -> None:
    """Raise if a value is not a floating-point tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InvalidTypeError(f"{owner} expects a tensor as {name}, got {safe_repr(tensor)}.")
        if not tensor.is_floating_point():
            raise InvalidTypeError(
                f"{owner} expects a floating-point tensor as {name}, got {tensor.dtype}. Convert it with .float()."
            )


def check_mapping(what: str, value: object) -> Mapping[str, Any]:
    """Return `value`; raise if it is not a mapping with strings as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in cast(Mapping[object, object], value)):
        raise InvalidTypeError(f"{what} must be a mapping of names to values, got {safe_repr(value)}.")
    return cast(Mapping[str, Any], value)


def check_str(what: str, value: object) -> str:
    """Return `value`; raise if it is not a string."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{what} must be a string, got {safe_repr(value)} ({type(value).__name__}).")
    return value


def check_one_of(what: str, value: object, options: Iterable[Option]) -> Option:
    """Return `value`; raise if it is not one of `options` (all strings or all integers), suggesting the nearest.

    >>> check_one_of("mode", "l3", ["l1", "l2"])
    Traceback (most recent call last):
        ...
    gatewise.errors.InvalidValueError: unknown mode 'l3'; expected one of 'l1', 'l2'. Did you mean 'l2'?
    >>> check_one_of("spatial_dims", "2", (1, 2, 3))
    Traceback (most recent call last):
        ...
    gatewise.errors.InvalidValueError: unknown spatial_dims '2'; expected one of 1, 2, 3. Did you mean 2?
    """
    options = sorted(options)
    for option in options:
        if isinstance(value, type(option)) and not isinstance(value, bool) and value == option:
            return option
    hint = did_you_mean(value, options)
    shown = nearest(value, options, most=5) if len(options) > _MOST_LISTED else options
    listed = ", ".join(map(repr, shown)) or "nothing (there are none)"
    more = f", ... ({len(options)} in all)" if len(shown) < len(options) else ""
    raise InvalidValueError(f"unknown {what} {safe_repr(value)}; expected one of {listed}{more}.{hint}")


def did_you_mean(value: object, options: Sequence[Option]) -> str:
    """Return " Did you mean ...?" with the option nearest to `value`, or "" if none is similar.

    An option that begins with another letter must be more similar, since first letters are rarely mistyped.

    >>> did_you_mean("resnet2", ["resnet20", "vgg11"])
    " Did you mean 'resnet20'?"
    >>> did_you_mean("cbam", ["eca", "gct"]), did_you_mean("gtc", ["gc", "gct"])
    ('', " Did you mean 'gct'?")
    """
    meant = _meant(value, options)
    return "" if meant is None else f" Did you mean {safe_repr(meant)}?"


def _meant(value: object, options: Sequence[Option]) -> Option | None:
    """Return the option that was probably meant by `value`, or None if none is similar."""
    first = str(value)[:1].lower()
    same_first = [option for option in options if str(option)[:1].lower() == first]
    every = len(options)
    similar = [
        *nearest(value, options, most=every, cutoff=_SIMILAR),
        *nearest(value, same_first, most=every, cutoff=_SIMILAR_WITH_FIRST),
    ]
    return next(iter(nearest(value, similar, most=1)), None)


def path_meant(path: Path, names: Iterable[str] = ()) -> str:
    """Return " Did you mean ...?" for a path that does not exist, with the nearest one in its folder, or of `names`."""
    known = {name: name for name in names}
    with contextlib.suppress(OSError, ValueError):
        known |= {other.name: str(other) for other in path.parent.iterdir() if not other.name.startswith(".")}
    meant = _meant(path.name, list(known))
    return "" if meant is None else f" Did you mean {safe_repr(known[meant])}?"


def nearest(value: object, options: Sequence[Option], *, most: int, cutoff: float = 0.0) -> list[Option]:
    """Return the `most` options that are most similar to `value`, if their similarity, 0 to 1, reaches `cutoff`.

    Options with the same letters in another order come first. Upper and lower case are the same.

    >>> nearest("layr4", ["conv1", "layer1", "layer4"], most=2)
    ['layer4', 'layer1']
    >>> nearest("GTC", ["gc", "gct", "ge"], most=2)
    ['gct', 'gc']
    """
    texts = {str(option).lower(): option for option in options}
    given = safe_repr(value).strip("'\"").lower()
    near = difflib.get_close_matches(given, texts, n=max(1, len(texts)), cutoff=cutoff)
    near.sort(key=lambda text: sorted(text) != sorted(given))
    return [texts[text] for text in near[:most]]


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names as text for an error message: the first `most`, each truncated to 60 characters.

    >>> listed(["image", "label", "mask"], most=2)
    'image, label, ...'
    """
    shown = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:most]]
    return ", ".join(" ".join(name.split()) for name in shown) + (", ..." if len(names) > most else "")


def check_integer_at_least(minimum: int, **values: object) -> None:
    """Raise if a value is not an integer of at least `minimum`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{name} must be an integer, got {safe_repr(value)} ({type(value).__name__}).")
        if value < minimum:
            raise InvalidValueError(f"{name} must be at least {minimum}, got {safe_repr(value)}.")


def check_odd(**values: object) -> None:
    """Raise if a value is not a positive odd integer, such as the size of a window with a centre."""
    check_integer_at_least(1, **values)
    for name, value in values.items():
        if isinstance(value, int) and value % 2 == 0:
            raise InvalidValueError(f"{name} must be odd, got {value}. Choose {value - 1} or {value + 1}.")


def check_number_between(low: float, high: float, **values: object) -> None:
    """Raise if a value is not a finite number in [low, high]."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidTypeError(f"{name} must be a number, got {safe_repr(value)} ({type(value).__name__}).")
        if not math.isfinite(value) or not low <= value <= high:
            raise InvalidValueError(f"{name} must be between {low:g} and {high:g}, got {safe_repr(value)}.")


def check_seed(value: object) -> None:
    """Raise if `value` is neither None nor a valid seed of a torch generator."""
    if value is not None:
        check_integer_at_least(0, seed=value)
        check_number_between(0, 2**63 - 1, seed=value)


def check_image_size(name: str, value: object, axes: tuple[int, ...]) -> None:
    """Raise if `value` is not (height, width), each from 1 to 65,536 pixels; `axes` has the allowed lengths."""
    sides = cast(Sequence[int], value) if isinstance(value, list | tuple) else ()
    if len(sides) not in axes:
        raise InvalidTypeError(f"{name} must be (height, width), got {safe_repr(value)}.")
    for side in sides:
        check_integer_at_least(1, **{name: side})
    check_number_between(1, 2**16, **{name: max(sides)})


def check_regular_expression(what: str, text: str) -> None:
    """Raise if `text` is not a valid regular expression; `what` names it in the message."""
    try:
        re.compile(text)
    except re.error as error:
        raise InvalidValueError(f"{what} is not a valid regular expression ({error}).") from None


def check_bool(**values: object) -> None:
    """Raise if a value is not True or False, because any non-empty string would count as true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InvalidTypeError(f"{name} must be true or false, got {safe_repr(value)} ({type(value).__name__}).")


def check_feature_map(owner: str, x: torch.Tensor, channels: int, spatial_dims: int) -> None:
    """Raise if `x` is not a floating-point map (N, channels, *S) with `spatial_dims` spatial axes."""
    check_not_symbolic(owner, x)
    if x.dim() != spatial_dims + 2:
        raise InvalidValueError(
            f"{owner} expects {_map_of(channels, spatial_dims)}, got {x.dim()} axes: {tuple(x.shape)}. "
            f"Add the missing axis, or build the gate with a matching spatial_dims."
        )
    if x.shape[1] != channels:
        raise InvalidValueError(
            f"{owner} expects {_map_of(channels, spatial_dims)}, got {tuple(x.shape)}. "
            f"Build it with channels={x.shape[1]}, or pass the output of a layer with {channels} channels."
        )
    if not x.is_floating_point():
        raise InvalidTypeError(
            f"{owner} expects floating-point input, got {x.dtype}. Convert it first, for example x.float() / 255."
        )


def _map_of(channels: int, spatial_dims: int) -> str:
    axes = ("L", "HW", "DHW")[spatial_dims - 1]
    return f"a feature map of shape (N, {channels}, {', '.join(axes)})"


def check_not_symbolic(owner: str, x: object) -> None:
    """Raise if `x` is a Proxy of torch.fx, whose shape and values are unknown."""
    if isinstance(x, torch.fx.Proxy):
        raise InvalidTypeError(
            f"{owner} expects a tensor, got a Proxy of torch.fx.symbolic_trace, which cannot trace data-dependent "
            f"code. Use torch.export.export(network, (example,)) instead."
        )


def cannot_script(what: str) -> InvalidTypeError:
    """Return the error of `__prepare_scriptable__`, which torch.jit.script calls on each module first."""
    return InvalidTypeError(
        f"torch.jit.script cannot compile {what}. Use torch.export.export, gatewise.export, or torch.jit.trace with an "
        f"example."
    )


def check_unchanged_width(owner: str, expected: int, given: int) -> None:
    """Raise if a map does not have the number of channels it had when its GaterNet was built."""
    if given != expected:
        raise InvalidValueError(
            f"{owner} expect a map of {expected} channels, got {given}: the backbone was changed after the GaterNet "
            f"was built. Prune a network before that; gatewise.compact removes closed filters from a GaterNet."
        )


_SMALL, _MOST_NUMBERS = 4096, 2**31


def check_fits_in_memory(what: str, sizes: Iterable[object], build: Callable[[], torch.nn.Module]) -> None:
    """Raise if a module would have more than 2^31 parameters and buffer entries, counted on the meta device."""
    if not any(isinstance(size, int) and size > _SMALL for size in sizes):
        return
    try:
        with torch.device("meta"):
            count = sum(tensor.numel() for tensor in build().state_dict().values())
    except (RuntimeError, OverflowError, TypeError) as error:
        # torch has no exception class of its own for sizes that overflow. Without the word, building raises.
        if "verflow" not in str(error):
            return  # not supported on the meta device; building on the real device works or raises by itself
        count = None
    if count is None or count > _MOST_NUMBERS:
        size = "more than torch can count" if count is None else f"{count:,}"
        raise InvalidValueError(
            f"{what} would have {size} weights; the maximum is {_MOST_NUMBERS:,}. Choose smaller sizes."
        )


def check_known_options(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise if an option name in `given` is not in `known`."""
    known = list(known)
    for name in sorted(given, key=str):
        check_one_of(f"option of {owner}", name, known)


def import_optional(name: str, purpose: str, extra: str = "train", *, package: str | None = None) -> ModuleType:
    """Import an optional dependency; if it is missing, raise with the extra or the package that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        wanted = f"'gatewise[{extra}]'" if package is None else package
        raise MissingExtraError(
            f"{purpose} needs the package {error.name!r}, which is not installed. Install it with: pip install {wanted}"
        ) from None


def check_path_exists(what: str, path: str | Path) -> Path:
    """Return `path` as a Path; raise if it does not exist."""
    if not isinstance(path, str | Path):
        raise InvalidTypeError(f"{what} must be a path, got {safe_repr(path)}.")
    path = Path(path)
    try:
        exists = path.exists()
    except (OSError, ValueError):  # the name is too long or contains a null byte
        exists = False
    if not exists:
        raise DataError(f"{what} {safe_repr(str(path))} does not exist.{path_meant(path) or ' Check the path.'}")
    return path


_REMEDIES = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
}


def cannot_write(path: Path, error: OSError, size_bytes: int | None = None) -> StorageError:
    """Return the exception for a file that could not be written, for `raise ... from error`."""
    size = "" if size_bytes is None else f" ({size_bytes:,} bytes)"
    remedy = _REMEDIES.get(error.errno or 0, "Make its folder writable")
    storage_error = StorageError(
        f"{path} cannot be written{size}: {error.strerror or error}. {remedy}, or choose another folder; existing "
        f"files are unchanged."
    )
    storage_error.errno = error.errno
    return storage_error


def entries_of(path: Path, values: Mapping[str, Any], *names: str) -> None:
    """Raise if the values read from a file do not have all these entries."""
    for name in names:
        if name not in values:
            raise DataError(f"{path} has no {name!r}. Was it written by gatewise? Restore it from a copy.")


def check_format_number(path: Path, found: object, newest: int) -> None:
    """Raise if the format number of a file is invalid, or newer than this version supports."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise DataError(
            f"{path} has format {safe_repr(found)}; expected a number from 1 to {newest}. Restore it from a copy."
        )
    if found > newest:
        raise NewerFormatError(
            f"{path} has format {found}, but this version of gatewise supports formats up to {newest}. Install a "
            f"newer gatewise, or use another folder; nothing was changed."
        )
