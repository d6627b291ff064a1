"""A gate that remembers its last map: one of the same kind goes straight to the kernel, and any difference is seen."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from test_gate_contract import perturbed
from torch import Tensor
from torch.testing import assert_close

import gatewise as gw
from gatewise.gates import gated_channel_transform as module
from gatewise.kernels.repeated import Repeated

pytest.importorskip("numba", reason="kernels for the CPU need numba")
CHANNELS = 8


def gate_and_map() -> tuple[gw.Gate, Tensor]:
    return perturbed(gw.make_gate("gct", CHANNELS)), torch.randn(2, CHANNELS, 6, 6)


def defined(gate: gw.Gate, x: Tensor) -> Tensor:
    return module.gated_channel_transform(x, *gate.numbers, **gate.channel_options)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows each time a map is looked at."""
    calls: list[str] = []
    whole = module.fused_obstacle
    monkeypatch.setattr(module, "fused_obstacle", lambda *a, **k: calls.append("looked") or whole(*a, **k))
    return calls


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("shape", [(2, CHANNELS, 6, 6), (1, CHANNELS, 64, 65), (3, CHANNELS, 70, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_kind_of_map_is_looked_at_once(
    looked: list[str], dtype: torch.dtype, shape: tuple[int, ...], mode: Callable[[], torch.no_grad]
) -> None:
    gate, x = gate_and_map()
    gate.double() if dtype == torch.float64 else gate.float()
    with mode():
        for _ in range(3):
            x = torch.randn(shape).to(dtype)
            y = gate(x)
            assert_close(y, defined(gate, x))
            assert y.stride() == x.stride()
    assert looked == ["looked"]


def test_weights_may_change_and_move(looked: list[str]) -> None:
    gate, x = gate_and_map()
    with torch.no_grad():
        for _ in range(3):
            gate.alpha.mul_(1.5)
            gate.gamma.data = torch.randn_like(gate.gamma)
            assert_close(gate(x), defined(gate, x))
    assert looked == ["looked"]


CHANGES: dict[str, Callable[[gw.Gate, Tensor], Tensor]] = {
    "another batch": lambda _, x: x[:1],
    "another size": lambda *_: torch.randn(2, CHANNELS, 5, 6),
    "another layout": lambda _, x: x.contiguous(memory_format=torch.channels_last),
    "gaps": lambda *_: torch.randn(2, CHANNELS, 6, 12)[..., ::2],
    "float64": lambda _, x: x.double(),
    "bfloat16": lambda _, x: x.bfloat16(),
    "a gate of float64": lambda gate, x: gate.double() and x,
    "a gate of bfloat16": lambda gate, x: gate.bfloat16() and x,
    "mode": lambda gate, x: setattr(gate, "mode", "l1") or x,
    "p": lambda gate, x: setattr(gate, "mode", 3.0) or x,
    "eps": lambda gate, x: setattr(gate, "eps", 0.5) or x,
    "activation": lambda gate, x: setattr(gate, "activation", "sigmoid") or x,
    "backend": lambda gate, x: setattr(gate, "backend", "reference") or x,
    "a gate with gaps": lambda gate, x: setattr(gate.beta, "data", torch.randn(1, 2 * CHANNELS, 1, 1)[:, ::2]) or x,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_different_is_looked_at_again(
    looked: list[str], change: Callable[[gw.Gate, Tensor], Tensor]
) -> None:
    gate, x = gate_and_map()
    with torch.no_grad():
        gate(x)
        x = change(gate, x)
        assert_close(gate(x), defined(gate, x))
    assert looked == ["looked"] * 2


@pytest.mark.parametrize("threads", [1, 2])
def test_another_number_of_threads_is_looked_at_again(looked: list[str], threads: int) -> None:
    gate, x = gate_and_map()[0], torch.randn(1, CHANNELS, 80, 80)
    before = torch.get_num_threads()
    try:
        with torch.no_grad():
            for count in (threads, 3 - threads):
                torch.set_num_threads(count)
                for _ in range(3):
                    assert_close(gate(x), defined(gate, x))
    finally:
        torch.set_num_threads(before)
    assert looked == ["looked"] * 2


def test_negative_values_are_seen_once_after_relu_is_no_longer_said() -> None:
    gate, x = perturbed(gw.make_gate("gct", CHANNELS, mode="l1", after_relu=True)), torch.randn(2, CHANNELS, 6, 6)
    with torch.no_grad():
        gate(x)
        gate.after_relu = False
        assert_close(gate(x), defined(gate, x))


def test_a_mistake_is_still_refused() -> None:
    gate, x = gate_and_map()
    with torch.no_grad():
        gate(x)
        for wrong in (x[:, :4], x[0], x.long()):
            with pytest.raises((ValueError, TypeError), match="expects"):
                gate(wrong)
        for parameter in gate.parameters():
            parameter.data = parameter.data[:, :4]  # as a pruner cuts, at the same address
        with pytest.raises(ValueError, match="expects a feature map of shape"):
            gate(x)


def test_gradients_are_recorded_where_they_are_asked_for() -> None:
    gate, x = gate_and_map()
    with torch.no_grad():
        gate(x)
    gate(x).sum().backward()
    assert all(parameter.grad is not None for parameter in gate.parameters())


def test_training_remembers_nothing() -> None:
    gate, x = gate_and_map()
    gate(x)
    assert gate._repeated._known is None


def test_who_watches_operations_sees_them() -> None:
    gate, x = gate_and_map()
    with torch.no_grad():
        expected = gate(x)
        assert_close(torch.func.vmap(gate)(x.unsqueeze(1)).squeeze(1), expected)
        with torch.utils.flop_counter.FlopCounterMode(display=False), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Repeated, "remember", lambda *_: pytest.fail("a kernel would hide its operations"))
            assert_close(gate(x), expected)
        with warnings.catch_warnings(action="ignore"):  # torch's, of its own code
            tangent = torch.func.jvp(gate, (x,), (torch.ones_like(x),))[1]
            assert_close(torch.jit.trace(gate, x, check_trace=False)(2 * x), gate(2 * x))
        assert_close(torch.compile(gate, fullgraph=True, backend="aot_eager")(x), expected)
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda gate: pickle.loads(pickle.dumps(gate))])
def test_copies_remember_nothing_of_their_own(duplicate: Callable[[gw.Gate], gw.Gate]) -> None:
    gate, x = gate_and_map()
    with torch.no_grad():
        gate(x)
        other = duplicate(gate)
        assert other._repeated._known is None
        for parameter in gate.parameters():
            parameter.zero_()
        assert_close(other(x), defined(other, x))


def test_subclasses_of_tensors_go_the_whole_way(looked: list[str]) -> None:
    class Other(torch.Tensor):
        pass

    gate, x = gate_and_map()
    with torch.no_grad():
        gate(x)
        assert type(gate(x.as_subclass(Other))) is Other
    assert looked == ["looked"] * 2


def test_threads_that_share_a_gate_get_their_own_results() -> None:
    gate, _ = gate_and_map()
    maps = [torch.randn(n, CHANNELS, 7, n + 1) for n in (1, 2, 3, 4)]
    wrong: list[str] = []

    def work(x: Tensor) -> None:
        with torch.no_grad():
            expected = defined(gate, x)
            for _ in range(200):
                if not torch.allclose(gate(x), expected, rtol=1e-5, atol=1e-6):
                    wrong.append(str(tuple(x.shape)))

    workers = [threading.Thread(target=work, args=(x,)) for x in maps]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_an_optimised_network_remembers_too(looked: list[str]) -> None:
    torch.manual_seed(0)
    net = gw.make_model("resnet20+gct", num_classes=3, seed=0).eval()
    for gate in gw.gates_in(net).values():
        perturbed(gate)
    optimised = gw.optimize_for_inference(copy.deepcopy(net), torch.randn(2, 3, 32, 32))
    with torch.no_grad():
        for size in (32, 32, 24):
            x = torch.randn(2, 3, size, size)
            assert_close(optimised(x), net(x), rtol=1e-4, atol=1e-4)
        for gate in (*gw.gates_in(net).values(), *gw.gates_in(optimised).values()):
            gate.mode = "l1"
        looked.clear()
        assert_close(optimised(x), net(x), rtol=1e-4, atol=1e-4)
        seen = len(looked)
        assert_close(optimised(-x), net(-x), rtol=1e-4, atol=1e-4)
    assert seen == 2 * len(gw.gates_in(net))
    assert len(looked) == seen, "nothing is looked at again"
