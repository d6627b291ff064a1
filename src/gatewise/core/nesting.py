"""Inputs and outputs of networks as nested containers: their leaves, and the same nesting of other leaves."""

# pyright: basic

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from gatewise.core._torch_compat import tree_flatten, tree_unflatten

Around = Callable[[Sequence[Any]], Any]  # a value like the one that was taken apart, with other parts


def flatten(value: Any) -> tuple[list[Any], Around]:
    """Return the leaves of a nested value in order, and a function that makes such a value from other leaves.

    Lists, tuples, mappings and dataclasses are taken apart, also of subclasses, and classes that torch knows as
    containers.

    >>> leaves, around = flatten({"logits": 1, "maps": [2, (3, None)]})
    >>> leaves, around([10, 20, 30, None])
    ([1, 2, 3, None], {'logits': 10, 'maps': [20, (30, None)]})
    """
    parts = _parts(value)
    if parts is None:
        return [value], lambda leaves: leaves[0]
    flat = [flatten(part) for part in parts[0]]

    def around(leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        return parts[1]([make([next(rest) for _ in own]) for own, make in flat])

    return [leaf for own, _ in flat for leaf in own], around


def _parts(value: Any) -> tuple[Iterable[Any], Around] | None:
    """Return the parts of a container and how to put others in their place; None for a leaf."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping):
        return value.values(), lambda parts: _mapping(value, dict(zip(value, parts, strict=True)))
    if isinstance(value, list):
        return value, lambda parts: _list(value, parts)
    if isinstance(value, tuple):
        return value, getattr(value, "_make", type(value))
    if isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _record(value)
    leaves, form = tree_flatten(value, is_leaf=lambda part: part is not value)
    known = len(leaves) != 1 or leaves[0] is not value
    return (leaves, lambda parts: tree_unflatten(parts, form)) if known else None


def _mapping(value: Any, items: Mapping[Any, Any]) -> Any:
    if not isinstance(value, MutableMapping):
        return type(value)(items)
    copied = copy.copy(value)
    for name, part in items.items():
        copied[name] = part
    return copied


def _list(value: list[Any], parts: Sequence[Any]) -> list[Any]:
    copied = copy.copy(value)
    copied[:] = parts
    return copied


def _record(value: Any) -> tuple[list[Any], Around]:
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    names = [name for name in dict.fromkeys([*fields, *getattr(value, "__dict__", ())]) if hasattr(value, name)]

    def around(parts: Sequence[Any]) -> Any:
        copied = copy.copy(value)
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(copied, name, part)  # also of a frozen dataclass
        return copied

    return [getattr(value, name) for name in names], around
