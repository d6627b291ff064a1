"""Find the producer and the consumers of the channels at a place."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from gatewise.core.types import Example
from gatewise.graph.layers import Layers
from gatewise.graph.place import Place, Skipped
from gatewise.graph.rules import RULES, ends_filters, is_cross_channel
from gatewise.graph.trace import Op, trace


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


def find_filters(model: nn.Module, place: str, example: Example = None) -> tuple[list[Filters], list[Skipped]]:
    """Return the filters at the places of one kind, "inner" or "residual_end", and the skipped candidates.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> net.input_size = (3, 8, 8)
    >>> (found,), _ = find_filters(net, "inner")
    >>> found.producer, found.consumers  # MACs: 6 * 6 * 8 * (3 * 9) and 4 * 4 * 4 * (8 * 9)
    (LayerCost(layer='0', macs=7776, groups=1), (LayerCost(layer='2', macs=4608, groups=1),))
    """
    operations = trace(model, example)
    layers = Layers(model, operations)
    places = RULES[place](operations, layers)
    found, skipped = list[Filters](), list(places.skipped)
    for spot in places.found:
        op = _map_at(spot, layers)
        producers = list(dict.fromkeys(_producers(op)))
        mixing = [producer for producer in producers if is_cross_channel(producer)]
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
    return LayerCost(next(reversed(op.calls.values()), ""), op.macs, op.groups)


def _map_at(place: Place, layers: Layers) -> Op:
    boundary = layers.results(place.layer) if place.side == "output" else layers.reads(place.layer)
    return next(op for op in reversed(boundary) if op.is_map and op.channels == place.channels)


def _producers(op: Op) -> Iterator[Op]:
    """Yield the layers that produce the channels of `op`: depthwise ones, then the cross-channel one of each path."""
    if op.macs:
        yield op
    if is_cross_channel(op) or ends_filters(op):
        return
    for source in op.inputs:
        if source.is_map and source.channels == op.channels:
            yield from _producers(source)


def _consumers(op: Op) -> Iterator[Op]:
    """Yield the layers that use all channels of `op`, after any per-channel operations."""
    for consumer in op.consumers:
        if is_cross_channel(consumer):
            yield consumer
        elif not ends_filters(consumer) and consumer.is_map and consumer.channels == op.channels:
            yield from _consumers(consumer)
