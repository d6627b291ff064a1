"""Schema of what files contain, and one-line errors for files that do not match it."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gatewise import errors
from gatewise.core import _validation

Kind = TypeVar("Kind")
Count = Annotated[int, Meta(ge=1, le=2**20)]
Index = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Finite = Annotated[float, Meta(ge=-1e38, le=1e38)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]
Name = Annotated[str, Meta(min_length=1)]
_Side = Annotated[int, Meta(ge=1, le=2**16)]
_Means = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=1)]
_Deviations = Annotated[list[Annotated[float, Meta(ge=1e-6, le=1e6)]], Meta(min_length=1)]


class Targets(Struct, kw_only=True):
    """Mean and standard deviation of each number that a network predicts."""

    mean: Annotated[list[Finite], Meta(min_length=1)]
    std: Annotated[list[Annotated[float, Meta(gt=0, le=1e38)]], Meta(min_length=1)]


class Config(Struct, kw_only=True):
    """Entries of `config.json` and of the metadata of an ONNX file; further entries are allowed, and all are optional.

    Attributes:
        spec: the network, see `ModelSpec.to_dict`.
        sha256: checksum of the weights, 64 hexadecimal digits.
        compacted: steps of `compact`, see `Compaction.to_dict`.
        num_classes: outputs of the classifier.
        in_chans: channels of an image.
        image_size: (height, width) in pixels.
        classes: names of the classes.
        mean: mean of each channel, for pixels from 0 to 255.
        std: standard deviation of each channel.
        task: name of the task, with its options.
        scale: length to which the shorter side of an image is scaled.
        targets: mean and standard deviation of the numbers that the network predicts.
    """

    spec: dict[str, Any] | UnsetType = UNSET
    sha256: Annotated[str, Meta(min_length=64, max_length=64)] | UnsetType = UNSET
    compacted: list[dict[str, Any]] | UnsetType = UNSET
    num_classes: Count | UnsetType | None = UNSET
    in_chans: Count | UnsetType | None = UNSET
    image_size: tuple[_Side, _Side] | UnsetType = UNSET
    classes: Annotated[list[str], Meta(min_length=1)] | UnsetType = UNSET
    mean: _Means | UnsetType = UNSET
    std: _Deviations | UnsetType = UNSET
    task: str = "classify"
    scale: Count | UnsetType | None = UNSET
    targets: Targets | UnsetType = UNSET

    def __post_init__(self) -> None:
        for name, count in (("mean", "in_chans"), ("std", "in_chans")):
            entries, expected = getattr(self, name), getattr(self, count)
            if isinstance(entries, list) and isinstance(expected, int) and len(entries) != expected:
                raise errors.InvalidValueError(f"{name} has {len(entries)} entries, but {count} is {expected}.")


class Metrics(Struct, kw_only=True):
    """Entries of a run's `metrics.json`; further entries are allowed."""

    parameters: Index
    epochs: Index
    precision: str
    environment: dict[str, Any]
    images_per_second: Amount
    score: str = "accuracy"
    accuracy: Fraction | UnsetType | None = UNSET
    miou: Fraction | UnsetType | None = UNSET
    iou: Fraction | UnsetType | None = UNSET
    pixel_accuracy: Fraction | UnsetType | None = UNSET
    train_accuracy: Fraction | UnsetType = UNSET
    open_fraction: Fraction | UnsetType = UNSET
    iou_by_class: dict[str, Fraction | None] | UnsetType = UNSET
    loss: Finite | UnsetType = UNSET
    executed_macs: Amount | UnsetType = UNSET

    def __post_init__(self) -> None:
        if "hardware" not in self.environment:
            raise errors.InvalidValueError(
                f"environment must have an entry 'hardware', got {_validation.safe_repr(self.environment)}."
            )


class LogRow(Struct):
    """Entries of a row of `log.jsonl` that a resumed training reads; further entries are allowed."""

    epoch: Index
    images_per_second: Finite
    train_accuracy: Finite | UnsetType = UNSET


def checked_details(file: Path, config: Any) -> Mapping[str, Any]:
    """Return `config` if its entries match `Config`; raise `DataError` if not.

    >>> checked_details(Path("config.json"), {"mean": [3.0], "std": [0.0]})
    Traceback (most recent call last):
        ...
    gatewise.errors.DataError: config.json: std[0] must be a number >= 1e-06, got 0.0. Restore the file.
    """
    of_file(file, config, Config)
    return config


def checked_metrics(file: Path, metrics: Any) -> Mapping[str, Any]:
    """Return `metrics` if its entries match `Metrics` and its main score is a number; raise `DataError` if not."""
    score = of_file(file, metrics, Metrics).score
    if score not in metrics:
        raise errors.DataError(f"{file}: the content has no {_validation.safe_repr(score)}. Restore the file.")
    of_file(file, {score: metrics[score]}, dict[str, Finite])
    return metrics


def of_file(file: object, values: Any, kind: type[Kind]) -> Kind:
    """Return the values read from a file as `kind`; see `convert`.

    Args:
        file: the file, or a line of it, named in errors.
        values: parsed JSON.
        kind: a `msgspec.Struct`, a dataclass, or a type such as list[int].

    Raises:
        DataError: an entry is missing, has the wrong type or is out of range.
    """
    try:
        return convert("the content", values, kind)
    except errors.GatewiseError as error:
        text = str(error).replace(" of the content", "", 1)
        raise errors.DataError(f"{file}: {text} Restore the file.") from None


_ERROR = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*?)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]*)`(?P<limit>[^,]*)(?P<got>, got .*)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")  # of a path; an entry of a mapping is [...], and its name is not known
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping of names to values",
    "null": "null",
}


def convert(owner: str, values: Any, kind: type[Kind]) -> Kind:
    """Return `values` as `kind`, with every entry validated.

    Args:
        owner: what the values are, for errors.
        values: plain values, as JSON and YAML have them.
        kind: a `msgspec.Struct`, a dataclass, or a type such as list[int].

    Raises:
        InvalidTypeError: a value has the wrong type.
        InvalidValueError: a value is out of range, or an entry is missing or unknown.

    Unknown entries of a dataclass, and of a Struct that forbids them, are rejected too.

    >>> convert("a size", [3, "4"], list[int])
    Traceback (most recent call last):
        ...
    gatewise.errors.InvalidTypeError: [1] of a size must be an integer, got '4'.
    """
    if isinstance(values, Mapping):
        _check_known(owner, values, kind)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise _explained(owner, values, str(error)) from None


def _check_known(owner: str, values: Mapping[str, Any], kind: Any) -> None:
    """Raise if `values` has an entry that `kind` does not allow, suggesting the nearest allowed one."""
    if is_dataclass(kind):
        _validation.check_known_options(owner, values, [field.name for field in fields(kind)])
    elif isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.forbid_unknown_fields:
        _validation.check_known_options(owner, values, kind.__struct_fields__)


def _explained(owner: str, values: Any, message: str) -> errors.GatewiseError:
    """Return the exception for an error message of msgspec, with the value that it is about."""
    error = _ERROR.fullmatch(message)
    assert error is not None
    path = error["path"] or ""
    for attribute, index in _STEP.findall(path.partition("[...]")[0]):
        values = values[attribute or int(index)]
    subject = f"{path.removeprefix('.')} of {owner}" if path else owner
    subject = f"each name in {subject}" if error["key"] else subject
    found = _validation.safe_repr(values)
    if missing := _MISSING.fullmatch(error["what"]):
        present = ", ".join(map(repr, values)) or "nothing"
        return errors.InvalidValueError(f"{subject} has no {missing[1]!r}, got {present}.")
    if (expected := _EXPECTED.fullmatch(error["what"])) is None:  # out of range for msgspec, or text of __post_init__
        text = error["what"]
        return errors.InvalidValueError(text if text[-1] in ".?" else f"{subject}: {text}, got {found}.")
    types = " or ".join(_TYPES.get(name, name) for name in expected["types"].split(" | "))
    kind = errors.InvalidTypeError if expected["got"] and not expected["limit"] else errors.InvalidValueError
    return kind(f"{subject} must be {types}{expected['limit']}, got {found}.")
