"""Residual ends: the last layer of each residual branch, before the addition."""

from collections.abc import Callable

from gatewise.graph.graph import Graph
from gatewise.graph.place import Places, Spot
from gatewise.graph.places.inner import before_dropout
from gatewise.graph.places.registry import register_place
from gatewise.graph.trace import Op


@register_place("residual_end", where="the last layer of a residual branch, before the addition", sites="residual")
def residual_end(graph: Graph) -> Places:
    """Return the end of each residual branch: the output of its last layer."""
    operations = graph.operations
    ancestors: list[int] = []  # bit i of entry k: operation i is an ancestor of operation k, or k itself
    for op in operations:
        mask = 1 << op.index
        for source in op.inputs:
            mask |= ancestors[source.index]
        ancestors.append(mask)
    places = Places()
    for op in operations:
        if op.kind != "add" or len(op.inputs) != 2 or not op.is_map:
            continue
        first, second = op.inputs
        common = ancestors[first.index] & ancestors[second.index]
        if not common or first.shape != second.shape:
            continue
        between = operations[common.bit_length() - 1 : op.index]  # starts where the branches fork
        shallow, deep = sorted(op.inputs, key=lambda branch: _depth(between, branch, _is_weighted))
        if reason := _why_no_shortcut(between, shallow, deep):
            places.skip(op.where, reason)
            continue
        places.take(_branch_end(deep, graph), op.where, "no layer ends the branch")
    return places


def _is_weighted(op: Op) -> bool:
    return op.is_weighted


def _why_no_shortcut(between: list[Op], shallow: Op, deep: Op) -> str | None:
    """Return why the shallow branch is not a shortcut around the deep branch, or None."""
    if not between[0].shape:
        return "the branches of the addition start from different chunks of a split map"
    depth = _depth(between, shallow, _is_weighted)
    if depth == _depth(between, deep, _is_weighted):
        return f"both branches of the addition have depth {depth}: neither of them is a shortcut"
    if _depth(between, shallow, lambda op: op.is_cross_channel) > 1:  # at most a projection, and depthwise layers
        return f"the shallow branch of the addition has depth {depth}: it is not a shortcut"
    if depth == 0 and _depth(between, shallow, lambda op: op.kind == "norm"):
        return "one branch of the addition has only a normalisation: both branches are parts of one layer"
    return None


def _depth(between: list[Op], end: Op, counts: Callable[[Op], bool]) -> int:
    """Return the length of the longest path from `between[0]` (excluded) to `end`, in operations with `counts(op)`."""
    depths = {between[0].index: 0}
    for op in between[1:]:
        lengths = [depths[source.index] for source in op.inputs if source.index in depths]
        if lengths:
            depths[op.index] = max(lengths) + counts(op)
    return depths.get(end.index, 0)


def _branch_end(op: Op, graph: Graph) -> list[Spot]:
    """Return the outputs of the last layers of a branch, before any scaling, dropout or permutation, last first."""
    spots: list[Spot] = []
    while True:
        op = before_dropout(op)
        spots += graph.output_at(op) if op.is_map else []
        if len(op.inputs) != 1 or op.kind in {"conv", "linear", "norm", "mixing"}:
            return spots
        if sorted(op.inputs[0].shape) != sorted(op.shape):
            return spots
        op = op.inputs[0]
