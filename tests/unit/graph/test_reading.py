"""Reading a network needs no copy by Python, and leaves no trace in the network or in the random numbers."""

import functools
import io
import logging
import random
import threading
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import gatewise as gw
from gatewise.graph import rehearsal
from gatewise.graph.measure import macs_per_sample, parameter_count
from gatewise.graph.structural_copy import full_copy, structural_copy

X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).sin().view(2, 3, 8, 8)


class Residual(nn.Module):
    """A convolution, and a residual block of two: it has every kind of place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.input_size = (3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return x + self.second(self.relu(self.first(x)))


class Doubled(nn.Module):
    """A parametrization of a user that counts how often the weight is read, and draws a random number each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reads", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.reads += 1
        return weight * 2 + 0 * torch.rand(())


PARAMETRISED: dict[str, Callable[[nn.Conv2d], Any]] = {
    "weight_norm, with a hook": nn.utils.weight_norm,
    "spectral_norm, with a hook": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a user's parametrization": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "a mask of prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "a mask on whole filters": lambda layer: prune.ln_structured(layer, "weight", 0.25, n=2, dim=0),
}


def parametrised(name: str) -> Residual:
    """Return a network in training mode, after a training step, with two parametrised convolutions."""
    torch.manual_seed(0)
    net = Residual()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older norms are deprecated
        for layer in (net.stem, net.second):
            PARAMETRISED[name](layer)
    net(X).sum().backward()
    net.first.requires_grad_(False)
    net.norm.eval()
    return net


def everything(model: nn.Module) -> dict[str, object]:
    """Return all that reading might change, by name."""
    found: dict[str, object] = {
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "gradients enabled": torch.is_grad_enabled(),
    }
    for path, module in model.named_modules():
        found[f"{path}: flag"] = module.training
        for name, value in vars(module).items():
            if name.endswith("_hooks"):
                found[f"{path}.{name}"] = list(value.values())
            elif name not in {"_parameters", "_buffers", "_modules"} and not name.startswith(("_forward", "training")):
                copied = list(value) if isinstance(value, list | dict) else value
                found[f"{path}.{name}"] = (id(value), copied.tolist() if isinstance(copied, Tensor) else copied)
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    grad = None if tensor.grad is None else tensor.grad.tolist()
                    found[f"{path}.{name}"] = (id(tensor), tensor.tolist(), tensor.requires_grad, grad)
    return found


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [name for name in before | after if repr(before.get(name)) != repr(after.get(name))]


def insert_and_undo(place: str) -> Callable[[nn.Module], Any]:
    return lambda net: gw.insert_gates(net, "gct", place=place, example=X).undo()


def check(net: nn.Module) -> None:
    insertion = gw.insert_gates(net, "gct@residual_end", example=X)
    assert insertion.check(X) == ()
    insertion.undo()


READING: dict[str, Callable[[nn.Module], Any]] = {
    "insert_gates before convolutions": insert_and_undo("before_conv"),
    "insert_gates at residual ends": insert_and_undo("residual_end"),
    "insert_gates before a type": lambda net: gw.insert_gates(net, "gct", before=nn.Conv2d).undo(),
    "insert_gates after a type": lambda net: gw.insert_gates(net, "gct", after=nn.ReLU, example=X).undo(),
    "find_places": lambda net: gw.find_places(net, "inner", X),
    "find_places of a guessed input": lambda net: gw.find_places(net, "stage_end"),
    "gates_in": gw.gates_in,
    "Insertion.check": check,
    "parameter_count": parameter_count,
    "macs_per_sample": lambda net: macs_per_sample(net, X),
}


@pytest.mark.situation("weights that are computed from others: norms, masks and parametrizations")
@pytest.mark.parametrize("call", READING)
@pytest.mark.parametrize("name", PARAMETRISED)
def test_reading_changes_nothing(name: str, call: str) -> None:
    net = parametrised(name)
    before = everything(net)
    READING[call](net)
    assert changed(before, everything(net)) == []


@pytest.mark.situation("weights that are computed from others: norms, masks and parametrizations")
@pytest.mark.parametrize("name", PARAMETRISED)
def test_gater_net_changes_only_hooks_of_backbone(name: str) -> None:
    net = parametrised(name)
    before = everything(net)
    gated = gw.GaterNet(net, example=X)
    assert [site.name for site in gated.sites] == ["first"]
    assert set(changed(before, everything(net))) <= {"random numbers", "relu._forward_hooks"}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_gates_run_in_parametrised_network(name: str) -> None:
    net = parametrised(name).eval()
    expected = net(X)
    insertion = gw.insert_gates(net, "se", example=X)
    assert insertion.names == ("second",)
    for parameter in insertion.gates["second.se"].parameters():
        nn.init.constant_(parameter, 0.5)
    assert not torch.equal(net(X), expected)
    insertion.undo()
    assert torch.equal(net(X), expected)


# --- What Python cannot copy, and what a forward writes --------------------------------------------------------------


def keep_map(net: Any) -> None:
    net.kept = net(X)


def keep_maps(net: Any) -> None:
    net.kept = {"maps": [net.norm(net.stem(X))]}


def hook_that_keeps_map(net: Any) -> None:
    net.norm.register_forward_hook(lambda module, _, output: setattr(module, "kept", output))
    net(X)


def running_thread(net: Any) -> None:
    net.thread = threading.Thread(target=print)


UNCOPYABLE: dict[str, Callable[[Any], Any]] = {
    "a map that is kept after a step": keep_map,
    "maps in a dictionary": keep_maps,
    "a map that a hook keeps": hook_that_keeps_map,
    "a loss that is kept": lambda net: setattr(net, "loss", net(X).mean()),
    "a part of a weight": lambda net: setattr(net, "part", net.stem.weight[:2]),
    "a lambda": lambda net: setattr(net, "scale", lambda x: x * 2),
    "a lock": lambda net: setattr(net, "lock", threading.Lock()),
    "an open file": lambda net: setattr(net, "log", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"")))),
    "a generator": lambda net: setattr(net, "steps", (step for step in range(3))),
    "a module of Python": lambda net: setattr(net, "library", torch),
    "a thread": running_thread,
    "a random number generator": lambda net: setattr(net, "generator", torch.Generator()),
}


@pytest.mark.situation("networks that Python cannot copy")
@pytest.mark.parametrize("name", UNCOPYABLE)
def test_network_that_cannot_be_copied_is_read(name: str) -> None:
    net = Residual()
    UNCOPYABLE[name](net)
    before = everything(net)
    insertion = gw.insert_gates(net, "gct@residual_end", example=X)
    assert insertion.names == ("second",)
    assert insertion.check(X) == ()
    insertion.undo()
    assert changed(before, everything(net)) == []
    assert gw.GaterNet(net, example=X).sites[0].name == "first"
    assert set(changed(before, everything(net))) <= {"random numbers", "relu._forward_hooks"}


class Stats:
    """An object with state that is no module."""

    def __init__(self) -> None:
        self.calls, self.mean, self.lock = 0, torch.zeros(()), threading.Lock()


class Writes(Residual):
    """Writes to all that a module can have, in its forward, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)
        self.register_buffer("unset", None)
        self.last: Any = None
        self.maps: list[Tensor] = []
        self.by_name: OrderedDict[str, list[Tensor]] = OrderedDict(maps=[])
        self.stats = Stats()
        self.layers = [nn.Conv2d(8, 8, 1)]  # not registered

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.hidden = self.hidden + 1
        self.unset = torch.ones(())
        self.register_buffer("added", torch.ones(()))
        self.stats.calls += 1
        self.stats.mean.add_(1)
        self.layers[0].seen = True
        x = super().forward(x) + random.random() + float(np.random.rand())
        self.last = x
        self.maps.append(x)
        self.by_name["maps"].append(x)
        return x


@pytest.mark.situation("forwards that write to their modules")
@pytest.mark.parametrize("call", [call for call in READING if call != "gates_in"])
def test_forward_that_writes_changes_nothing(call: str) -> None:
    net = Writes()
    before = everything(net)
    READING[call](net)
    assert changed(before, everything(net)) == []
    assert (net.stats.calls, net.stats.mean.item(), vars(net.layers[0]).get("seen")) == (0, 0, None)
    assert (net.maps, net.by_name) == ([], {"maps": []})


@pytest.mark.situation("buffers that were made under inference_mode")
def test_check_runs_with_buffers_of_inference_mode() -> None:
    """ConViT of timm makes its positions in the first forward: inference tensors if that is under inference_mode."""

    class Positions(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if self.positions.shape[-1] != x.shape[-1]:
                self.positions = torch.arange(x.shape[-1], device=x.device).to(x)
            return super().forward(x) + self.positions

    net = Positions()
    with torch.inference_mode():
        net(X)
    insertion = gw.insert_gates(net, "gct@residual_end", example=X)
    assert net.positions.is_inference()
    assert insertion.check(X) == insertion.check(X[..., :4]) == ()
    assert net.positions.shape == (8,)


# --- The copy --------------------------------------------------------------------------------------------------------


def test_copy_shares_parameters_and_keeps_shared_modules_shared() -> None:
    inner = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(inner, nn.Sequential(inner, nn.BatchNorm2d(3)))
    net.by_name, net.call = {"inner": inner}, net.forward
    copied = structural_copy(net)
    assert [path for path, _ in copied.named_modules(remove_duplicate=False)] == ["", "0", "1", "1.0", "1.1"]
    assert copied[0] is copied[1][0] is copied.by_name["inner"] is not inner
    assert copied[0].weight is inner.weight
    assert copied.call.__self__ is copied
    assert copied[1][1].running_mean is not net[1][1].running_mean
    assert torch.equal(copied[1][1].running_mean, net[1][1].running_mean)


def test_hook_on_copy_is_not_on_network_and_those_of_network_run() -> None:
    net, calls = nn.Sequential(nn.ReLU()), list[str]()
    net[0].register_forward_hook(lambda *_: calls.append("network's"))
    copied = structural_copy(net)
    copied[0].register_forward_hook(lambda *_: calls.append("copy's"))
    copied(X)
    net(X)
    assert calls == ["network's", "copy's", "network's"]


def wrapped_forward(net: Any) -> None:
    net.forward = torch.autocast("cpu", enabled=False)(net.forward)


def partial_forward(net: Any) -> None:
    """As Accelerate does."""
    net.forward = functools.update_wrapper(functools.partial(type(net).forward, net), net.forward)


def closure_over_network(net: Any) -> None:
    forward = net.forward
    net.forward = lambda x: 2 * forward(x)


def weak_parent(net: Any) -> None:
    net.relu.parent = weakref.ref(net)
    net.relu.forward = types.MethodType(lambda relu, x: relu.parent().forward_of_relu(x), net.relu)
    net.forward_of_relu = lambda x: setattr(net, "seen", True) or x.relu()


def default_argument(net: Any) -> None:
    net.forward = lambda x, run=net.forward: run(x)


def closure_over_container(net: Any) -> None:
    kept = {"forwards": [net.forward]}
    net.forward = lambda x: kept["forwards"][0](x) / 2


def closure_over_object(net: Any) -> None:
    kept = types.SimpleNamespace(run=net.forward)
    net.forward = lambda x: kept.run(x) / 2


def closure_over_itself(net: Any) -> None:
    forward = net.forward

    def again(x: Tensor, times: int = 1) -> Tensor:
        return again(x, times - 1) if times else forward(x)

    net.forward = again


RUN: list[Callable[[Tensor], Tensor]] = []


def run_global(x: Tensor) -> Tensor:
    return [run(x) for run in RUN][-1]


def global_variable(net: Any) -> None:
    """As a script does that replaces a forward at its top."""
    RUN[:] = [net.forward]
    net.forward = lambda x: run_global(x) / 2


REFERENCES: dict[str, Callable[[Any], None]] = {
    "a decorated forward": wrapped_forward,
    "a partial forward": partial_forward,
    "a closure over a method": closure_over_network,
    "a default argument": default_argument,
    "a closure over a container": closure_over_container,
    "a closure over an object": closure_over_object,
    "a closure over itself": closure_over_itself,
    "a global variable": global_variable,
    "a weak reference to a parent": weak_parent,
    "a hook that is a method": lambda net: net.norm.register_forward_hook(net.note),
    "a hook that is a closure over a module": lambda net: net.norm.register_forward_hook(lambda *_: net.note()),
}


class Noting(Residual):
    """Notes that it was called."""

    def note(self, *_: Any) -> None:
        self.seen = True

    def forward(self, x: Tensor) -> Tensor:
        self.noted = True
        return super().forward(x)


@pytest.mark.situation("networks whose forwards and hooks refer to the network")
@pytest.mark.parametrize("name", REFERENCES)
def test_copy_refers_to_itself(name: str) -> None:
    net = Noting().eval()
    REFERENCES[name](net)
    with rehearsal(net) as copied, torch.no_grad():
        assert copied(X).shape == (2, 8, 8, 8)
    assert "noted" in vars(copied)
    assert not {"noted", "seen"} & set(vars(net))
    assert gw.insert_gates(net, "gct@residual_end", example=X).names == ("second",)
    assert not {"noted", "seen"} & set(vars(net))


@pytest.mark.situation("networks whose forwards and hooks refer to the network")
@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_full_copy_runs_its_own_parameters(name: str) -> None:
    net = Noting().eval()
    net.weights = [net.stem.weight]
    REFERENCES[name](net)
    expected = net(X)
    copied: Any = full_copy(net)
    assert copied.weights[0] is copied.stem.weight is not net.stem.weight
    assert torch.equal(copied(X), expected)
    for parameter in copied.parameters():
        parameter.zero_()
    assert not copied(X).any()
    assert torch.equal(net(X), expected)


def test_functions_that_lead_to_no_module_are_not_copied() -> None:
    net, counts = nn.ReLU(), list[int]()
    net.act, net.count = nn.functional.relu, lambda: counts.append(1)
    copied = structural_copy(net)
    copied.count()
    assert (copied.act, counts) == (net.act, [1])


@pytest.mark.situation("layers that get their widths in the first forward")
def test_reading_leaves_lazy_layers_lazy() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(4, 3))
    assert [place.layer for place in gw.find_places(net, "inner", X).found] == ["2"]
    assert isinstance(net[3].weight, nn.UninitializedParameter)
    assert isinstance(net[1], nn.LazyBatchNorm2d)
    assert net(X).shape == (2, 4, 4, 4)
    assert type(net[3]) is nn.Conv2d


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_scripted_part_keeps_its_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), torch.jit.script(nn.Sequential(nn.Dropout(), nn.Conv2d(8, 4, 1)))).train()
    assert macs_per_sample(net, X) == 6 * 6 * (8 * 27 + 4 * 8)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("how", ["torch.compile", "compile in place", "compiled forward"])
def test_copy_of_compiled_network_runs_uncompiled(how: str) -> None:
    net, compiled = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), list[object]()

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    if how == "torch.compile":
        model: nn.Module = torch.compile(net, backend=backend)  # type: ignore[assignment]
    else:
        model = net
        if how == "compile in place":
            net.compile(backend=backend)
        else:
            net.forward = torch.compile(net.forward, backend=backend)  # type: ignore[method-assign]
    with rehearsal(model) as copied, torch.no_grad():
        torch.testing.assert_close(copied(X), nn.Sequential.forward(net, X))
    assert compiled == []


def test_rehearsal_restores_random_numbers_after_failure() -> None:
    def forward(_: Tensor) -> Tensor:
        torch.rand(3), random.random(), np.random.rand()
        raise RuntimeError("on purpose")

    net = nn.ReLU()
    net.forward = forward  # type: ignore[method-assign]
    before = everything(net)
    with pytest.raises(RuntimeError, match="on purpose"):
        macs_per_sample(net, X)
    assert changed(before, everything(net)) == []


def test_records_of_torch_are_not_printed_while_reading() -> None:
    class Recorded(Residual):
        def forward(self, x: Tensor) -> Tensor:
            logging.getLogger("torch.fx").warning("a record")
            return super().forward(x)

    records: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("torch")
    handler.emit = records.append
    model = Recorded()
    logger.addHandler(handler)
    try:
        gw.insert_gates(model, "gct", place="residual_end", example=X)
        assert records == []
        model(X)
        assert [record.getMessage() for record in records] == ["a record"]
    finally:
        logger.removeHandler(handler)
