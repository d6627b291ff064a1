"""The table of targets: each prepares one input from a box and returns the call to be checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.fuzzing.box import Box

Call = Callable[[], Any]


@dataclass(frozen=True)
class Target:
    """One target of the fuzzer.

    Attributes:
        name: of the target.
        prepare: fills the box and returns the call.
        weight: share of the inputs, relative to the others.
        exported: whether it needs the files of `gatewise export`.
    """

    name: str
    prepare: Callable[[Box], Call]
    weight: int
    exported: bool = False


TARGETS: dict[str, Target] = {}


def target(weight: int, *, exported: bool = False) -> Callable[[Callable[[Box], Call]], Callable[[Box], Call]]:
    """Register the decorated function under its name."""

    def register(prepare: Callable[[Box], Call]) -> Callable[[Box], Call]:
        name = prepare.__name__.replace("_", " ")
        TARGETS[name] = Target(name, prepare, weight, exported)
        return prepare

    return register
