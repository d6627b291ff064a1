"""Optimizing for inference: same outputs, a report on each gate, and undo."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

import gatewise as gw
from gatewise.analysis.recording import GateRecorder
from gatewise.gates.inference_form import InferenceForm, InferencePattern
from gatewise.inference.forms import GateBeforeConvolution
from support.gate_cases import perturbed

pytest.importorskip("numba")


def trained(spec: str, **options: Any) -> nn.Module:
    """Return a network with perturbed gates and running statistics, in eval mode."""
    torch.manual_seed(0)
    net = gw.make_model(spec, num_classes=5, **options)
    for gate in gw.gates_in(net).values():
        perturbed(gate)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return net.eval()


@torch.no_grad()
def plain(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


NETWORKS = {
    "resnet20+gct": {"in place + relu": 9, "new map": 12},
    "resnet20+gct:mode=l1,activation=elu": {"in place + relu": 9, "new map": 12},
    "resnet20+se": {"in place": 9},
    "resnet20+gc": {"in place": 9},
    "resnet20+gc:fusion=both,pooling=average+gct@inner": {"in place": 9, "new map": 9},
    "resnet20+gct:backend=reference": {"as it was": 21},
    "resnet20+eca": {"as it was": 9},
    "resnet26d+gct": {"in place + relu": 18, "new map": 13},
    "densenet121+gct": {"in place + relu": 58, "new map + norm + relu": 61, "new map": 1},
    "mobilenetv2_050+gct": {"in place": 2, "new map": 50},
}
LARGE = ("densenet121+gct", "resnet26d+gct", "mobilenetv2_050+gct", "resnet20+gct:mode=l1,activation=elu")


@pytest.mark.extended
@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=pytest.mark.slow) if spec in LARGE else spec for spec in NETWORKS]
)
def test_optimized_outputs_are_equal_and_undo_restores(spec: str) -> None:
    net = trained(spec)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    for samples, layout in ((1, torch.contiguous_format), (3, torch.channels_last)):
        x = torch.randn(samples, 3, 64, 64).contiguous(memory_format=layout)
        expected = plain(net, x)
        fast = gw.optimize_for_inference(net)
        for _ in range(2):  # the second time with choices made, and nothing left over from the first
            torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
        counted = {form: list(fast.gates.values()).count(form) for form in set(fast.gates.values())}
        assert counted == NETWORKS[spec]
        assert fast.undo() is net
        assert torch.equal(plain(net, x), expected)
    assert not any("forward" in module.__dict__ for module in net.modules())


def test_norms_are_folded_into_preceding_convolutions() -> None:
    net = trained("resnet20+gct")
    fast = gw.optimize_for_inference(net)
    assert len(fast.folded) == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert all(isinstance(net.get_submodule(norm), nn.BatchNorm2d) for norm in fast.folded.values())
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.add_(100)  # not read any more
    x = torch.randn(1, 3, 32, 32)
    y = fast(x)
    fast.undo()
    assert not torch.allclose(plain(net, x), y, atol=1.0)


@pytest.mark.parametrize("pays", [True, False])
def test_factors_of_one_image_go_into_map_or_weights(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = trained("resnet20+gct"), []

    def choose(form: GateBeforeConvolution, x: Tensor) -> bool:
        asked.append(x.shape)
        return pays

    monkeypatch.setattr(GateBeforeConvolution, "_weights_pay", choose)
    one, two = torch.randn(1, 3, 32, 32), torch.randn(2, 3, 32, 32)
    expected = plain(net, one), plain(net, two)
    fast = gw.optimize_for_inference(net)
    factor_slot = []
    from gatewise.inference import forms

    weigh = forms.gated_weight
    monkeypatch.setattr(forms, "gated_weight", lambda *a: factor_slot.append(1) or weigh(*a))
    torch.testing.assert_close(fast(two), expected[1], rtol=1e-4, atol=1e-4)
    assert not asked
    for _ in range(2):
        torch.testing.assert_close(fast(one), expected[0], rtol=1e-4, atol=1e-4)
    assert len(asked) == 21  # once for each gate and size
    assert len(factor_slot) == (42 if pays else 0)


@pytest.mark.parametrize("why_observed", ["gate", "convolution"])
def test_hook_before_convolution_sees_and_may_change_gated_map(
    why_observed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, seen = trained("resnet20+gct"), torch.randn(1, 3, 32, 32), []
    gate, convolution = net.get_submodule("stages.0.0.conv1.gct"), net.get_submodule("stages.0.0.conv1")

    def watch() -> RemovableHandle:
        if why_observed == "gate":
            return gate.register_forward_hook(lambda _module, _args, y: seen.append(y.clone()) or y + 1)
        return convolution.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()) or args[0] + 1)

    handle = watch()
    expected = plain(net, x)
    handle.remove()
    unwatched = plain(net, x)
    monkeypatch.setattr(GateBeforeConvolution, "_weights_pay", lambda *_: True)
    fast = gw.optimize_for_inference(net)
    handle = watch()
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    handle.remove()
    torch.testing.assert_close(fast(x), unwatched, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, unwatched, rtol=1e-2, atol=1e-2)


def test_faster_form_is_chosen_by_timing_with_convolution() -> None:
    net = trained("resnet20+gct")
    fast = gw.optimize_for_inference(net)
    x = torch.randn(1, 3, 32, 32)
    y = fast(x)
    forms = [gate.__dict__["forward"] for gate in gw.gates_in(net).values()]
    assert all(set(map(type, form.pays.values())) == {bool} and len(form.pays) == 1 for form in forms)
    torch.testing.assert_close(fast(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after_relu", [False, True], ids=["before the relu", "after the relu alone"])
def test_maps_read_elsewhere_are_not_overwritten(after_relu: bool) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
            self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.act(x)
            return self.third(self.second(y)) + y + (0 if after_relu else x)

    net = Shared().eval()
    insertion = gw.insert_gates(net, "gct")
    for gate in insertion.gates.values():
        perturbed(gate)
    x = torch.randn(2, 3, 9, 9)
    kept, expected = x.clone(), plain(net, x)
    fast = gw.optimize_for_inference(net)
    assert fast.gates == {"first.gct": "new map", "second.gct": "new map", "third.gct": "in place"}
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)


def block_with(gate: nn.Module, read: Any) -> nn.Module:
    """Return a network that calls a gate itself, and then reads the gated and the ungated map by `read`."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.gate, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), gate, nn.ReLU()
            self.last = nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(read(self, self.norm(self.first(x))))

    torch.manual_seed(0)
    net = Block().eval()
    net.norm.running_mean.normal_()  # type: ignore[union-attr]
    return net


CALLED = {
    "alone": (lambda net, x: net.gate(x), "in place"),
    "before a relu": (lambda net, x: net.act(net.gate(x)), "in place"),
    "after a relu": (lambda net, x: net.gate(net.act(x)), "new map"),
    "next to its map": (lambda net, x: net.gate(x) + x, "new map"),
    "before its map": (lambda net, x: (net.act(net.gate(x)), x)[0] * x.mean(), "new map"),
    "after a relu in place, next to its map": (lambda net, x: (lambda a: a + net.gate(a))(x.relu_()), None),
    "after a dropout, next to its map": (
        lambda net, x: (lambda a: a + net.gate(a))(F.dropout(x, 0.5, False)),
        "new map",
    ),
    "twice": (lambda net, x: net.gate(net.gate(x)), None),
    "after a sum": (lambda net, x: net.gate(x + 1), None),
}


@pytest.mark.parametrize("reads", CALLED)
@pytest.mark.parametrize("name", ["se", "gc", "gct"])
def test_gates_called_by_network(name: str, reads: str) -> None:
    read, form = CALLED[reads]
    net = block_with(perturbed(gw.make_gate(name, 8)), read)
    for samples in (1, 2):
        x = torch.randn(samples, 3, 12, 12)
        expected = plain(net, x)
        fast = gw.optimize_for_inference(net)
        assert fast.folded == {"first": "norm"}
        assert fast.gates == ({"gate": form} if form else {})
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(plain(fast.undo(), x), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_nested_gates_and_inference_mode_are_unchanged() -> None:
    class Double(gw.Gate):
        def __init__(self) -> None:
            super().__init__(8)
            self.se = perturbed(gw.make_gate("se", 8))

        @property
        def channels(self) -> int:
            return 8

        def forward(self, x: Tensor) -> Tensor:
            return x + self.se(x)

    net, x = block_with(Double(), lambda net, x: net.gate(x)), torch.randn(2, 3, 12, 12)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net)
    assert fast.gates == {"gate": "as it was"}
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    net = block_with(perturbed(gw.make_gate("se", 8)), lambda net, x: net.gate(x))
    expected = plain(net, x)
    with torch.inference_mode():
        torch.testing.assert_close(gw.optimize_for_inference(net)(x), expected, rtol=1e-4, atol=1e-4)


def test_called_gate_between_layer_and_other_gate() -> None:
    """Else the convolution would absorb the norm after the gate, or `gct` the norm and the ReLU before it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.first_norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
            self.se, self.gc = (perturbed(gw.make_gate(name, 8)) for name in ("se", "gc"))
            self.last, self.last_norm = nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.gc(self.act(self.first_norm(self.se(self.start(x)))))
            return self.last_norm(self.last(x))

    torch.manual_seed(0)
    net = Block().eval()
    for norm in (net.first_norm, net.last_norm):
        norm.running_mean.normal_()  # type: ignore[union-attr]
    perturbed(gw.insert_gates(net, "gct", include="last").gates["last.gct"])
    x = torch.randn(2, 3, 12, 12)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net)
    assert fast.folded == {"last": "last_norm"}
    assert fast.gates == {"last.gct": "new map", "se": "in place", "gc": "new map"}
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.extended
@pytest.mark.parametrize("gate", [gw.SqueezeExcite, gw.GlobalContext, gw.GatedChannelTransform])
def test_gates_as_timm_attn_layer(gate: type) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("resnet26", num_classes=5, block_args={"attn_layer": gate}).eval()
    for layer in gw.gates_in(net).values():
        perturbed(layer)
    x = torch.randn(2, 3, 64, 64)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net)
    assert list(fast.gates.values()) == ["in place"] * 8
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_relu_called_twice_is_kept() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.second(self.act(self.first(x))))

    net = Twice().eval()
    for gate in gw.insert_gates(net, "gct", include="second").gates.values():
        perturbed(gate)
    x = torch.randn(2, 3, 9, 9)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net)
    assert "relu" not in fast.gates["second.gct"]
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)


def test_network_without_gates_and_with_hook_on_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)).eval()
    assert gw.optimize_for_inference(net).undo() is net
    net[0].register_forward_hook(lambda *_: None)  # reads the convolution's output
    assert gw.optimize_for_inference(net).folded == {"3": "4"}


@pytest.mark.slow
def test_copies_and_compilers() -> None:
    net = trained("resnet20+gct")
    x = torch.randn(2, 3, 32, 32)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net)
    twin = copy.deepcopy(fast)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)
    fast.undo()
    torch.testing.assert_close(twin(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(twin.undo()(x), net(x))


@pytest.mark.extended
def test_compiled_network_takes_single_image_after_weights_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    net = trained("resnet20+gct@inner+se")
    monkeypatch.setattr(GateBeforeConvolution, "_weights_pay", lambda *_: True)
    x = torch.randn(1, 3, 32, 32)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(plain(compiled, x), expected, rtol=1e-4, atol=1e-4)


def test_single_image_that_no_kernel_reads_is_not_timed() -> None:
    net, x = trained("resnet20+gct"), torch.randn(1, 3, 32, 32)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net, torch.randn(2, 3, 32, 32))
    with FlopCounterMode(display=False):  # it observes each operation, which a kernel would hide
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    forms = [gate.__dict__["forward"] for gate in gw.gates_in(net).values()]
    assert [form.pays for form in forms] == [{}] * 21
    fast(x)
    assert [len(form.pays) for form in forms] == [1] * 21


def test_form_of_gate_is_asked_for_and_applies_what_it_says() -> None:
    class Doubled(gw.Gate):
        """Twice the map; at inference it also applies the ReLU before it."""

        asked: ClassVar[list[InferencePattern]] = []

        def __init__(self, channels: int, **_: Any) -> None:
            super().__init__(channels)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

        def inference_form(self, pattern: InferencePattern) -> InferenceForm:
            self.asked.append(pattern)
            return InferenceForm(self._run, relu=True)

        def _run(self, x: Tensor) -> Tensor:
            return 2 * x.relu()

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    gw.insert_gates(net, Doubled, before=nn.Conv2d, include=["2"])
    x = torch.randn(2, 3, 9, 9)
    expected = plain(net, x)
    fast = gw.optimize_for_inference(net, x)
    assert Doubled.asked == [InferencePattern(owned=True, relu=True, norm=None)]
    assert fast.gates == {"2.doubled": "new map + relu"}
    assert net[1](-x).equal(-x), "the gate applies the ReLU"
    torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-5)


def test_half_precision() -> None:
    net = trained("resnet20+gct").bfloat16()
    x = torch.randn(2, 3, 32, 32).bfloat16()
    expected = plain(net, x)
    torch.testing.assert_close(gw.optimize_for_inference(net, x)(x), expected, rtol=0.1, atol=0.1)


def test_operations_that_need_original_network_rejected() -> None:
    net = trained("resnet20+gct").train()
    fast = gw.optimize_for_inference(net)
    with pytest.raises(gw.GatewiseError, match="is optimised already"):
        gw.optimize_for_inference(net)
    with pytest.raises(gw.GatewiseError, match="cannot be trained"):
        fast.train()
    with pytest.raises(gw.GatewiseError, match="keeps its device and dtype"):
        fast.double()
    for target in (net, fast):
        with pytest.raises(gw.GatewiseError, match="weights that are loaded now would not be used"):
            target.load_state_dict(target.state_dict())
    with pytest.raises(gw.GatewiseError, match="has no gradients"):
        net(torch.randn(1, 3, 32, 32, requires_grad=True))
    assert not fast(torch.randn(1, 3, 32, 32, requires_grad=True)).requires_grad
    assert not net.training
    fast.undo()
    assert net.training
    net.load_state_dict(net.state_dict())


def test_unreadable_network_is_unchanged() -> None:
    class Reads(nn.Module):
        """Reads its norm's statistics and also calls it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.conv.weight) + self.norm(self.conv(x)) * len(self.norm.__dict__)

    net = Reads().eval()
    with pytest.raises(gw.GatewiseError, match="optimising would change the outputs of Reads by"):
        gw.optimize_for_inference(net, torch.randn(1, 3, 8, 8))
    assert not any("forward" in module.__dict__ for module in net.modules())
    with pytest.raises(gw.GatewiseError, match="Pass example=, an input that the network takes"):
        gw.optimize_for_inference(nn.Sequential(nn.Linear(3, 4)))


def test_factors_of_failed_forward_reach_no_other_image(monkeypatch: pytest.MonkeyPatch) -> None:
    net = trained("resnet20+gct")
    monkeypatch.setattr(GateBeforeConvolution, "_weights_pay", lambda *_: True)
    one, two = torch.randn(1, 3, 32, 32), torch.randn(2, 3, 32, 32)
    expected = plain(net, two)
    fast = gw.optimize_for_inference(net)
    gate = gw.gates_in(net)[next(iter(fast.gates))]
    with torch.no_grad():
        gate(torch.randn(1, gate.channels, 32, 32))  # called by itself: no convolution takes the factors
    torch.testing.assert_close(fast(two), expected, rtol=1e-4, atol=1e-4)
    assert fast(one).isfinite().all()


def test_network_rejects_what_its_wrapper_rejects() -> None:
    net = trained("resnet20+gct")
    fast = gw.optimize_for_inference(net)
    for forbidden in (net.train, net.double, lambda: net.conv1.load_state_dict(net.conv1.state_dict())):
        with pytest.raises(ValueError, match="optimised for inference"):
            forbidden()
    with pytest.raises(ValueError, match="optimised for inference"), GateRecorder(net):
        pass
    assert net.eval() is net
    fast.undo()
    assert net.train().training
    assert next(net.double().parameters()).dtype == torch.float64
    net.conv1.load_state_dict(net.conv1.state_dict())


@pytest.mark.parametrize("copied", [lambda fast: fast, copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_freezing_and_optimizing_undo_independently(copied: Callable[[Any], Any]) -> None:
    net = trained("resnet20+gct")
    net.fc.requires_grad_(False)
    x, kinds = torch.randn(2, 3, 32, 32), [type(module) for module in net.modules()]
    gw.train_only_gates(net)
    expected = plain(net, x)
    fast = copied(gw.optimize_for_inference(net))
    net = fast.model
    gw.train_everything(fast)
    for forbidden in (net.train, net.double, fast.train, fast.double):
        with pytest.raises(ValueError, match="optimised for inference"):
            forbidden()
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    gw.train_only_gates(net)
    assert fast.undo() is net
    assert not net.train().bn1.training
    gw.train_everything(net)
    assert net.bn1.training
    assert [type(module) for module in net.modules()] == kinds
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"fc.weight", "fc.bias"}


def test_other_outputs_are_compared_and_failure_undoes_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.body(x)
            return y, x > 0, x.new_zeros(0)

    net, x = Masked().eval(), torch.randn(1, 3, 8, 8)
    assert gw.optimize_for_inference(net, x).undo() is net
    monkeypatch.setattr("gatewise.inference.optimize._prove", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gw.optimize_for_inference(net, x)
    assert not any("forward" in module.__dict__ for module in net.modules())
    assert type(net) is Masked
    assert net.train().training


def test_timed_map_stays_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that overwrites its map was timed on its own output, hundreds of times."""
    from gatewise.inference import forms

    seen, original = [], forms.interleaved_latency

    def look(calls: dict[str, Any], **options: Any) -> Any:
        for _ in range(200):
            seen.extend(call() for call in calls.values())
        assert all(y.isfinite().all() and torch.allclose(y, seen[0], rtol=1e-3, atol=1e-3) for y in seen)
        seen.clear()
        return original(calls, rounds=2, seconds_per_turn=1e-4)

    monkeypatch.setattr(forms, "interleaved_latency", look)
    net = trained("resnet20+gct")
    gw.optimize_for_inference(net)(torch.randn(1, 3, 32, 32))
