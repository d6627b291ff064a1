"""Private and undocumented names of torch, each with its use and with what replaces it if a release of torch lacks it.

All other modules take these names from here; `tests/test_torch_compat.py` checks that each behaves as described.
Hook dictionaries of modules are in `gatewise.core.hooks`.
"""

# pyright: basic

import contextlib
import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, fx, nn
from torch.autograd import forward_ad
from torch.fx import config
from torch.utils import flop_counter


def _attribute(path: str) -> Any:
    """Return an attribute of torch by its path, or None if this release has no such name."""
    try:
        return functools.reduce(getattr, path.split("."), torch)
    except (AttributeError, RuntimeError):  # torch.ops and torch.classes raise RuntimeError
        return None


# Transforms, modes and tracing that must observe each operation of a gate: gates/kernels/backend.py


class _WithoutSetupContext(torch.autograd.Function):
    """torch.func cannot transform a function without `setup_context`, and raises while a transform is active."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()


def _transform_rejects_function() -> bool:
    try:
        _WithoutSetupContext.apply(torch.empty(0))
    except RuntimeError:
        return True
    return False


def _dual_tensor_can_be_made() -> bool:
    zero = torch.zeros(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first dual tensor loads decompositions through torch.jit.script
            forward_ad.make_dual(zero, zero)
    except RuntimeError:
        return False
    return True


def _active_forward_level() -> bool:
    return forward_ad._current_level >= 0


def _active_dispatch_mode() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0


# Whether torch.jit.trace records. It is deprecated and not declared as exported. Replacement: nothing can be recorded.
is_jit_tracing: Callable[[], bool] = _attribute("jit.is_tracing") or (lambda: False)

# Whether a transform of torch.func is active. Replacement: torch.func rejects an autograd function.
is_transform_active: Callable[[], bool] = (
    _attribute("_C._are_functorch_transforms_active") or _transform_rejects_function
)

# Whether forward-mode differentiation is active. Replacement: a dual tensor can be made.
is_forward_mode_active: Callable[[], bool] = (
    _active_forward_level if hasattr(forward_ad, "_current_level") else _dual_tensor_can_be_made
)

# Whether a TorchDispatchMode is active. Replacement: assume so, which runs the definition of every gate.
is_dispatch_mode_active: Callable[[], bool] = (
    _active_dispatch_mode if _attribute("_C._len_torch_dispatch_stack") else lambda: True
)


def has_memory(x: Tensor) -> bool:
    """Return whether a tensor has memory of its own, which wrappers of torch.func and batched gradients have not.

    >>> has_memory(torch.zeros(2)), torch.vmap(lambda x: x + has_memory(x))(torch.zeros(2))
    (True, tensor([0., 0.]))
    """
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


def is_recorded(x: Any) -> bool:
    """Return whether torch.export, torch.jit, torch.fx or torch.func runs a network with `x` instead of images."""
    if torch.compiler.is_exporting() or is_jit_tracing() or isinstance(x, fx.Proxy):
        return True
    return not torch.compiler.is_compiling() and not has_memory(x)


# Recomputation in the backward pass: gaternet/hooks.py


def _in_graph_task() -> bool:
    return torch._C._current_graph_task_id() != -1


def _called_by_backward() -> bool:
    """Look for torch's backward functions among the callers; threads of a GPU's backward pass have none."""
    entries = {torch.autograd.backward.__code__, torch.autograd.grad.__code__}
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code not in entries:
        frame = frame.f_back
    return frame is not None


# Whether the autograd engine runs a backward pass in this thread. Replacement: the callers on the stack.
in_backward: Callable[[], bool] = _in_graph_task if _attribute("_C._current_graph_task_id") else _called_by_backward


# Graphs of torch.export and torch.fx: graph/trace.py


def enclosing_calls(node: fx.Node) -> dict[str, str]:
    """Return the module calls around a node, outermost first, as {identifier of the call: module path}.

    Without the metadata `nn_module_stack`, of which torch promises nothing, only nodes of torch.fx that call a module
    have such calls: the module and the modules around it, each called once.
    """
    stack = node.meta.get("nn_module_stack")
    if stack is not None:
        return {call: str(path) for call, (path, _) in stack.items() if path}
    if node.op != "call_module":
        return {}
    parts = str(node.target).split(".")
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return dict(zip(paths, paths, strict=True))


def has_calls(graph: fx.Graph) -> bool:
    """Return whether the nodes of a graph of torch.export tell which modules they belong to."""
    return any("nn_module_stack" in node.meta for node in graph.nodes)


@contextlib.contextmanager
def without_stack_traces() -> Iterator[None]:
    """Let torch.export look up no lines of code for the operations: that is a sixth of its time.

    A release that does not know the setting looks them up.
    """
    before = getattr(config, "do_not_emit_stack_traces", False)
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


_OPERATOR = type(torch.ops.aten.add.Tensor)


def operator_name(target: object) -> str | None:
    """Return the name of an ATen operator without namespace and overload, or None for other targets.

    >>> operator_name(torch.ops.aten.add_.Tensor), operator_name(torch.add)
    ('add_', None)
    """
    return str(target).split(".")[1] if isinstance(target, _OPERATOR) else None


# Networks that were compiled: graph/structural_copy.py. Without these names nothing is compiled.

COMPILED_CALL = "_compiled_call_impl"  # the attribute that `Module.compile` sets on the module


def uncompiled(function: Any) -> Any:
    """Return the function that torch.compile was given; any other function as it is."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def compiled_network(module: nn.Module) -> nn.Module | None:
    """Return the network inside the module that torch.compile returns; None for any other module."""
    return module._modules.get("_orig_mod") if hasattr(module, "_torchdynamo_orig_callable") else None


# Sizes that torch.export cannot know: inference/conditional.py. Replacement: nothing is promised to the exporter.
check_size: Callable[[Any], None] = _attribute("_check") or (lambda _: None)


# Layers whose forward is replaced: inference/optimize.py


def version_of(x: Tensor) -> float:
    """Return the number of in-place changes of a tensor; NaN, which equals no version, if torch does not tell."""
    return getattr(x, "_version", math.nan)


def has_meta_tensors(module: nn.Module) -> bool:
    """Return whether a parameter or buffer of a module is on the meta device, that is, has no values.

    >>> has_meta_tensors(nn.Linear(1, 1, device="meta")), has_meta_tensors(nn.ReLU())
    (True, False)
    """
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


class MoveObserver(nn.Module):
    """A module with methods that are called when its parameters are moved or converted, also by a parent."""

    def before_move(self) -> None:
        """Raise to prevent the move."""

    def after_materialised(self) -> None:
        """Initialise parameters and buffers: they have left the meta device, and have no values yet."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.before_move()
        was_empty = has_meta_tensors(self)
        super()._apply(fn, recurse)
        if was_empty and not has_meta_tensors(self):
            self.after_materialised()
        return self

    if not hasattr(nn.Module, "_apply"):

        def to(self, *args: Any, **named: Any) -> Any:
            """Call `before_move` first; the public method sees calls on this module only."""
            self.before_move()
            return super().to(*args, **named)


# Replicas of nn.DataParallel: gaternet/network.py and gaternet/route_norms.py. Without these names a network is none.


def is_replica(module: nn.Module) -> bool:
    """Return whether a module is the copy of a network that nn.DataParallel runs on one of several devices."""
    return getattr(module, "_is_replica", False)


def tensors_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, also those of a replica, which has tensors in place of parameters.

    >>> list(tensors_by_name(nn.Sequential(nn.Linear(1, 1))))
    ['0.weight', '0.bias']
    """
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules():
        own = (part._parameters, getattr(part, "_former_parameters", {}), part._buffers)
        found |= {f"{path}.{name}".lstrip("."): t for tensors in own for name, t in tensors.items() if t is not None}
    return found


# Buffers of higher precision than the network's: gaternet/budget.py


class Float32Buffers(nn.Module):
    """A module whose own buffers stay at least in float32 when its parent is converted to 16 bits.

    If a release of torch does not call `_apply`, the buffers follow the parent's precision.

    Attributes:
        constants: names of tensors that are moved and converted as buffers are, but keep their values where buffers
            lose them: on the meta device and in `to_empty`.
    """

    constants: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now: Tensor = getattr(self, name)
            if now.dtype != torch.promote_types(now.dtype, torch.float32):
                setattr(self, name, buffer.to(now.device, torch.float32))
        for name in self.constants:
            constant: Tensor = getattr(self, name)
            now = fn(constant)
            if not now.is_meta:
                setattr(self, name, constant.to(now.device, torch.promote_types(now.dtype, torch.float32)))
        return self


# Classes that were registered as containers, in outputs of networks: core/nesting.py. Replacement: none was.
try:
    from torch.utils._pytree import tree_flatten, tree_unflatten
except ImportError:

    def tree_flatten(tree: Any, is_leaf: Any = None) -> tuple[list[Any], Any]:  # noqa: ARG001
        return [tree], None

    def tree_unflatten(leaves: Any, treespec: Any) -> Any:  # noqa: ARG001
        return leaves[0]


# Convolutions with packed weights: inference/packed.py


@functools.cache
def packed_operators() -> tuple[Callable[..., Tensor], Callable[..., Tensor]] | None:
    """Return oneDNN's operators that pack a weight and convolve with it; None if they are missing or have changed."""
    pack = _attribute("ops.mkldnn._reorder_convolution_weight")
    convolve = _attribute("ops.mkldnn._convolution_pointwise")
    if pack is None or convolve is None or not torch.backends.mkldnn.is_available():
        return None
    plain: Any = {"dtype": torch.float32, "device": "cpu"}
    x, weight, one, zero = torch.ones(1, 1, 1, 1, **plain), torch.full((1, 1, 1, 1), 2.0, **plain), (1, 1), (0, 0)
    try:
        y = convolve(x, pack(weight, zero, one, one, 1, x.shape), None, zero, one, one, 1, "none", [], "")
    except (RuntimeError, TypeError):
        return None
    return (pack, convolve) if y.item() == 2 else None


def count_flops_as_convolution(operator: Any) -> None:
    """Let `FlopCounterMode` count an operator with the arguments (x, weight, ...) as a convolution.

    `conv_flop_count` is not documented; without it the operator counts as nothing.
    """
    count = getattr(flop_counter, "conv_flop_count", None)
    if count is not None:

        @flop_counter.register_flop_formula(operator)
        def _flops(x_shape: Any, w_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
            return count(x_shape, w_shape, out_shape)


# Rendezvous of processes: training/distributed.py. Neither is in `torch.distributed.__all__`, and builds without
# distributed training have neither: None, and init_process_group then makes its own store.
TCPStore: Any = getattr(distributed, "TCPStore", None)
rendezvous: Any = getattr(distributed, "rendezvous", None)


def call_while_tracing(function: Callable[..., None]) -> Callable[..., None]:
    """Let Dynamo call `function` once while it traces, instead of tracing it; the compiled network does not call it.

    This is `torch.compiler.assume_constant_result` without its import of Dynamo, which takes a second. If a release of
    torch ignores the mark, Dynamo traces the function; so it does in torch 2.11, where the arguments of a marked
    function cannot be modules.
    """
    function._dynamo_marked_constant = torch.__version__ >= (2, 12)  # type: ignore[attr-defined]  # pyright: ignore
    return function
