"""Write means over all positions as GlobalAveragePool, which runtimes compute without a change of memory layout."""

# pyright: basic

from typing import Any

_AXES = ({2, 3}, {-1, -2})


def pool_globally(graph: Any) -> None:
    """Replace each ReduceMean over the positions of (N, C, H, W) that keeps its axes, in place; the values are equal.

    ONNX Runtime computes convolutions in blocks of channels. It reads such a map for GlobalAveragePool as it is, and
    copies it to the plain layout for ReduceMean.

    Args:
        graph: an onnx.GraphProto with the shapes of its maps.
    """
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in (*graph.value_info, *graph.input)}
    constants = {constant.name: constant for constant in graph.initializer}
    dropped: set[str] = set()
    for node in graph.node:
        if node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4 and _keeps_axes(node, constants):
            node.op_type = "GlobalAveragePool"
            dropped.add(node.input[1])
            del node.input[1:]
            del node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    for name in dropped - used:  # ONNX Runtime warns of constants that nobody reads
        graph.initializer.remove(constants[name])


def _keeps_axes(node: Any, constants: dict[str, Any]) -> bool:
    """Return whether a ReduceMean is over the last two of four axes, and keeps them."""
    from onnx import numpy_helper

    keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    if not keeps or len(node.input) < 2 or node.input[1] not in constants:
        return False
    return set(numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()) in _AXES
