"""Find the batch norm and ReLU before each gate that inference can fuse with it, and maps it can overwrite."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from gatewise.core.hooks import count_hooks
from gatewise.core.layer_types import BATCH_NORMS
from gatewise.graph.channel_dependencies import followed_by_norm
from gatewise.graph.graph import Graph
from gatewise.graph.trace import Op

_WRITES = {"conv", "norm"}  # operations that allocate their result


@dataclass(frozen=True)
class FusionPattern:
    """The layers before a gate that can be fused with it.

    Attributes:
        activation: path of the ReLU before the gate if the gate is its only consumer, or ''.
        norm: path of the batch norm before the ReLU, or before the gate, if that is its only consumer, or ''.
        owned: whether the gate may overwrite its input once norms are folded into convolutions: one layer has
            allocated it and nothing else reads it.
    """

    activation: str = ""
    norm: str = ""
    owned: bool = False


def find_fusion_patterns(
    graph: Graph, places: Iterable[tuple[str, str]]
) -> tuple[dict[tuple[str, str], FusionPattern], dict[str, str]]:
    """Return the fusion pattern of each place, and the batch norm after each convolution that has no other consumer.

    Args:
        graph: the graph of the network with its gates.
        places: (path of the layer, side) of each gate. The side is "input" or "output" for an inserted gate, and
            "after" for a gate that the network itself calls with the output of the layer: graphs do not contain gates.

    Returns:
        The pattern of each place, and the path of the norm for each convolution.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> find_fusion_patterns(Graph(net), [("3", "input")])
    ({('3', 'input'): FusionPattern(activation='2', norm='1', owned=True)}, {'0': '1'})
    """
    places = list(places)
    gated = {path for path, side in places if side == "after"}
    norms = {path: norm for path, norm in followed_by_norm(graph).items() if path not in gated}
    return {place: _fusion_pattern(graph, gated, *place) for place in places}, norms


def _fusion_pattern(graph: Graph, gated: set[str], path: str, side: str) -> FusionPattern:
    inside = [op for op in graph.operations if op.layer == path]
    if len(inside) != 1 or graph.calls[path] != 1:
        return FusionPattern()
    written = inside[0].kind in _WRITES
    hooks = count_hooks(graph.modules[path], "output")  # of the gate, and perhaps others that keep the map
    if side == "output":
        return FusionPattern(owned=written and hooks == 1)
    if side == "after":
        return FusionPattern(owned=written and not hooks and _read_alone(inside[0]))
    source, activation = inside[0].inputs[0], ""
    if len(source.consumers) != 1:
        return FusionPattern()
    layer = _called_once(graph, gated, source)
    if type(layer) is nn.ReLU:
        before = source.inputs[0]
        if len(before.consumers) != 1:
            return FusionPattern()
        activation, source, layer = source.layer, before, _called_once(graph, gated, before)
    norm = source.layer if source.kind == "norm" and isinstance(layer, BATCH_NORMS) else ""
    return FusionPattern(activation, norm, owned=layer is not None and source.kind in _WRITES)


def _read_alone(op: Op) -> bool:
    """Return whether `op` has one consumer; also through operations that may return their input."""
    while len(op.consumers) == 1 and op.consumers[0].kind in {"dropout", "other"}:
        op = op.consumers[0]
    return len(op.consumers) == 1


def _called_once(graph: Graph, gated: set[str], op: Op) -> nn.Module | None:
    """Return the layer of an operation if it is called once and has no hook or gate on its output."""
    path = op.layer
    layer = graph.modules.get(path)
    if layer is None or path in gated or graph.calls.get(path) != 1 or count_hooks(layer, "output"):
        return None
    return layer
