"""Counts of parameters and multiply-adds against hand-computed numbers, and interleaved timing."""

import importlib.metadata
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.graph import measure
from gatewise.graph.measure import _calls_within as calls_within

SMALL = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 10*6 positions, 8 filters of 3*3*3
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Conv2d(8, 4, 1, stride=2),  # 5*3 positions, 4 filters of 8
    nn.Flatten(),
    nn.Linear(4 * 15, 7),
)


@pytest.mark.parametrize(
    ("net", "example", "expected"),
    [
        (nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 6, 6), 16 * 8 * 27),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), torch.zeros(1, 8, 5, 5), 25 * 12 * 2 * 9),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), torch.zeros(1, 6, 5, 5), 25 * 6 * 9),
        (nn.Conv1d(2, 3, 5), torch.zeros(1, 2, 9), 5 * 3 * 10),
        (nn.Linear(10, 7), torch.zeros(1, 10), 70),
        (SMALL, torch.zeros(1, 3, 10, 6), 60 * 8 * 27 + 15 * 4 * 8 + 60 * 7),
        (nn.ReLU(), torch.zeros(1, 3, 4, 4), 0),
    ],
    ids=["conv", "grouped", "depthwise", "1d", "linear", "network", "elementwise"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_multiply_adds_are_those_of_one_sample(net: nn.Module, example: Tensor, expected: int, batch: int) -> None:
    assert measure.macs_per_sample(net, example.repeat(batch, *[1] * (example.dim() - 1))) == expected


def test_layers_of_gate_are_counted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    image = torch.zeros(1, 3, 6, 6)
    plain = measure.macs_per_sample(net, image)
    gw.insert_gates(net, "se", after=nn.Conv2d, rd_channels=2)
    assert measure.macs_per_sample(net, image) == plain + 8 * 2 + 2 * 8


def test_parameters_count_weights_biases_and_frozen_ones() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2, bias=False))
    net[0].weight.requires_grad_(False)
    assert measure.parameter_count(net) == 3 * 8 * 9 + 8 + 16 + 16


def flags(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


class Recording(nn.Module):
    """Remembers in which mode it was called; fails on request."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.fail = fail
        self.modes: list[tuple[bool, bool]] = []
        self.inside = nn.BatchNorm2d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        if self.fail:
            raise RuntimeError("broken network")
        return self.inside(x)


@pytest.mark.parametrize("fail", [False, True])
def test_counting_runs_in_eval_mode_on_a_copy(fail: bool) -> None:
    net = Recording(fail)
    modes: list[tuple[bool, bool]] = []
    net.register_forward_pre_hook(lambda module, _: modes.append((module.training, module.inside.training)))
    if fail:
        with pytest.raises(RuntimeError, match="broken network"):
            measure.macs_per_sample(net, torch.zeros(1, 3, 2, 2))
    else:
        measure.macs_per_sample(net, torch.zeros(1, 3, 2, 2))
    assert modes == [(False, False)]
    assert net.modes == []
    assert flags(net) == [True, False]


@pytest.mark.parametrize("fail", [False, True])
def test_timing_runs_in_eval_mode_and_restores_modes(fail: bool) -> None:
    net, image = Recording(fail), torch.zeros(1, 3, 2, 2)
    if fail:
        with pytest.raises(RuntimeError, match="broken network"):
            measure.inference_latency({"a": net}, image, rounds=2, seconds_per_turn=1e-9)
    else:
        measure.inference_latency({"a": net}, image, rounds=2, seconds_per_turn=1e-9)
        assert torch.equal(net.inside.running_mean, torch.zeros(3))
    assert set(net.modes) == {(False, False)}
    assert flags(net) == [True, False]


def test_variants_are_timed_in_turn() -> None:
    order: list[str] = []
    measure.interleaved_latency(
        {name: lambda name=name: order.append(name) for name in "abc"}, rounds=4, seconds_per_turn=1e-9
    )
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert "".join(turns[-12:]) == "abcabcabcabc"
    assert len(turns) >= 15  # one round of warming up


def test_round_is_filled_with_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [calls_within(0.05, each) for each in (0.01, 0.02, 0.05, 0.06, 3.0)] == [5, 2, 1, 1, 1]
    assert calls_within(2.5e-9, 0.0) == 2
    asked, calls = [], []

    def within(seconds: float, seconds_each: float) -> int:
        asked.append((seconds, seconds_each > 0))
        return 3

    monkeypatch.setattr(measure, "_calls_within", within)
    measure.interleaved_latency({"a": lambda: calls.append(1)}, rounds=4, seconds_per_turn=0.25)
    assert asked == [(0.25, True)]
    assert len(calls) >= 4 * 3 + 2


class FakeTime:
    """A clock that the calls advance."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def call(self, seconds: float) -> None:
        self.now += seconds


def test_expected_duration_is_that_of_timing() -> None:
    time = FakeTime()
    variants = {"quick": lambda: time.call(0.01), "slow": lambda: time.call(2.0)}
    options: Any = {"rounds": 7, "clock": time.read}
    expected = measure.expected_seconds(variants, **options)
    begun = time.now
    measure.interleaved_latency(variants, **options)
    assert expected == pytest.approx(time.now - begun)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (31.4, "31 s"), (99.4, "99 s"), (147.0, "2 min"), (7000.0, "117 min")]
)
def test_announcement_adds_the_groups(monkeypatch: pytest.MonkeyPatch, seconds: float, text: str) -> None:
    monkeypatch.setattr(measure, "expected_seconds", lambda group, rounds: group["seconds"] * rounds)
    groups: Any = [{"seconds": seconds / 8}, {"seconds": seconds / 8}]
    assert measure.announcement(groups, 4) == f"timing takes about {text}"


def test_times_wait_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(True))
    measure.interleaved_latency({"a": lambda: None}, rounds=2, seconds_per_turn=1e-9)
    assert waited


@pytest.mark.parametrize("rounds", [2, 7])
def test_summary_has_ordered_quartiles_of_all_rounds(rounds: int) -> None:
    found = measure.interleaved_latency(
        {"a": lambda: None, "b": lambda: sum(range(100))}, rounds=rounds, seconds_per_turn=1e-4
    )
    assert list(found) == ["a", "b"]
    for latency in found.values():
        assert 0 < latency.low_s <= latency.median_s <= latency.high_s < math.inf
        assert latency.rounds == rounds


def test_quartiles_are_those_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        """Replaces torch's timer: each round takes one second more."""

        def __init__(self, *_: object, **__: object) -> None:
            self.turn = -1.0

        def timeit(self, _: int) -> "Timer":
            self.turn += 1
            self.mean = self.turn
            return self

    monkeypatch.setattr("torch.utils.benchmark.Timer", Timer)
    (latency,) = measure.interleaved_latency({"a": lambda: None}, rounds=5).values()
    assert (latency.low_s, latency.median_s, latency.high_s) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(("rounds", "error"), [(1, InvalidValueError), (2.5, InvalidTypeError)])
def test_fewer_than_two_rounds_rejected(rounds: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"rounds .* got {rounds}"):
        measure.interleaved_latency({"a": lambda: None}, rounds=rounds)  # pyright: ignore


def test_environment_names_hardware_and_versions() -> None:
    found = measure.environment()
    assert set(found) == {"hardware", "device", "python", "torch", "gatewise", "system"}
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["device"] == "cpu"
    assert found["torch"] == torch.__version__
    assert f"{torch.get_num_threads()} thread" in found["hardware"]


def test_uninstalled_package_is_reported_as_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert measure.environment()["gatewise"] == "not installed"


def test_environment_of_gpu_names_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    found = measure.environment("cuda:1")
    assert (found["hardware"], found["device"]) == ("card 1", "cuda")
