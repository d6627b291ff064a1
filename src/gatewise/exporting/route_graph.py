"""Put a chooser and one dense network for each route together into one ONNX graph of standard operators.

For each route an `If` asks whether some image takes it. Its body gathers those images, runs the route's network, and
scatters the rows back. The weights are inside the bodies: ONNX Runtime computes convolutions in its blocked layout only
if their weights are constants of the same graph.
"""

# pyright: basic

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from gatewise import errors


def compose(chooser: Any, networks: Sequence[Any], output: str) -> Any:
    """Return the model "image" -> outputs `output`, "route" (N,) and "gates" (N, gates).

    Args:
        chooser: model "image" -> "route", "gates".
        networks: a model "image" -> `output` for each route; all results have the same shape for one image.
        output: name of the first output.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(chooser.graph)
    result = networks[0].graph.output[0].type.tensor_type
    axes = _axes_of_image(networks[0].graph)
    current = "before"
    graph.node.extend(_zeros(graph, result, axes, current))
    for route, network in enumerate(networks):
        prefix = f"route{route}/"
        after = output if route == len(networks) - 1 else f"after{route}"
        graph.initializer.append(numpy_helper.from_array(np.array(route), f"{prefix}number"))
        graph.node.extend([
            helper.make_node("Equal", ["route", f"{prefix}number"], [f"{prefix}takes"]),
            helper.make_node("Cast", [f"{prefix}takes"], [f"{prefix}counted"], to=TensorProto.INT32),
            helper.make_node("ReduceMax", [f"{prefix}counted"], [f"{prefix}most"], keepdims=0),
            helper.make_node("Cast", [f"{prefix}most"], [f"{prefix}some"], to=TensorProto.BOOL),
            helper.make_node(
                "If",
                [f"{prefix}some"],
                [after],
                name=f"{prefix}if",
                then_branch=_body(network.graph, prefix, current, output, result),
                else_branch=_unchanged(prefix, current, result),
            ),
        ])
        current = after
    sides = graph.input[0].type.tensor_type.shape.dim
    shape = [
        dimension.dim_value if axis is None else sides[axis].dim_param
        for dimension, axis in zip(result.shape.dim, axes, strict=True)
    ]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, result.elem_type, shape))
    graph.output.extend(chooser.graph.output)
    model = onnx.ModelProto()
    model.CopyFrom(chooser)
    model.graph.CopyFrom(graph)
    _unite_opsets(model, networks)
    return model


def _axes_of_image(graph: Any) -> list[int | None]:
    """Return for each axis of a network's result the axis of the image that has its size; None if it is fixed."""
    sides = [dimension.dim_param for dimension in graph.input[0].type.tensor_type.shape.dim]
    found: list[int | None] = []
    for axis, dimension in enumerate(graph.output[0].type.tensor_type.shape.dim):
        if dimension.dim_param and dimension.dim_param not in sides:
            raise errors.InvalidValueError(
                f"form routes needs outputs of a fixed size or of the size of the image, and axis {axis} of the output "
                f"has another. Export for a fixed size, or choose another form."
            )
        found.append(sides.index(dimension.dim_param) if dimension.dim_param else None)
    return found


def _zeros(graph: Any, result: Any, axes: Sequence[int | None], name: str) -> list[Any]:
    """Return the nodes of a map of zeros of the result's shape, into which routes write their rows."""
    nodes: list[Any] = []
    for number, (dimension, axis) in enumerate(zip(result.shape.dim, axes, strict=True)):
        if axis is None:
            size = numpy_helper.from_array(np.array([dimension.dim_value]), f"before/axis{number}")
            graph.initializer.append(size)
        else:
            image = graph.input[0].name
            nodes.append(helper.make_node("Shape", [image], [f"before/axis{number}"], start=axis, end=axis + 1))
    sizes = [f"before/axis{number}" for number in range(len(axes))]
    zero = helper.make_tensor("zero", result.elem_type, [1], [0])
    return [
        *nodes,
        helper.make_node("Concat", sizes, ["before/shape"], axis=0),
        helper.make_node("ConstantOfShape", ["before/shape"], [name], value=zero),
    ]


def _body(network: Any, prefix: str, current: str, output: str, result: Any) -> Any:
    """Return the graph that runs the images of a route and writes their rows into `current`."""
    body = _prefixed(network, prefix)
    image, own = network.input[0].name, prefix + output
    gather = [
        helper.make_node("NonZero", [f"{prefix}takes"], [f"{prefix}found"]),
        helper.make_node("Squeeze", [f"{prefix}found", f"{prefix}first"], [f"{prefix}rows"]),
        helper.make_node("Gather", [image, f"{prefix}rows"], [prefix + image], axis=0),
    ]
    scatter = [
        helper.make_node("Unsqueeze", [f"{prefix}rows", f"{prefix}last"], [f"{prefix}indices"]),
        helper.make_node("ScatterND", [current, f"{prefix}indices", own], [f"{prefix}written"]),
    ]
    axes = [numpy_helper.from_array(np.array([axis]), prefix + name) for axis, name in ((0, "first"), (1, "last"))]
    written = _rows(f"{prefix}written", result)
    return helper.make_graph(
        [*gather, *body.node, *scatter],
        f"{prefix}run",
        [],
        [written],
        [*body.initializer, *axes],
        value_info=body.value_info,
    )


def _unchanged(prefix: str, current: str, result: Any) -> Any:
    node = helper.make_node("Identity", [current], [f"{prefix}kept"])
    return helper.make_graph([node], f"{prefix}pass", [], [_rows(f"{prefix}kept", result)])


def _rows(name: str, result: Any) -> Any:
    """Return the description of a result for the whole batch: both branches must have the same rank."""
    return helper.make_tensor_value_info(name, result.elem_type, [None] * len(result.shape.dim))


def _prefixed(network: Any, prefix: str) -> Any:
    """Return a graph with a prefix for all its names, also those of its sizes, which count the images of a route."""
    model = onnx.ModelProto(ir_version=10, graph=network)
    graph = onnx.compose.add_prefix(model, prefix).graph
    for info in graph.value_info:
        for dimension in info.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = prefix + dimension.dim_param
    return graph


def _unite_opsets(model: Any, networks: Sequence[Any]) -> None:
    """Import the operator sets of all parts; quantised networks may use more than the chooser."""
    versions: dict[str, int] = {}
    for part in (model, *networks):
        for imported in part.opset_import:
            versions[imported.domain] = max(imported.version, versions.get(imported.domain, 0))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    model.ir_version = max(part.ir_version for part in (model, *networks))
