"""Trace a network into a list of tensor operations, with torch.export, or torch.fx if that fails.

A copy is traced that shares the parameters, since a forward may write to buffers, attributes and caches.
"""

# pyright: basic

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatewise import errors
from gatewise.core._torch_compat import (
    enclosing_calls,
    has_calls,
    has_meta_tensors,
    operator_name,
    without_stack_traces,
)
from gatewise.core.hooks import names_of, submodule
from gatewise.core.layer_types import (
    ANY_CONVOLUTIONS,
    CHANNEL_NORMS,
    CONVOLUTIONS,
    DROPOUTS,
    TRANSPOSED_CONVOLUTIONS,
    spatial_axes,
)
from gatewise.core.log_filters import without_logs_of
from gatewise.gates.registry import Gate
from gatewise.graph.boundary import Boundary, record_boundaries
from gatewise.graph.regions import without_regions
from gatewise.graph.structural_copy import rehearsal
from gatewise.graph.unreadable import values_decide, why_unreadable

# The kind of an operation, by the name of its ATen operator (torch.export) or function (torch.fx) without "_".
_KINDS = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "convolution"], "conv"),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], "conv"),
    **dict.fromkeys(["linear", "addmm"], "linear"),
    **dict.fromkeys(["batch_norm", "instance_norm"], "norm"),
    **dict.fromkeys(["group_norm", "layer_norm", "rms_norm", "local_response_norm"], "mixing"),
    **dict.fromkeys(["softmax", "log_softmax", "channel_shuffle"], "mixing"),
    **dict.fromkeys(["add", "iadd"], "add"),
    **dict.fromkeys(["mul", "imul"], "mul"),
    **dict.fromkeys(["dropout", "feature_dropout", "alpha_dropout"], "dropout"),
    **dict.fromkeys(["cat", "concat", "concatenate"], "cat"),
    **dict.fromkeys(["permute", "transpose"], "permute"),
}
_MODULE_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    (ANY_CONVOLUTIONS, "conv"),
    ((nn.Linear,), "linear"),
    (CHANNEL_NORMS, "norm"),
    ((nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm), "mixing"),
    ((nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.ChannelShuffle), "mixing"),
    (DROPOUTS, "dropout"),
)


@dataclass(eq=False)
class Op:
    """One operation on activations.

    Attributes:
        index: position in the order of execution.
        kind: "conv" (also a transposed one), "linear", "norm" (per channel, such as batch norm), "mixing" (across
            channels, such as group norm), "add", "mul", "dropout", "cat", "permute", "input", "output" or "other".
        inputs: the operations that produce its inputs, without parameters.
        calls: the enclosing module calls, outermost first, as {identifier of the call: module path}.
        shape: shape of the result; () if the result is not a tensor.
        channel_axis: channel axis of the result.
        groups: groups of a convolution; 1 otherwise.
        macs: multiply-adds of a convolution or linear layer for one sample; 0 otherwise.
        consumers: the operations that use the result, repeated for each use.
    """

    index: int
    kind: str
    inputs: list["Op"]
    calls: dict[str, str]
    shape: tuple[int, ...]
    channel_axis: int
    groups: int = 1
    macs: int = 0
    consumers: list["Op"] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """Number of channels of the result; 0 if it has no such axis."""
        return self.shape[self.channel_axis] if self.channel_axis < len(self.shape) else 0

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Sizes of the axes that are neither samples nor channels."""
        return tuple(size for axis, size in enumerate(self.shape) if axis not in {0, self.channel_axis})

    @property
    def layer(self) -> str:
        """Path of the innermost module that executed it, or ''."""
        return next(reversed(self.calls.values()), "")

    @property
    def where(self) -> str:
        """Its name in a report: the path of its innermost module."""
        return next(reversed(self.calls.values()), "the network's own forward")

    @property
    def described(self) -> str:
        """What it is and where, for a message."""
        if self.kind == "output":
            return "the network's output"
        what = {"add": "an addition in ", "cat": "a concatenation in ", "mul": "a product in "}
        return what.get(self.kind, "") + self.where

    @property
    def is_weighted(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return self.kind in {"conv", "linear"}

    @property
    def is_cross_channel(self) -> bool:
        """Whether it mixes channels: a convolution or linear layer that is not depthwise."""
        return self.is_weighted and not (self.groups > 1 and self.groups == self.inputs[0].channels)

    @property
    def ends_filters(self) -> bool:
        """Whether the output channels no longer belong to one filter each."""
        is_sum = self.kind == "add" and len(self.inputs) > 1  # a bias is not an input
        return self.kind in {"cat", "mixing", "input"} or is_sum

    @property
    def is_map(self) -> bool:
        """Whether the result is a feature map: samples, channels, and one to three spatial axes, not all of size 1."""
        tokens = len(self.shape) == 3 and self.channel_axis == 2
        return 3 <= len(self.shape) <= 5 and not tokens and max(self.spatial_shape) > 1

    def ended_calls(self) -> list[tuple[str, str]]:
        """Return (call, module path) of each module that returns this result, innermost first."""
        ended = [
            call for call in self.calls.items() if any(call[0] not in consumer.calls for consumer in self.consumers)
        ]
        return ended[::-1]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode, and restore the training flag of every module on exit, also after an exception."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _set_gates_aside(model: nn.Module) -> None:
    """Turn every gate of a copy into an identity, so that the trace is that of the network without gates."""
    for module in model.modules():
        if isinstance(module, Gate):
            module.__dict__["forward"] = lambda x: x


def known_input_size(model: nn.Module) -> list[tuple[int, ...]]:
    """Return the (channels, height, width) in `input_size` and in timm's `pretrained_cfg`, where they are set.

    `pretrained_cfg` describes images of the published weights. A network may be built for other channels (`in_chans`),
    those of its first convolution, so that size is returned with these channels first.
    """
    described = getattr(model, "pretrained_cfg", None)
    described = described if isinstance(described, dict) else {}
    of_weights = described.get("input_size")
    sizes = [getattr(model, "input_size", None), of_weights]
    if isinstance(of_weights, tuple) and (first := _first_convolution(model, described.get("first_conv"))) is not None:
        sizes.insert(1, (first.in_channels, *of_weights[1:]))
    return list(dict.fromkeys(size for size in sizes if isinstance(size, tuple) and len(size) >= 2))


def _first_convolution(model: nn.Module, named: Any) -> Any:
    """Return the convolution that timm names as the first, or else the first registered one; None if there is none."""
    name = named[0] if isinstance(named, (tuple, list)) and named else named
    layer = submodule(model, names_of(name)) if isinstance(name, str) else None
    if isinstance(layer, CONVOLUTIONS):
        return layer
    return next((module for module in model.modules() if isinstance(module, CONVOLUTIONS)), None)


def example_inputs(model: nn.Module) -> list[Tensor]:
    """Return inputs that the network may accept, the most likely first."""
    shapes = known_input_size(model)
    if (first := _first_convolution(model, None)) is not None:
        axes = spatial_axes(first)
        shapes += [(first.in_channels,) + (side,) * axes for side in (224, 32) if side**axes < 1e6]
    anchor = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return [torch.zeros((2, *shape), device=anchor.device, dtype=anchor.dtype) for shape in shapes]


@dataclass(frozen=True)
class Trace:
    """What was read of a network.

    Attributes:
        operations: in the order of execution, without those of gates.
        boundaries: the calls of each module, by path.
    """

    operations: list[Op]
    boundaries: dict[str, list[Boundary]]


def trace(model: nn.Module, example: Tensor | tuple[Any, ...] | None = None, *, by_type: bool = False) -> Trace:
    """Return the operations of `model`, and the calls of its modules.

    Args:
        model: the network; it is not changed.
        example: an input, or a tuple of all inputs; None guesses the size from the model.
        by_type: whether the caller can select layers by their type instead, for the error message.

    Raises:
        ValueError: if both torch.export and torch.fx fail; the message contains both reasons.
    """
    if example is None:
        candidates = [(guess,) for guess in example_inputs(model)]
    else:
        candidates = [_distinct(example if isinstance(example, tuple) else (example,))]
    is_empty = has_meta_tensors(model)
    if is_empty:
        candidates = [tuple(x.to("meta") if isinstance(x, Tensor) else x for x in inputs) for inputs in candidates]
    failures: dict[tuple[Any, ...], list[Exception]] = {}
    with torch.no_grad(), warnings.catch_warnings(), without_logs_of("torch"):
        warnings.simplefilter("ignore")  # about attributes that a forward assigns: the model is a copy
        for read in (_read_export, _read_fx):
            for inputs in candidates:
                try:
                    # torch prints graphs and tracebacks before it raises
                    with rehearsal(model) as copied, contextlib.redirect_stderr(io.StringIO()):
                        _set_gates_aside(copied)
                        boundaries = record_boundaries(copied)
                        return Trace(read(copied.to("meta") if is_empty else copied, inputs), boundaries)
                except Exception as error:
                    shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
                    failures.setdefault(shapes, []).append(error.with_traceback(None))
                    if values_decide(error):
                        break  # they do so for every size
    why = why_unreadable(failures, by_type=by_type)
    raise errors.InvalidValueError(f"cannot read the structure of {type(model).__name__} {why}")


def _distinct(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs with tensors of their own: torch.export takes one tensor for one input, however often given."""
    seen: list[Any] = []
    for x in inputs:
        seen.append(x.clone() if isinstance(x, Tensor) and any(x is other for other in seen) else x)
    return tuple(seen)


def _read_export(model: nn.Module, inputs: tuple[Any, ...]) -> list[Op]:
    with without_stack_traces():
        program = torch.export.export(model, inputs, strict=False)
    if not has_calls(program.graph):
        raise errors.InvalidValueError("this release of torch does not record the modules of operations")
    given = program.graph_signature.user_inputs
    graph = without_regions(program.graph_module)
    return _operations(graph, lambda node: node.target in given, {}, _first_names(model))


def _read_fx(model: nn.Module, inputs: tuple[Any, ...]) -> list[Op]:
    from torch.fx.passes.shape_prop import ShapeProp

    graph_module = fx.symbolic_trace(model)
    ShapeProp(graph_module).propagate(*inputs)
    modules: dict[str, nn.Module] = dict(graph_module.named_modules(remove_duplicate=False))
    return _operations(graph_module.graph, lambda _: True, modules, _first_names(model))


def _first_names(model: nn.Module) -> dict[str, str]:
    """Map each path of a module to the first path of that module: shared modules have several."""
    names = {module: path for path, module in model.named_modules()}
    return {path: names[module] for path, module in model.named_modules(remove_duplicate=False)}


def _operations(graph: fx.Graph, is_input: Any, modules: dict[str, nn.Module], names: dict[str, str]) -> list[Op]:
    """Convert a graph of either front end to operations, without constants, shapes and assertions."""
    ops: list[Op] = []
    results: dict[fx.Node, Op] = {}  # an nn.Identity maps to the operation before it
    for node in graph.nodes:
        inputs = [results[source] for source in node.all_input_nodes if source in results]
        if not inputs and not (node.op == "placeholder" and is_input(node)):
            continue
        if node.op != "output" and _value(node) is None:
            continue
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Identity):
            results[node] = inputs[0]
            continue
        kind = _kind(node, modules)
        calls = {call: names.get(path, path) for call, path in enclosing_calls(node).items()}
        shape = _shape(node)
        axis = _channel_axis(kind, node, inputs, shape)
        op = Op(len(ops), kind, inputs, calls, shape, axis)
        if weight := _weight_shape(kind, node, modules):
            op.groups, op.macs = _groups_and_macs(op, weight, transposed=_is_transposed(node, modules))
        for source in _reads(node):
            if source in results:
                results[source].consumers.append(op)
        ops.append(op)
        results[node] = op
    return ops


def _reads(node: fx.Node) -> list[fx.Node]:
    """Return the input nodes of a node, with repetitions: two for x + x."""
    read: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), read.append)
    return read


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op in {"placeholder", "output"}:
        return {"placeholder": "input", "output": "output"}[node.op]
    if node.op == "call_module":
        module = modules[str(node.target)]
        return next((kind for types, kind in _MODULE_KINDS if isinstance(module, types)), "other")
    target: Any = node.target
    name = operator_name(target) or (target if isinstance(target, str) else getattr(target, "__name__", str(target)))
    return _KINDS.get(name.strip("_"), "other")


def _value(node: fx.Node) -> Any:
    """Return the metadata of the node's result (fake tensors or shapes), or None."""
    return node.meta.get("val", node.meta.get("tensor_meta"))


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = getattr(_value(node), "shape", None)
    return tuple(int(size) for size in shape) if shape is not None else ()


def _channel_axis(kind: str, node: fx.Node, inputs: list[Op], shape: tuple[int, ...]) -> int:
    """Return the channel axis: last after linear layers and layer norms, moved by permutations, otherwise kept.

    A reshape keeps it if the result has an axis of the same size with the same number of elements before it.
    """
    if kind == "linear" or ("layer_norm" in str(node.target) and inputs and len(inputs[0].shape) == len(shape)):
        return len(shape) - 1
    if not inputs or kind in {"conv", "input", "output"}:
        return 1
    before, old = inputs[0].channel_axis, inputs[0].shape
    if len(old) != len(shape):
        axes = [
            axis
            for axis, size in enumerate(shape)
            if before < len(old) and size == old[before] and math.prod(shape[:axis]) == math.prod(old[:before])
        ]
        return axes[0] if axes and math.prod(shape) == math.prod(old) else 1
    if kind == "permute":
        axes: Any = node.args[1:]
        axes = list(axes[0]) if isinstance(axes[0], list | tuple) else list(axes)
        axes = [axis % len(shape) for axis in axes]
        if len(axes) == len(shape):
            return axes.index(before)
        return {axes[0]: axes[1], axes[1]: axes[0]}.get(before, before)
    return before


def _weight_shape(kind: str, node: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, ...]:
    """Return the shape of the weight of a convolution or linear layer as torch stores it; otherwise ()."""
    if kind not in {"conv", "linear"}:
        return ()
    if node.op == "call_module":
        weight: Any = modules[str(node.target)].weight
        return tuple(weight.shape)
    if "addmm" in str(node.target):  # bias, input, weight of (inputs, outputs)
        return _shape(node.args[2])[::-1]  # pyright: ignore
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return _shape(weight) if isinstance(weight, fx.Node) else ()


def _is_transposed(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], TRANSPOSED_CONVOLUTIONS)
    return "conv_transpose" in str(node.target)


def _groups_and_macs(op: Op, weight: tuple[int, ...], *, transposed: bool) -> tuple[int, int]:
    """Return the groups of a convolution (1 for linear layers), and the multiply-adds for one sample.

    A weight is (outputs, inputs per group, ...), and the product of a transposed convolution (inputs, outputs per
    group, ...). Each position multiplies all its elements: of the result, or of a transposed convolution's input.
    """
    source = op.inputs[0]
    whole, positions = (op, source) if transposed else (source, op)
    groups = max(1, whole.channels // max(1, weight[1])) if op.kind == "conv" else 1
    return groups, math.prod(positions.spatial_shape) * math.prod(weight)
