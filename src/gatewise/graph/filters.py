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
        macs: multiply-adds (MACs) for one sample.
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
        consumers: layers with exactly these channels as input; empty after an addition.
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
        op = _map_at(spot, graph)
        producers = list(dict.fromkeys(_producers(op)))
        mixing = [producer for producer in producers if producer.is_cross_channel]
        if len(mixing) != 1:
            several = f"{len(mixing)} layers produce its channels, expected one"
            skipped.append(
                Skipped(spot.layer, several if mixing else "its channels are a concatenation of several maps")
            )
            continue
        depthwise = tuple(_layer_cost(producer) for producer in producers if producer is not mixing[0])
        consumers = tuple(_layer_cost(consumer) for consumer in dict.fromkeys(_consumers(op)))
        found.append(Filters(spot, _layer_cost(mixing[0]), depthwise, consumers))
    return found, skipped


def _layer_cost(op: Op) -> LayerCost:
    return LayerCost(op.layer, op.macs, op.groups)


def _map_at(place: Place, graph: Graph) -> Op:
    boundary = graph.results(place.layer) if place.side == "output" else graph.reads(place.layer)
    return next(op for op in reversed(boundary) if op.is_map and op.channels == place.channels)


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
