"""Inner places: between two convolutions of a block, where a closed filter saves work in both."""

from collections import deque

from gatewise.graph.graph import Graph
from gatewise.graph.place import Places
from gatewise.graph.places.registry import register_place
from gatewise.graph.trace import Op


@register_place("inner", where="between two convolutions of a block, after norm and activation", sites="inner")
def inner(graph: Graph) -> Places:
    """Return the maps that a convolution produces and exactly one convolution consumes.

    Only per-channel operations lie between the two. The gate acts after normalisation and activation, and before a
    squeeze-and-excite block of the network. Closing a filter saves the filter and its share of the consumer.
    """
    places = Places()
    for op in graph.operations:
        if not (op.is_map and len(op.consumers) == 1 and op.consumers[0].is_cross_channel):
            continue
        if not _private_filters(op):
            places.skip(op.where, "its channels are also used by another layer, or are not produced by a convolution")
            continue
        spot = _before_own_gate(before_dropout(op))
        place = graph.output_at(spot) or graph.input_at(spot)
        places.take(place, op.where, "no module that is called exactly once starts or ends here")
    return places


def _private_filters(op: Op) -> bool:
    """Return whether only `op` uses the filters that produce its channels, through per-channel operations."""
    if op.is_cross_channel:
        return True
    if op.ends_filters:
        return False
    sources = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return bool(sources) and all(_leads_only_to(op, source) and _private_filters(source) for source in sources)


def _leads_only_to(end: Op, source: Op) -> bool:
    """Return whether every path from `source` leads to `end`; an SE block uses its input twice."""
    seen, unread = {source, end}, deque([source])
    while unread:
        op = unread.popleft()
        if op.index > end.index:
            return False
        new = [consumer for consumer in dict.fromkeys(op.consumers) if consumer not in seen]
        seen.update(new)
        unread.extend(new)
    return True


def before_dropout(op: Op) -> Op:
    """Return the operation before any dropout, so that a gate reads maps without dropped values."""
    while op.kind == "dropout" and len(op.inputs[0].consumers) == 1:
        op = op.inputs[0]
    return op


def _before_own_gate(op: Op) -> Op:
    """Return the map before a gate of the network, such as SE: closed filters must be zero in its squeeze, too."""
    maps = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return maps[0] if op.kind == "mul" and len(maps) == 1 and len(op.inputs) > 1 else op
