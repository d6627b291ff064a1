"""Outputs of networks: taken apart, merged from sub-batches, and split."""

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from gatewise.core.merging import halves, merged
from gatewise.core.nesting import flatten
from gatewise.core.types import tensors_of
from gatewise.errors import InvalidValueError


@dataclasses.dataclass
class Answer:
    logits: Any
    features: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    logits: Any


class Named(dict[str, Any]):
    """A dict of a class of its own."""


class Registered:
    """A container that only torch knows, since it was registered."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registered) and self.part == other.part

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Registered({self.part})"


_pytree.register_pytree_node(Registered, lambda one: ([one.part], None), lambda parts, _: Registered(next(iter(parts))))
Pair = namedtuple("Pair", "first second")
TREES = [
    3,
    (),
    None,
    [1, (2, {"b": 3, "a": [4]})],
    OrderedDict(x=1, y=(2,)),
    Pair(1, [2, 3]),
    {"p": Pair(1, 2)},
    Answer(1, [2]),
    (Frozen(1), Named(a=2)),
    SimpleNamespace(logits=1, more=(2,)),
    MappingProxyType({"a": 1}),
    [Registered((1, 2)), torch.Size([2, 3])],
]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_output_is_taken_apart_and_made_again(tree: Any) -> None:
    leaves, around = flatten(tree)
    assert not any(isinstance(leaf, list | tuple | Mapping | Answer | Frozen | Registered) for leaf in leaves)
    assert (around(leaves), type(around(leaves))) == (tree, type(tree))
    others = [0 for _ in leaves]
    assert flatten(around(others))[0] == others
    assert flatten(tree)[0] == leaves, "the given value is not changed"


@pytest.mark.parametrize("kind", [list, Answer, Frozen, lambda x: Named(x=x), lambda x: SimpleNamespace(x=x)])
def test_rows_of_all_images_are_kept(kind: Any) -> None:
    rows = torch.arange(6.0).unsqueeze(1)
    images = [np.array([0, 3, 5]), np.array([1, 2, 4])]
    found = merged([kind([rows[own]] if kind is list else rows[own]) for own in images], images)
    assert torch.equal(tensors_of(found)[0], rows)
    first, second = halves(kind([rows] if kind is list else rows))
    assert torch.equal(tensors_of(first)[0], rows[:3])
    assert torch.equal(tensors_of(second)[0], rows[3:])


class Opaque:
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (lambda x: (x, x.mean()), r"shape \(\)"),
        (Opaque, "a value of type Opaque"),
        (lambda x: (x, x.numpy()), "a value of type ndarray"),
        (lambda x: (x, float(x[0])), r"got 0\.0"),
        (lambda x: [*x], "3 to 6 values"),
    ],
)
def test_values_of_a_sub_batch_cannot_be_merged(form: Any, what: str) -> None:
    rows, images = torch.arange(9.0), [np.arange(6), np.arange(6, 9)]
    with pytest.raises(InvalidValueError, match=f"cannot merge.*{what}.*Compute losses outside"):
        merged([form(rows[own]) for own in images], images, "Compute losses outside.")


@pytest.mark.parametrize("form", [Opaque, torch.mean, lambda x: x[:3]])
def test_values_of_a_batch_have_no_halves(form: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"a row for each image, got (shape|a value of type Opaque)"):
        halves({"name": "kept", "rest": form(torch.zeros(4))})
