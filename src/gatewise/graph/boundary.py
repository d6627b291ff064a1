"""What the layers of a network are called with and return: a gate's hook changes the first argument or the result."""

# pyright: basic

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatewise.core.types import tensors_of


@dataclass(frozen=True)
class Boundary:
    """One call of a layer.

    Attributes:
        first: shape of the first argument; () if it is no tensor, None if it is not known.
        others: shapes of the tensors in the other arguments.
        returned: name of the type of the result; "" for a tensor.
    """

    first: tuple[Any, ...] | None
    others: tuple[tuple[Any, ...] | None, ...]
    returned: str


def record_boundaries(model: nn.Module) -> dict[str, list[Boundary]]:
    """Let the layers of a network write down each of their calls, and return where: path -> calls.

    >>> net = nn.Sequential(nn.ReLU())
    >>> found = record_boundaries(net)
    >>> _ = net(torch.zeros(1, 2))
    >>> found["0"]
    [Boundary(first=(1, 2), others=(), returned='')]
    """
    found: dict[str, list[Boundary]] = {}
    layers: dict[str, nn.Module] = dict(model.named_modules())
    for path, layer in layers.items():
        if not isinstance(layer, torch.jit.ScriptModule):  # it has no such hooks
            layer.register_forward_hook(partial(_record, found.setdefault(path, [])), with_kwargs=True)
    return found


def _record(calls: list[Boundary], layer: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
    if args:
        first, *others = [*args, *named.values()]
    else:
        name = next(iter(inspect.signature(layer.forward).parameters), "")
        first, others = named.get(name), [value for key, value in named.items() if key != name]
    shapes = [_shape(value) for other in others for value in ([other] if _is_map(other) else tensors_of(other))]
    returned = "" if _is_map(output) else type(output).__name__
    calls.append(Boundary(_shape(first) if _is_map(first) else (), tuple(shapes), returned))


def _is_map(value: Any) -> bool:
    """Return whether a value is a tensor, or stands for one in a trace of torch.fx."""
    return isinstance(value, Tensor | fx.Proxy)


def _shape(value: Any) -> tuple[Any, ...] | None:
    return None if isinstance(value, fx.Proxy) else tuple(value.shape)


def why_out_of_reach(calls: Iterable[Boundary], side: str, shape: tuple[int, ...]) -> str | None:
    """Return why a hook on one side of a layer cannot change the map of this shape, or None.

    Args:
        calls: of the layer.
        side: "input" or "output".
        shape: of the map in one of the calls.

    >>> why_out_of_reach([Boundary((2, 8), ((2, 3, 4, 4),), "")], "input", (2, 3, 4, 4))
    'the map is not its first argument; choose a layer inside it'
    """
    calls = list(calls)
    if side == "output":
        returned = sorted({call.returned for call in calls} - {""})
        return f"it returns a {returned[0]}, not one map; choose a layer inside it" if returned else None
    if calls and all(call.first is not None and call.first != shape for call in calls):
        return "the map is not its first argument; choose a layer inside it"
    if any(call.first in call.others for call in calls):
        return "it is called with several maps of one shape; choose a layer inside it"
    return None
