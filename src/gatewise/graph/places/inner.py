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
        if reason := _why_not_private(op):
            places.skip(op.where, reason.removesuffix(f" ({op.where})"))
            continue
        spot = _before_own_gate(before_dropout(op))
        places.take(graph.output_at(spot) + graph.input_at(spot), op.where, "no layer starts or ends at its map")
    return places


_NO_FILTERS = {
    "input": "its channels are those of the network's input",
    "cat": "its channels are a concatenation of maps",
    "add": "its channels are a sum of maps",
    "mixing": "its channels are mixed before they are read",
}


def _why_not_private(op: Op) -> str:
    """Return why closing a filter would not only change what `op` gives to its consumer, or ''.

    The filters must reach `op` through operations on each channel, and no other layer may read them on the way.
    """
    if op.is_cross_channel:
        return ""
    if op.ends_filters:
        return f"{_NO_FILTERS[op.kind]} ({op.where})" if op.kind != "input" else _NO_FILTERS[op.kind]
    sources = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    for source in sources:
        reader = _other_reader(op, source)
        why = f"its channels are read elsewhere too ({reader.described})" if reader else _why_not_private(source)
        if why:
            return why
    return "" if sources else f"its map is split or reshaped from another one ({op.where})"


def _other_reader(end: Op, source: Op) -> Op | None:
    """Return an operation to which a path from `source` leads past `end`; an SE block uses its input twice."""
    seen, unread = {source, end}, deque([source])
    while unread:
        op = unread.popleft()
        if op.index > end.index:
            return op
        new = [consumer for consumer in dict.fromkeys(op.consumers) if consumer not in seen]
        seen.update(new)
        unread.extend(new)
    return None


def before_dropout(op: Op) -> Op:
    """Return the operation before any dropout, so that a gate reads maps without dropped values."""
    while op.kind == "dropout" and len(op.inputs[0].consumers) == 1:
        op = op.inputs[0]
    return op


def _before_own_gate(op: Op) -> Op:
    """Return the map before a gate of the network, such as SE: closed filters must be zero in its squeeze, too."""
    maps = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return maps[0] if op.kind == "mul" and len(maps) == 1 and len(op.inputs) > 1 else op
