"""Find the producer and the consumers of the channels at a place."""

from collections.abc import Iterator
from dataclasses import dataclass

from gatewise.graph.graph import Graph
from gatewise.graph.place import Place, Skipped
from gatewise.graph.places.registry import find_places
from gatewise.graph.trace import Op


@dataclass(frozen=True)
class LayerCost:
    """The cost of a convolution or linear layer.

    Attributes:
        layer: path of the layer.
        macs: multiply-adds (MACs) for one sample, of all its calls with these filters.
        groups: groups of a convolution; 1 for a linear layer.
    """

    layer: str
    macs: int
    groups: int = 1


@dataclass(frozen=True)
class Filters:
    """The filters that produce the channels at one place.

    Attributes:
        place: where the filters can be gated.
        producer: the layer with these filters.
        depthwise: depthwise convolutions between the producer and the place.
        consumers: layers with exactly these channels as input; empty after an addition. Weights that a forward uses
            itself, without a layer, are not among them.
    """

    place: Place
    producer: LayerCost
    depthwise: tuple[LayerCost, ...]
    consumers: tuple[LayerCost, ...]


def find_filters(graph: Graph, place: str) -> tuple[list[Filters], list[Skipped]]:
    """Return the filters at the places of one kind, and the skipped candidates.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> net.input_size = (3, 8, 8)
    >>> (found,), _ = find_filters(Graph(net), "inner")
    >>> found.producer, found.consumers  # MACs: 6 * 6 * 8 * (3 * 9) and 4 * 4 * 4 * (8 * 9)
    (LayerCost(layer='0', macs=7776, groups=1), (LayerCost(layer='2', macs=4608, groups=1),))
    """
    places = find_places(graph, place)
    found, skipped = list[Filters](), list(places.skipped)
    for spot in places.found:
        maps = graph.maps_at(spot)
        producers = list(dict.fromkeys(producer for op in maps for producer in _producers(op)))
        consumers = list(dict.fromkeys(consumer for op in maps for consumer in _consumers(op)))
        mixing = [producer for producer in producers if producer.is_cross_channel]
        if reason := _why_no_filters(graph, mixing, maps):
            skipped.append(Skipped(spot.layer, reason))
            continue
        (producer,) = _layer_costs(graph, mixing)
        depthwise = _layer_costs(graph, [producer for producer in producers if not producer.is_cross_channel])
        found.append(Filters(spot, producer, depthwise, _layer_costs(graph, consumers)))
    return found, skipped


def _why_no_filters(graph: Graph, producers: list[Op], maps: list[Op]) -> str:
    """Return why the channels of the maps at a place are not the filters of one layer, or ''."""
    if not producers:
        return "its channels are a concatenation of several maps"
    layers = {producer.layer for producer in producers}
    if len(producers) > len(maps) or len(layers) > 1:
        return f"{len(producers)} layers produce its channels, expected one"
    if not _is_of_a_layer(graph, producers[0]):
        return f"{producers[0].where} uses the weights of these filters itself; call a layer such as torch.nn.Conv2d"
    others = [op for op in graph.operations if op.layer in layers and op.is_cross_channel and op not in producers]
    if others and len(maps) > 1:
        return f"its channels are those of {others[0].layer}, which is also called without this place"
    return ""


def _is_of_a_layer(graph: Graph, op: Op) -> bool:
    """Return whether a layer runs `op` and no other product with weights, so that its path names the filters."""
    own = [other for other in graph.operations if other.layer == op.layer and other.is_weighted]
    return op.layer != "" and len(own) == graph.calls[op.layer]


def _layer_costs(graph: Graph, ops: list[Op]) -> tuple[LayerCost, ...]:
    """Return the cost of each layer in all of these operations."""
    costs: dict[str, LayerCost] = {}
    for op in ops:
        if not _is_of_a_layer(graph, op):
            continue
        before = costs[op.layer].macs if op.layer in costs else 0
        costs[op.layer] = LayerCost(op.layer, before + op.macs, op.groups)
    return tuple(costs.values())


def _producers(op: Op) -> Iterator[Op]:
    """Yield the layers that produce the channels of `op`: depthwise ones, then the cross-channel one of each path."""
    if op.macs:
        yield op
    if op.is_cross_channel or op.ends_filters:
        return
    for source in op.inputs:
        if source.is_map and source.channels == op.channels:
            yield from _producers(source)


def _consumers(op: Op) -> Iterator[Op]:
    """Yield the layers that use all channels of `op`, after any per-channel operations."""
    for consumer in op.consumers:
        if consumer.is_cross_channel:
            yield consumer
        elif not consumer.ends_filters and consumer.is_map and consumer.channels == op.channels:
            yield from _consumers(consumer)
