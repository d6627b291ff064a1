"""Put the regions of a graph of torch.export into one graph.

What runs under autocast, no_grad or enable_grad inside a forward is a graph of its own, called by an operator `wrap_*`.
"""

# pyright: basic

import operator
from typing import Any

from torch import fx


def without_regions(module: fx.GraphModule) -> fx.Graph:
    """Return the graph of `module` with the operations of its regions in their place."""
    flat = fx.Graph()
    flat.output(_copied(module, {}, flat))
    return flat


def _copied(module: fx.GraphModule, known: dict[fx.Node, Any], flat: fx.Graph) -> Any:
    """Copy the nodes of a module's graph to `flat` and return its result; `known` has the values of its inputs."""
    result: Any = None
    for node in module.graph.nodes:
        if node in known:
            continue
        region, operands = _region(node, module)
        if node.op == "output":
            result = fx.map_arg(node.args[0], known.__getitem__)
        elif region is not None:
            inputs = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
            given = {inner: known.get(outer, outer) for inner, outer in zip(inputs, operands, strict=True)}
            known[node] = _copied(region, given, flat)
        elif node.target is operator.getitem and not isinstance(known[node.args[0]], fx.Node):
            known[node] = known[node.args[0]][node.args[1]]  # one of the results of a region
        else:
            known[node] = flat.node_copy(node, known.__getitem__)
    return result


def _region(node: fx.Node, module: fx.GraphModule) -> tuple[fx.GraphModule | None, tuple[Any, ...]]:
    """Return the region that a node calls, and its operands; None for any other node."""
    if node.op == "call_function" and str(node.target).startswith("wrap_"):
        for position, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.op == "get_attr":
                region = getattr(module, str(argument.target), None)
                if isinstance(region, fx.GraphModule):
                    return region, node.args[position + 1 :]
    return None, ()
