"""What a map goes through before a gate reads it, and who else holds it: what inference may do at once, or in place."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from gatewise._types import Example
from gatewise.places.channel_dependencies import followed_by_norm
from gatewise.places.layers import Layers, innermost
from gatewise.places.trace import Op, trace

_WRITES = {"conv", "norm"}  # a map of its own


@dataclass(frozen=True)
class FusionPattern:
    """How the map comes to a gate.

    Attributes:
        activation: path of the ReLU whose result only the gate reads, or ''.
        norm: path of the batch norm before that, whose result only the ReLU, or the gate, reads, or ''.
        owned: whether the map behind a norm that went into its convolution is written by one layer and read by the
            gate alone, so that the gate may write over it.
    """

    activation: str = ""
    norm: str = ""
    owned: bool = False


def find_fusion_patterns(
    model: nn.Module, places: Iterable[tuple[str, str]], example: Example = None
) -> tuple[dict[tuple[str, str], FusionPattern], dict[str, str]]:
    """Return the approach to each place (layer, side), and each convolution with the batch norm that alone reads it.

    The side "after" is that of a gate which the network itself calls with the layer's result. Traces show no gates, so
    it must be told where they are.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> find_fusion_patterns(net, [("3", "input")])
    ({('3', 'input'): Approach(activation='2', norm='1', owned=True)}, {'0': '1'})
    """
    operations = trace(model, example)
    layers = Layers(model, operations)
    places = list(places)
    gated = {path for path, side in places if side == "after"}
    norms = {path: norm for path, norm in followed_by_norm(operations, layers).items() if path not in gated}
    return {place: _fusion_pattern(operations, layers, gated, *place) for place in places}, norms


def _fusion_pattern(operations: list[Op], layers: Layers, gated: set[str], path: str, side: str) -> FusionPattern:
    inside = [op for op in operations if innermost(op) == path]
    if len(inside) != 1 or layers.calls[path] != 1:
        return FusionPattern()
    written = inside[0].kind in _WRITES
    hooks = cast(dict[int, Any], layers.modules[path]._forward_hooks)  # the gate's own, perhaps one that keeps the map
    if side == "output":
        return FusionPattern(owned=written and len(hooks) == 1)
    if side == "after":
        return FusionPattern(owned=written and not hooks and _read_alone(inside[0]))
    source, activation = inside[0].inputs[0], ""
    if len(source.consumers) != 1:
        return FusionPattern()
    layer = _called_once(layers, gated, source)
    if type(layer) is nn.ReLU:
        before = source.inputs[0]
        if len(before.consumers) != 1:
            return FusionPattern()
        activation, source, layer = innermost(source), before, _called_once(layers, gated, before)
    norm = innermost(source) if source.kind == "norm" and isinstance(layer, nn.modules.batchnorm._BatchNorm) else ""
    return FusionPattern(activation, norm, owned=layer is not None and source.kind in _WRITES)


def _read_alone(op: Op) -> bool:
    """Whether one operation reads a result, also through operations that may return what they are given."""
    while len(op.consumers) == 1 and op.consumers[0].kind in {"dropout", "other"}:
        op = op.consumers[0]
    return len(op.consumers) == 1


def _called_once(layers: Layers, gated: set[str], op: Op) -> nn.Module | None:
    """Return the layer that an operation is, if it is called once and no hook or gate sees or changes its map."""
    path = innermost(op)
    layer = layers.modules.get(path)
    if layer is None or path in gated or layers.calls.get(path) != 1 or layer._forward_hooks:
        return None
    return layer
