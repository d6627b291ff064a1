"""Stage ends: the last map of each resolution."""

from collections.abc import Iterator

from gatewise.graph.graph import Graph
from gatewise.graph.place import Places
from gatewise.graph.places.registry import register_place
from gatewise.graph.trace import Op


@register_place("stage_end", where="the last map of each resolution")
def stage_end(graph: Graph) -> Places:
    """Return the last map of each resolution on the network's trunk, as in timm's `feature_info`."""
    places = Places()
    for operations in _from_each_input(graph.operations):
        trunk = _trunk(operations)
        for end, following in zip(trunk, [*trunk[1:], None][: len(trunk)], strict=True):
            if following is not None and following.spatial_shape == end.spatial_shape:
                continue
            last = end if following is None else _before_reduction(trunk, end, operations)
            places.take(graph.output_at(last) + graph.input_at(last), last.where, "no layer ends the stage")
    return places


def _from_each_input(operations: list[Op]) -> Iterator[list[Op]]:
    """Yield the operations that depend on each input: a siamese network has a trunk for each of its images."""
    for start in operations:
        if start.kind == "input":
            reached = {start}
            for op in operations:
                if not reached.isdisjoint(op.inputs):
                    reached.add(op)
            yield [op for op in operations if op in reached]


def _trunk(operations: list[Op]) -> list[Op]:
    """Return the maps on every path from the input to the last result; additional outputs are ignored.

    Only maps with the rank of the convolutions count: the five axes of a channel shuffle are not a new resolution.
    """
    trunk, furthest = list[Op](), 0
    rank = next((len(op.shape) for op in operations if op.is_map and op.is_weighted), 4)
    for op in operations:
        if op.is_map and len(op.shape) == rank and op.kind != "input" and furthest <= op.index:
            trunk.append(op)
        furthest = max([furthest, *(consumer.index for consumer in op.consumers if consumer.kind != "output")])
    return trunk


def _before_reduction(trunk: list[Op], end: Op, operations: list[Op]) -> Op:
    """Return the last map of the trunk before the block that changes the resolution (it belongs to the next stage)."""
    later = (op for op in operations if op.index > end.index and op.is_map and len(op.shape) == len(end.shape))
    reduction = next(op for op in later if op.spatial_shape != end.spatial_shape)
    for call in reduction.calls:  # outermost first
        inside = [op for op in operations if call in op.calls]
        resolutions = {m.spatial_shape for op in inside for m in (op, *op.inputs) if m.is_map}
        earlier = [op for op in trunk if op.index < inside[0].index and op.spatial_shape == end.spatial_shape]
        if len(resolutions) == 2 and earlier:
            return earlier[-1]
    return end
