"""Private names of torch: each is used in one file only, behaves as we rely on, and has a replacement that works."""

import ast
import importlib.util
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.fx import config
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import gatewise
from gatewise.core import _torch_compat, hooks
from gatewise.graph import find_places
from gatewise.graph.trace import trace
from support import parallel

SOURCE = Path(gatewise.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
COMPAT = "core/_torch_compat.py"
HOOKS = "core/hooks.py"
MODULE_PRIVATES = {name for name in vars(nn.Module()) if name.startswith("_")} | {"_apply", "_call_impl", "_version"}
HOOK_DICTIONARIES = {name for name in MODULE_PRIVATES if "_hooks" in name}

LINES_CAN_BE_LEFT_OUT = hasattr(config, "do_not_emit_stack_traces")


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _torch_names(tree: ast.Module) -> set[str]:
    """Return the names that a module binds to torch or a part of it."""
    names = {"nn", "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] == "torch"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names |= {a.asname or a.name for a in node.names}
    return names


def private_names(text: str) -> dict[int, str]:
    """Return the private names of torch in a source text, by line: imports, attributes, and methods that override."""
    tree, found = ast.parse(text), {}
    roots = _torch_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            names = []
        for name in names:
            first, *rest = name.split(".")
            if first == "torch" and any(map(_private, rest)):
                found[node.lineno] = name
        if isinstance(node, ast.Attribute) and _private(node.attr):
            root: ast.expr = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            of_torch = isinstance(root, ast.Name) and root.id in roots
            if of_torch or node.attr in MODULE_PRIVATES - HOOK_DICTIONARIES - {"_modules"}:
                found[node.lineno] = ast.unparse(node)
        if isinstance(node, ast.FunctionDef) and node.name in MODULE_PRIVATES - {"_modules"}:
            found[node.lineno] = f"def {node.name}"
    return found


def hook_names(text: str) -> dict[int, str]:
    """Return the uses of torch's hook dictionaries in a source text, by line; also as strings for getattr."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        name = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
        if isinstance(name, str) and name in HOOK_DICTIONARIES:
            found[node.lineno] = name
    return found


@pytest.mark.parametrize(
    "text",
    [
        "from torch._C import _get_tracing_state",
        "from torch.utils._pytree import tree_leaves",
        "import torch._dynamo",
        "import torch\ntorch._C._current_graph_task_id()",
        "from torch import nn\nisinstance(layer, nn.modules.conv._ConvNd)",
        "from torch.autograd import forward_ad\nforward_ad._current_level",
        "x._version",
        "layer._parameters['weight']",
        "class Net:\n    def _apply(self, fn): ...",
    ],
)
def test_scan_finds_private_names(text: str) -> None:
    assert private_names(text)


def test_scan_allows_public_names_and_own_private_ones() -> None:
    assert not private_names(
        "import torch\nfrom torch import nn\nself._channels\ntorch.__version__\nnn.Conv2d(1, 1, 1)"
    )


def test_private_names_of_torch_are_in_one_file() -> None:
    found = {
        f"{file.relative_to(SOURCE)}:{line}": name
        for file in FILES
        if file.relative_to(SOURCE).as_posix() not in {COMPAT}
        for line, name in private_names(file.read_text()).items()
    }
    assert not found, f"take private names of torch from gatewise/{COMPAT}: {found}"
    assert private_names((SOURCE / COMPAT).read_text())


def test_hook_dictionaries_are_in_one_file() -> None:
    found = {
        f"{file.relative_to(SOURCE)}:{line}": name
        for file in FILES
        if file.relative_to(SOURCE).as_posix() != HOOKS
        for line, name in hook_names(file.read_text()).items()
    }
    assert not found, f"use the functions of gatewise/{HOOKS}: {found}"
    assert hook_names((SOURCE / HOOKS).read_text())


def test_no_module_uses_private_names_of_another() -> None:
    """An attribute `other._name` is defined in the same file, or is no attribute of another module's class."""
    found = {}
    for file in FILES:
        tree = ast.parse(file.read_text())
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in (t for whole in targets for t in (whole.elts if isinstance(whole, ast.Tuple) else [whole])):
                if (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                ):
                    own.add(target.attr)
                if isinstance(target, ast.Name):
                    own.add(target.id)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
                owner = ast.unparse(node.value)
                if owner not in {"self", "cls", "super()"}:
                    found[f"{file.relative_to(SOURCE)}:{node.lineno}"] = f"{owner}.{node.attr}"
    others = {place: name for place, name in found.items() if place.rpartition(":")[0] not in {COMPAT, HOOKS}}
    # Accelerate has no public way to change the precision of a process.
    allowed = {"accelerate.state.AcceleratorState._reset_state"}
    assert set(others.values()) <= allowed, f"give these a public name: {others}"


# What we rely on, one test for each name


def broken(what: str, file: str) -> str:
    """Return the message of a failed canary."""
    return f"torch {torch.__version__} has changed: {what}; gatewise/{file} depends on it"


# torch.func.jvp compiles decompositions at its first call.
ignores_scripting = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def in_transforms(value: Callable[[], bool]) -> list[bool]:
    """Return a value outside of torch.func, and inside of grad, vmap and jvp."""
    seen = [value()]

    def observed(x: Tensor) -> Tensor:
        seen.append(value())
        return (x * x).sum()

    torch.func.grad(observed)(torch.ones(3))
    torch.vmap(observed)(torch.ones(2, 3))
    torch.func.jvp(observed, (torch.ones(3),), (torch.ones(3),))
    return seen


@ignores_scripting
def test_transforms_of_torch_func_are_seen() -> None:
    assert in_transforms(_torch_compat.is_transform_active) == [False, True, True, True], broken(
        "torch._C._are_functorch_transforms_active is true in a transform", "gates/kernels/backend.py"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated", "ignore:`torch.jit.trace_method` is deprecated")
def test_tracing_is_seen() -> None:
    layer = Noting(_torch_compat.is_jit_tracing)
    torch.jit.trace(layer, torch.ones(2), check_trace=False)
    assert [*layer.seen, _torch_compat.is_jit_tracing()] == [True, False], broken(
        "torch.jit.is_tracing is true while torch.jit.trace records", "gates/kernels/backend.py"
    )


def test_forward_mode_is_seen() -> None:
    seen = [_torch_compat.is_forward_mode_active()]
    with forward_ad.dual_level():
        seen.append(_torch_compat.is_forward_mode_active())
    assert [*seen, _torch_compat.is_forward_mode_active()] == [False, True, False], broken(
        "forward_ad._current_level is -1 outside of dual levels", "gates/kernels/backend.py"
    )


def test_dispatch_modes_are_seen() -> None:
    seen = [_torch_compat.is_dispatch_mode_active()]
    with FlopCounterMode(display=False):
        seen.append(_torch_compat.is_dispatch_mode_active())
    assert seen == [False, True], broken(
        "torch._C._len_torch_dispatch_stack counts dispatch modes", "gates/kernels/backend.py"
    )


class Doubled(torch.autograd.Function):
    """2 x; its backward notes whether the gradient has memory."""

    seen: list[bool]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> Tensor:  # noqa: ARG004
        Doubled.seen.append(_torch_compat.has_memory(grad_output[0]))
        return 2 * grad_output[0]


def test_wrapped_tensors_and_batched_gradients_have_no_memory() -> None:
    seen: list[bool] = []

    def observed(x: Tensor) -> Tensor:
        seen.append(_torch_compat.has_memory(x))
        return x.sum()

    torch.vmap(observed)(torch.ones(2, 3))
    torch.func.grad(observed)(torch.ones(3))
    assert seen == [False, False], broken("tensors of torch.func have no data_ptr()", "inference/skip.py")
    Doubled.seen = []
    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Doubled.apply(x), x, torch.eye(3), is_grads_batched=True)
    torch.autograd.grad(Doubled.apply(x).sum(), x)
    assert Doubled.seen == [False, True], broken("batched gradients have no data_ptr()", "gates/kernels/backend.py")


class Noting(nn.Module):
    """Return its input, and note the value of a function at each call."""

    def __init__(self, value: Callable[[], bool]) -> None:
        super().__init__()
        self.value, self.seen = value, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.value())
        return x.sin()


def recomputed(value: Callable[[], bool]) -> list[bool]:
    """Return a value in a forward, in its recomputation in the backward pass, and afterwards."""
    layer = Noting(value)
    for reentrant in (False, True):
        y: Any = checkpoint(layer, torch.ones(2, requires_grad=True), use_reentrant=reentrant)
        y.sum().backward()
    return [*layer.seen, value()]


def test_recomputation_is_seen() -> None:
    assert recomputed(_torch_compat.in_backward) == [False, True, False, True, False], broken(
        "torch._C._current_graph_task_id is -1 outside of a backward pass", "gaternet/hooks.py"
    )


class Twice(nn.Module):
    """A convolution that is called twice, inside a child with a name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 1), act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(self.stem(x)) + x


def exported(model: nn.Module, channels: int = 4) -> fx.Graph:
    return torch.export.export(model.eval(), (torch.ones(2, channels, 5, 5),), strict=False).graph


def operations(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def test_export_records_the_modules_of_each_operation() -> None:
    graph = exported(Twice())
    assert _torch_compat.has_calls(graph), broken("torch.export writes nn_module_stack", "graph/trace.py")
    paths = [list(_torch_compat.enclosing_calls(node).values()) for node in operations(graph)]
    assert paths == [["stem", "stem.conv"], ["stem", "stem.act"]] * 2 + [[]], broken(
        "nn_module_stack has the path of each module, outermost first", "graph/trace.py"
    )


def test_export_tells_two_calls_of_a_module_apart() -> None:
    first, _, second, *_ = (list(_torch_compat.enclosing_calls(node)) for node in operations(exported(Twice())))
    assert not set(first) & set(second), broken("nn_module_stack has another key for each call", "graph/trace.py")


def test_export_keeps_a_call_together() -> None:
    convolution, activation, *_ = (list(_torch_compat.enclosing_calls(node)) for node in operations(exported(Twice())))
    assert convolution[0] == activation[0], broken("nn_module_stack has one key for one call", "graph/trace.py")


def test_export_names_a_module_of_two_paths_by_a_known_one() -> None:
    model = Twice()
    model.register_module("alias", model.stem)
    known = dict(model.named_modules(remove_duplicate=False))
    paths = {path for node in operations(exported(model)) for path in _torch_compat.enclosing_calls(node).values()}
    assert paths <= set(known), broken("nn_module_stack has paths of named_modules()", "graph/trace.py")


def test_export_records_shapes_and_the_inputs_of_the_user() -> None:
    program = torch.export.export(Twice().eval(), (torch.ones(2, 4, 5, 5),), strict=False)
    shapes = {tuple(node.meta["val"].shape) for node in operations(program.graph)}
    assert shapes == {(2, 4, 5, 5)}, broken("nodes have the metadata `val` with a shape", "graph/trace.py")
    names = [node.name for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    assert len(names) == 1, broken("graph_signature.user_inputs has the names of placeholders", "graph/trace.py")


@pytest.mark.skipif(not LINES_CAN_BE_LEFT_OUT, reason="this release of torch has no such setting")
def test_export_can_leave_out_lines_of_code() -> None:
    with _torch_compat.without_stack_traces():
        assert [node.stack_trace for node in operations(exported(Twice()))] == [None] * 5
    assert all(node.stack_trace for node in operations(exported(Twice())))


def test_export_calls_the_forward_of_an_instance() -> None:
    model = Twice()
    model.stem.__dict__["forward"] = lambda x: x
    names = [str(node.target) for node in operations(exported(model))]
    assert names == ["aten.add.Tensor"], broken("export calls an instance's own forward", "graph/trace.py")
    x = torch.ones(1, 4, 2, 2)
    assert bool((model(x) == 2 * x).all()), broken("modules call an instance's own forward", "inference/optimize.py")


def test_compiled_function_and_network_tell_what_was_compiled() -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    net = nn.ReLU()
    compiled: Any = torch.compile(net, backend="eager")
    assert _torch_compat.uncompiled(torch.compile(double, backend="eager")) is double
    assert _torch_compat.uncompiled(double) is double
    assert _torch_compat.compiled_network(compiled) is net
    assert _torch_compat.compiled_network(net) is None
    assert _torch_compat.COMPILED_CALL not in vars(net)
    net.compile(backend="eager")
    assert callable(vars(net)[_torch_compat.COMPILED_CALL])


def test_operators_have_names() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True))
    names = [_torch_compat.operator_name(node.target) for node in operations(exported(layers))]
    assert names == ["conv2d", "batch_norm", "dropout", "relu_"], broken(
        "str() of an ATen operator is namespace.name.overload", "graph/trace.py"
    )


def test_exported_sizes_can_be_checked() -> None:
    class Nonzero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = torch.nonzero(x).squeeze(1)
            _torch_compat.check_size(rows.shape[0] >= 1)
            _torch_compat.check_size(rows.shape[0] <= 3)
            return x[rows]

    program = torch.export.export(Nonzero(), (torch.ones(3),))
    ranges = [(int(found.lower), int(found.upper)) for found in program.range_constraints.values()]
    assert ranges == [(1, 3)], broken("torch._check bounds sizes in torch.export", "inference/conditional.py")


def test_in_place_changes_are_counted() -> None:
    x = torch.zeros(2)
    before = _torch_compat.version_of(x)
    same = _torch_compat.version_of(x) == before
    x.add_(1)
    assert same and _torch_compat.version_of(x) != before, broken(  # noqa: PT018
        "Tensor._version counts in-place changes", "inference/optimize.py"
    )


class Counting(_torch_compat.Float32Buffers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor([257.0]))


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_buffers_stay_at_least_in_float32(convert: str) -> None:
    parent = nn.Sequential(nn.Linear(1, 1), Counting())
    getattr(parent, convert)()
    expected = torch.float64 if convert == "double" else torch.float32
    assert parent[1].steps.dtype == expected, broken("nn.Module._apply", COMPAT)
    assert parent[1].steps.item() == 257
    assert parent[0].weight.dtype != torch.float32 or convert == "float"


class Fixed(_torch_compat.MoveObserver):
    """A layer that cannot be moved."""

    def before_move(self) -> None:
        raise ValueError("fixed")


def test_moves_are_noticed_also_by_a_parent() -> None:
    for move in (lambda m: m.to(torch.float64), lambda m: m.half(), lambda m: m.cpu()):
        for module in (Fixed(), nn.Sequential(Fixed())):
            try:
                move(module)
            except ValueError:
                continue
            pytest.fail(broken("nn.Module.to calls _apply of all children", "inference/optimize.py"))
    free = _torch_compat.MoveObserver()
    free.weight = nn.Parameter(torch.zeros(1))
    assert free.to(torch.float64).weight.dtype == torch.float64


def test_registered_containers_are_taken_apart_by_one_level() -> None:
    tree = OrderedDict(x=1, y=(2, [3]))
    leaves, form = _torch_compat.tree_flatten(tree, is_leaf=lambda part: part is not tree)
    assert leaves == [1, (2, [3])], broken("pytree takes an output apart", "core/nesting.py")
    again = _torch_compat.tree_unflatten(leaves, form)
    assert (again, type(again)) == (tree, OrderedDict), broken("pytree rebuilds an output", "core/nesting.py")


@pytest.mark.parametrize("name", ["_is_replica", "_former_parameters"])
def test_replicas_of_data_parallel_are_known(name: str) -> None:
    net = nn.BatchNorm1d(2)
    assert hasattr(parallel.on_cpu(net, 1)[0], name), broken("names of a replica", "gaternet/route_norms.py")
    assert not _torch_compat.is_replica(net)
    assert [*_torch_compat.tensors_by_name(net)] == [*net.state_dict()]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_packed_convolution_equals_convolution() -> None:
    operators = _torch_compat.packed_operators()
    assert operators is not None, broken("oneDNN's operators take these arguments", "inference/packed.py")
    pack, convolve = operators
    x, weight, bias = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 3), torch.randn(6)
    packed = pack(weight, (1, 0), (2, 1), (1, 1), 2, x.shape)
    y = convolve(x, packed, bias, (1, 0), (2, 1), (1, 1), 2, "none", [], "")
    expected = nn.functional.conv2d(x, weight, bias, stride=(2, 1), padding=(1, 0), groups=2)
    torch.testing.assert_close(y, expected, msg=broken("oneDNN's operators convolve", "inference/packed.py"))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_packed_convolution_is_counted() -> None:
    from gatewise.inference.packed import pack, packed_convolution

    x, weight, options = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 1), ((1, 1), (0, 0), (1, 1), 1)
    packed = pack(weight, tuple(x.shape), options)
    with FlopCounterMode(display=False) as counter:
        packed_convolution(x, packed, None, options)
    assert counter.get_total_flops() == 2 * 16 * 2 * 3, broken("conv_flop_count", "inference/packed.py")


def test_processes_have_a_store() -> None:
    store = _torch_compat.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    store.set("key", "value")
    assert store.get("key") == b"value", broken("TCPStore keeps values", "training/distributed.py")
    assert callable(_torch_compat.rendezvous), broken("torch.distributed.rendezvous", "training/distributed.py")


def test_hooks_are_in_the_dictionaries_that_torch_calls() -> None:
    layer, calls = nn.ReLU(), []
    hooks.change_map(layer, "input", lambda _, x: x + 1)
    hooks.change_map(layer, "output", lambda _, x: 2 * x)
    layer.register_forward_hook(lambda *args: calls.append(len(args)), with_kwargs=True, always_call=True)
    assert [hooks.count_hooks(layer, side) for side in ("input", "output", None)] == [1, 2, 3]
    assert (layer(torch.tensor(1.0)).item(), calls) == (4, [4]), broken("modules call these hooks", HOOKS)
    assert [len(hooks.changes_on(layer, side)) for side in ("input", "output")] == [1, 1]
    hooks.remove_changes(layer, (type(lambda: None),))
    assert (layer(torch.tensor(1.0)).item(), calls) == (1, [4, 4]), broken("removed hooks are not called", HOOKS)


# Replacements, in a copy of the module that has been loaded without a name


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that removes a name of torch and loads a copy of the module."""

    def load(owner: Any, name: str) -> Any:
        if isinstance(owner, str):
            monkeypatch.setitem(sys.modules, owner, None)
        else:
            monkeypatch.delattr(owner, name)
        spec = importlib.util.spec_from_file_location("torch_compat_copy", SOURCE / COMPAT)
        assert spec is not None
        assert spec.loader is not None
        copy: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy

    return load


@ignores_scripting
def test_without_name_transforms_are_seen(without: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_are_functorch_transforms_active"
    real = getattr(torch._C, name)
    copy = without(torch._C, name)
    monkeypatch.setattr(torch._C, name, real, raising=False)  # torch itself needs it
    assert copy.is_transform_active is copy._transform_rejects_function
    assert in_transforms(copy.is_transform_active) == [False, True, True, True]


def test_without_torch_jit_nothing_is_traced(without: Callable[..., Any]) -> None:
    assert not without(torch.jit, "is_tracing").is_jit_tracing()


def test_without_name_forward_mode_is_seen(without: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    level = forward_ad._current_level
    copy = without(forward_ad, "_current_level")
    monkeypatch.setattr(forward_ad, "_current_level", level, raising=False)
    assert copy.is_forward_mode_active is copy._dual_tensor_can_be_made
    seen = [copy.is_forward_mode_active()]
    with forward_ad.dual_level():
        seen.append(copy.is_forward_mode_active())
    assert seen == [False, True]


def test_without_name_a_dispatch_mode_is_assumed(without: Callable[..., Any]) -> None:
    assert without(torch._C, "_len_torch_dispatch_stack").is_dispatch_mode_active()


def test_without_name_recomputation_is_seen(without: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_current_graph_task_id"
    real = getattr(torch._C, name)
    copy = without(torch._C, name)
    monkeypatch.setattr(torch._C, name, real, raising=False)
    assert copy.in_backward is copy._called_by_backward
    assert recomputed(copy.in_backward) == [False, True, False, True, False]


def test_without_name_sizes_are_not_checked(without: Callable[..., Any]) -> None:
    assert without(torch, "_check").check_size(False) is None


def test_without_metadata_modules_are_those_that_torch_fx_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.ReLU())).graph
    for node in graph.nodes:
        node.meta.pop("nn_module_stack", None)
    assert [list(_torch_compat.enclosing_calls(node).values()) for node in graph.nodes] == [
        [],
        ["0", "0.0"],
        ["1"],
        [],
    ]

    def forget(model: nn.Module, inputs: Any, real: Any = torch.export.export, **options: Any) -> Any:
        program = real(model, inputs, **options)
        for node in program.graph.nodes:
            node.meta.pop("nn_module_stack", None)
        return program

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    expected = [(place.layer, place.side) for place in find_places(net, "inner").found]
    monkeypatch.setattr(torch.export, "export", forget)
    assert [(place.layer, place.side) for place in find_places(net, "inner").found] == expected == [("1", "output")]
    assert [op.kind for op in trace(net).operations] == ["input", "conv", "other", "conv", "output"]


def test_without_version_no_tensor_is_unchanged() -> None:
    version = _torch_compat.version_of(object())  # type: ignore[arg-type]
    assert math.isnan(version)


def test_without_apply_moves_of_the_module_itself_are_noticed(without: Callable[..., Any]) -> None:
    observer = without(nn.Module, "_apply").MoveObserver

    class Kept(observer):
        def before_move(self) -> None:
            raise ValueError("fixed")

    with pytest.raises(ValueError, match=r"^fixed$"):
        Kept().to(torch.float64)


def test_without_pytree_no_class_is_a_registered_container(without: Callable[..., Any]) -> None:
    copy = without("torch.utils._pytree", "")
    leaves, form = copy.tree_flatten([1], is_leaf=None)
    assert (leaves, copy.tree_unflatten(leaves, form)) == ([[1]], [1])


@pytest.mark.parametrize("name", ["_reorder_convolution_weight", "_convolution_pointwise"])
def test_without_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = _torch_compat._attribute
    monkeypatch.setattr(_torch_compat, "_attribute", lambda path: None if path.endswith(name) else real(path))
    assert _torch_compat.packed_operators.__wrapped__() is None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("changed", [lambda *_: torch.zeros(1, 1, 1, 1), lambda x: x])
def test_operators_that_have_changed_are_not_used(monkeypatch: pytest.MonkeyPatch, changed: Any) -> None:
    real = _torch_compat._attribute
    monkeypatch.setattr(
        _torch_compat, "_attribute", lambda path: changed if path.endswith("_pointwise") else real(path)
    )
    assert _torch_compat.packed_operators.__wrapped__() is None


def test_without_formula_packed_convolutions_count_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = []
    flop_counter = _torch_compat.flop_counter
    monkeypatch.setattr(flop_counter, "register_flop_formula", lambda name: registered.append(name) or (lambda f: f))
    _torch_compat.count_flops_as_convolution("operator")
    monkeypatch.delattr(flop_counter, "conv_flop_count")
    _torch_compat.count_flops_as_convolution("another")
    assert registered == ["operator"]


def test_without_store_torch_makes_its_own(without: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewise.training import distributed

    started = []
    monkeypatch.setattr(distributed, "TCPStore", without(torch.distributed, "TCPStore").TCPStore)
    monkeypatch.setattr(torch.distributed, "init_process_group", started.append)
    distributed._init_process_group("gloo")
    assert started == ["gloo"]
