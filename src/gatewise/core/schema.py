"""Schema of stored metadata, validated before a model is built from it."""

# pyright: basic

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation

_TASKS = ("classify", "segment")


def _numbers(low: float) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, list) or not value:
            raise errors.InvalidTypeError(f"{name} must be a list of numbers, got {_validation.safe_repr(value)}.")
        for number in value:
            _validation.check_number_between(low, 1e6, **{name: number})

    return check


def _names(name: str, value: Any) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise errors.InvalidTypeError(f"{name} must be a list of names, got {_validation.safe_repr(value)}.")


def _count(name: str, value: Any) -> None:
    _validation.check_integer_at_least(1, **{name: value})
    _validation.check_number_between(1, 2**20, **{name: value})


def _count_or_none(name: str, value: Any) -> None:
    if value is not None:
        _count(name, value)


def _checksum(name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) != 64:
        raise errors.InvalidTypeError(f"{name} must be 64 hexadecimal digits, got {_validation.safe_repr(value)}.")


def _number(low: float, high: float) -> Callable[[str, Any], None]:
    return lambda name, value: _validation.check_number_between(low, high, **{name: value})


def _scores_of_classes(name: str, value: Any) -> None:
    for label, score in _validation.check_mapping(name, value).items():
        if score is not None:
            _validation.check_number_between(0, 1, **{f"{name} of {label}": score})


def _environment(name: str, value: Any) -> None:
    if "hardware" not in _validation.check_mapping(name, value):
        raise errors.InvalidValueError(f"{name} must have an entry 'hardware', got {_validation.safe_repr(value)}.")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "num_classes": _count_or_none,
    "in_chans": _count_or_none,
    "image_size": _validation.check_image_size,
    "classes": _names,
    "mean": _numbers(-1e6),
    "std": _numbers(1e-6),
    "task": lambda name, value: _validation.check_one_of(name, value, _TASKS),
    "scale": _count_or_none,
    "sha256": _checksum,
    "spec": _validation.check_mapping,
}


def checked_details(file: Path, config: Any) -> Mapping[str, Any]:
    """Return `config` if every known entry in it is valid; entries may be missing.

    Args:
        file: file that `config` was read from, named in errors.
        config: parsed JSON: num_classes, in_chans, image_size, classes, mean, std, task, scale, sha256, spec.

    Raises:
        DataError: `config` is not a mapping, or an entry has the wrong type, is out of range or contradicts another.

    >>> checked_details(Path("config.json"), {"mean": [3.0], "std": [0.0]})
    Traceback (most recent call last):
        ...
    gatewise.errors.DataError: config.json: std must be between 1e-06 and 1e+06, got 0.0. Restore the file.
    """
    try:
        _validation.check_mapping("the content", config)
        for name, check in _CHECKS.items():
            if name in config:
                check(name, config[name])
        _check_consistent(config)
    except errors.GatewiseError as error:
        raise errors.DataError(f"{file}: {error} Restore the file.") from None
    return config


_METRICS_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "parameters": lambda name, value: _validation.check_integer_at_least(0, **{name: value}),
    "epochs": lambda name, value: _validation.check_integer_at_least(0, **{name: value}),
    "precision": _validation.check_str,
    "environment": _environment,
    **dict.fromkeys(("accuracy", "miou", "iou", "pixel_accuracy", "train_accuracy", "open_fraction"), _number(0, 1)),
    "iou_by_class": _scores_of_classes,
    "loss": _number(-1e38, 1e38),
    "images_per_second": _number(0, 1e18),
    "executed_macs": _number(0, 1e18),
    "score": lambda name, value: _validation.check_one_of(name, value, ("accuracy", "miou", "iou")),
}


def checked_metrics(file: Path, metrics: Any) -> Mapping[str, Any]:
    """Return `metrics`, the content of a run's `metrics.json`, if every value that reports show is there and valid.

    Raises:
        DataError: `metrics` is not a mapping, or an entry is missing, has the wrong type or is out of range.
    """
    try:
        _validation.check_mapping("the content", metrics)
        score = metrics.get("score", "accuracy")
        for name in ("parameters", "epochs", "precision", "environment", score, "images_per_second"):
            if not isinstance(name, str) or name not in metrics:
                raise errors.InvalidValueError(f"it has no {_validation.safe_repr(name)}. Was it written by gatewise?")
        for name, check in _METRICS_CHECKS.items():
            if name in metrics:
                check(name, metrics[name])
    except errors.GatewiseError as error:
        raise errors.DataError(f"{file}: {error} Restore the file.") from None
    return metrics


def _check_consistent(config: Mapping[str, Any]) -> None:
    """Raise if the length of mean or std is not in_chans, or the length of classes is not num_classes."""
    for name, count in (("mean", "in_chans"), ("std", "in_chans"), ("classes", "num_classes")):
        if name in config and isinstance(config.get(count), int) and len(config[name]) != config[count]:
            raise errors.InvalidValueError(f"{name} has {len(config[name])} entries, but {count} is {config[count]}.")
