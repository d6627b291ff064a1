"""Skipping: every mode equals the masked network and computes only open filters."""

import copy
import pickle
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.graph.measure import Latency
from gatewise.inference.packed import pack, packed_convolution
from gatewise.inference.skip import MODES
from gatewise.inference.sub_batches import bucketed, one_by_pattern
from support.random_networks import CLOSE, conv, drawn_networks, gater_net, images, made, norm
from support.skipping import patterns


@pytest.mark.extended
@given(drawn_networks, st.sampled_from(["mask", "skip", "bucket"]))
def test_every_mode_equals_masked_network(drawn: tuple[list[str], int, int, str], mode: str) -> None:
    net, x = made(drawn, letters="?"), images(5)
    fast = gw.skip_closed_filters(net, mode)
    gates = patterns(net, drawn[2])
    assert_close(fast(x, gates), net(x, gates), **CLOSE)
    output, decided = fast.forward_with_gates(x)
    assert torch.equal(decided, net.forward_with_gates(x)[1])
    assert_close(output, net(x), **CLOSE)


@pytest.mark.extended
@settings(max_examples=5)  # each compacts a network
@given(drawn_networks)
def test_compacted_net_can_be_skipped(drawn: tuple[list[str], int, int, str]) -> None:
    net, x = made(drawn, letters="01??"), images(24)
    small = gw.compact(net, [x])
    if isinstance(small, gw.GaterNet):
        for mode in ("skip", "bucket"):
            assert_close(gw.skip_closed_filters(small, mode)(x), net(x), **CLOSE)


def test_grouped_convolution_compacted_to_depthwise_is_complete() -> None:
    net = gater_net(["grouped"], 4, states="?0?0?0?0")
    small = gw.compact(net, [images(24)])
    assert isinstance(small, gw.GaterNet)
    grouped = small.backbone.get_submodule("3.body.3")
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 2, 2)
    fast = gw.skip_closed_filters(small, "skip")
    assert ("3.body.3", "'3.body.3' does not mix channels") in [(site.name, site.reason) for site in fast.skipped]
    assert_close(fast(images(4)), net(images(4)), **CLOSE)


@pytest.mark.extended
@pytest.mark.parametrize("mode", ["skip", "bucket"])
@pytest.mark.parametrize("sites", ["inner", "residual"])
def test_local_gates_are_decided_in_the_forward(mode: str, sites: str) -> None:
    torch.manual_seed(0)
    net = gw.GaterNet(gw.make_model("resnet20", num_classes=5), sites=sites, gater="local", image_size=(8, 8)).eval()
    for decider in net.gater:
        nn.init.normal_(decider.head.fc2.weight, std=2.0)
        nn.init.normal_(decider.head.fc2.bias)
    x = images(6)
    output, gates = gw.skip_closed_filters(net, mode).forward_with_gates(x)
    assert torch.equal(gates, net.forward_with_gates(x)[1])
    assert 0 < gates.mean() < 1
    assert_close(output, net(x), **CLOSE)


@pytest.mark.extended
@pytest.mark.parametrize("model", ["resnet20", "resnet18_cifar:width=8"])
@pytest.mark.parametrize("group_size", [1, 4])
def test_executed_work_equals_executed_macs(model: str, group_size: int) -> None:
    net = gw.GaterNet(gw.make_model(model, num_classes=5), group_size=group_size, image_size=(8, 8)).eval()
    fast = gw.skip_closed_filters(net, "skip")
    for seed in range(3):
        gates = (torch.rand(1, net.gate_count, generator=torch.Generator().manual_seed(seed)) < 0.4).float()
        gates[:, [site.first for site in net.sites]] = 1  # of a layer without an open filter the first group runs
        counter = FlopCounterMode(display=False)
        with counter:
            net.gater(images(1))
            fast(images(1), gates)
        assert counter.get_total_flops() == 2 * int(net.executed_macs(gates))


@pytest.mark.extended
@pytest.mark.parametrize(
    "gates", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("gct", "se", "gc")), "gct+se"]
)
@pytest.mark.parametrize("sites", ["inner", "residual"])
def test_networks_with_other_gates_are_compacted_and_skipped(gates: str, sites: str) -> None:
    torch.manual_seed(0)
    net = gw.make_model(f"resnet20+{gates}+gaternet:sites={sites}", num_classes=5, image_size=(8, 8)).eval()
    for gate in gw.gates_in(net).values():
        for parameter in gate.parameters():
            nn.init.normal_(parameter, std=0.5)
    nn.init.normal_(net.gater.head.fc2.bias)
    x, fixed = images(5), patterns(net, 0)
    expected = net(x, fixed)
    assert_close(gw.skip_closed_filters(net, "skip")(x, fixed), expected, **CLOSE)
    small = gw.compact(net, [x])
    assert_close(small(x), net(x), **CLOSE)
    sees_all = {"inner": {"gct", "gct+se"}, "residual": {"se", "gct+se", "gc"}}[sites]
    assert ("would receive fewer channels" in str(small.compaction)) == (gates in sees_all)
    removed = any(site.removed for site in small.compaction.sites)
    assert removed != (sites == "residual" and gates in sees_all)  # inner: zeros are put back in front of the gct


def test_unfolded_norm_is_narrowed_too() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(conv(3, 8, 3), nn.ReLU(), norm(8), nn.ReLU(), conv(8, 4, 3))
    net = gw.GaterNet(body, image_size=(8, 8)).eval()
    fast, gates = gw.skip_closed_filters(net, "skip"), patterns(net, 0)
    assert fast.skipped == ()
    assert_close(fast(images(5), gates), net(images(5), gates), **CLOSE)


def test_mask_mode_equals_network_bitwise() -> None:
    net, x = gater_net(["basic", "inverted"], letters="?"), images(4)
    assert torch.equal(gw.skip_closed_filters(net, "mask")(x), net(x))


def test_pattern_gives_same_bits_alone_and_in_batch() -> None:
    net = gater_net(["basic", "bottleneck"], letters="?")
    fast, x, gates = gw.skip_closed_filters(net, "skip"), images(5), patterns(net, 3)
    alone = torch.cat([fast(x[n : n + 1], gates[n : n + 1]) for n in (0, 2, 4)])
    assert torch.equal(fast(x, gates)[[0, 2, 4]], alone)


def test_unskippable_filters_are_named() -> None:
    fast = gw.skip_closed_filters(gater_net(["grouped"], letters="?"), "skip")
    reasons = {skipped.name: skipped.reason for skipped in fast.skipped}
    assert reasons["3.body.0"] == "3.body.3 is a grouped convolution, which cannot run a part of its filters"


def test_nested_outputs_are_reassembled() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            y = self.conv2(torch.relu(self.conv1(x)))
            return {"map": y, "sums": (y.sum((1, 2, 3)), [y.mean((2, 3))])}

    net = gw.GaterNet(Several(), image_size=(8, 8)).eval()
    fast, x, gates = gw.skip_closed_filters(net, "skip"), images(5), patterns(net, 0)
    actual, expected = fast(x, gates), net(x, gates)
    assert_close(actual["map"], expected["map"], **CLOSE)
    assert_close(actual["sums"][0], expected["sums"][0], **CLOSE)
    assert_close(actual["sums"][1][0], expected["sums"][1][0], **CLOSE)


def test_images_with_same_pattern_run_together() -> None:
    net = gater_net(["basic"], letters="?")
    fast = gw.skip_closed_filters(net, "skip")
    fast(images(5), patterns(net, 0))
    assert [part.images.tolist() for part in fast.last_parts] == [[0], [1, 3], [2], [4]]


def test_buckets_group_similar_patterns() -> None:
    net = gater_net(["basic"], 12, letters="?")
    work = gw.skip_closed_filters(net, "bucket").work
    gates = np.zeros((4, 12), bool)
    gates[0, :11] = gates[1, :12] = gates[3, :11] = True
    gates[2, 11:] = True
    parts = bucketed(gates, work)
    assert sorted(part.images.tolist() for part in parts) == [[0, 3, 1], [2]]
    assert [part.alike for part in parts] == [False, True]
    assert [len(part.images) for part in one_by_pattern(gates)] == [2, 1, 1]


def test_buckets_multiply_unopened_filters() -> None:
    net, x = gater_net(["basic"], 12, letters="?"), images(2)
    gates = torch.ones(2, 12)
    gates[1, 0], gates[:, 11] = 0, 0
    fast = gw.skip_closed_filters(net, "bucket")
    assert_close(fast(x, gates), net(x, gates), **CLOSE)
    assert len(fast.last_parts) == 1
    assert not torch.allclose(fast(x, gates)[1], net(x[1:], gates[:1])[0], atol=1e-4)


def test_picked_weights_stay_within_memory_limit() -> None:
    net = gater_net(["basic", "bottleneck"], letters="?")
    for memory in (0, 10_000):
        fast = gw.skip_closed_filters(net, "skip", memory=memory)
        for seed in range(5):
            gates = patterns(net, seed)
            assert_close(fast(images(5), gates), net(images(5), gates), **CLOSE)
            assert fast.active_filters._picked.bytes <= memory
    assert len(fast.active_filters._picked)


def test_cached_weights_are_not_picked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewise.inference.active_filters import FilterIndices

    net = gater_net(["basic"], letters="?")
    fast, gates = gw.skip_closed_filters(net, "skip"), patterns(net, 0)[:1]
    first = fast(images(1), gates)
    monkeypatch.setattr(FilterIndices, "pick", lambda *_: pytest.fail("picked again"))
    assert torch.equal(fast(images(1), gates), first)


def test_skipping_net_is_copied_and_pickled() -> None:
    net = gater_net(["basic", "inverted"], letters="?")
    fast, x = gw.skip_closed_filters(net, "skip"), images(4)
    expected = fast(x)
    assert torch.equal(copy.deepcopy(fast)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)


def test_given_network_is_not_modified() -> None:
    net, x = gater_net(["basic", "inverted", "ChannelsLast"], letters="?"), images(4)
    before, expected = copy.deepcopy(net.state_dict()), net(x)
    gw.skip_closed_filters(net, "skip")(x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net(x), expected)


def test_training_mode_rejected() -> None:
    fast = gw.skip_closed_filters(gater_net(["basic"]), "skip").train()
    with pytest.raises(InvalidValueError, match="for inference"):
        fast(images(1))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"mode": "fast"}, InvalidValueError, "unknown mode 'fast'; expected one of 'auto', 'bucket', 'mask', 'skip'"),
        ({"memory": -1}, InvalidValueError, "memory must be at least 0, got -1"),
        ({"net": nn.ReLU()}, InvalidTypeError, "expects a GaterNet, got ReLU"),
    ],
)
def test_invalid_arguments_rejected(arguments: dict[str, object], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        gw.skip_closed_filters(**{"net": gater_net(["basic"]), **arguments})  # type: ignore[arg-type]


def test_gates_of_other_shape_rejected() -> None:
    fast = gw.skip_closed_filters(gater_net(["basic"]), "skip")
    with pytest.raises(InvalidValueError, match=r"gates must have shape \(2, 8\)"):
        fast(images(2), torch.ones(1, 8))


# auto


def fixed_times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[tuple[str, ...]]:
    """Let "auto" find these seconds for the modes, and return a list of what it times."""
    timed: list[tuple[str, ...]] = []

    def times(ways: Mapping[str, Callable[[], object]], **_: object) -> dict[str, Latency]:
        timed.append(tuple(ways))
        for way in ways.values():
            way()
        return {name: Latency(*[seconds[name]] * 3, (seconds[name],)) for name in ways}

    monkeypatch.setattr("gatewise.inference.skip.interleaved_latency", times)
    return timed


def test_auto_agrees_with_masked_network() -> None:
    net, x = gater_net(["bottleneck", "inverted"], letters="?"), images(6)
    fast = gw.skip_closed_filters(net)
    assert fast.mode == "auto"
    for count in (1, 6):
        gates = patterns(net, 1)[:1].repeat(count, 1)
        assert_close(fast(x[:count], gates), net(x[:count], gates), **CLOSE)
    assert_close(fast(x), net(x), **CLOSE)


@pytest.mark.parametrize(
    ("seconds", "parts"),
    [
        ({"mask": 1.0, "skip": 0.5, "bucket": 0.6}, [[0], [1, 3], [2], [4]]),
        ({"mask": 1.0, "skip": 0.6, "bucket": 0.5}, None),
        ({"mask": 1.0, "skip": 0.95, "bucket": 0.95}, []),
    ],
)
def test_auto_runs_batches_in_the_fastest_mode(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], parts: list[list[int]] | None
) -> None:
    fixed_times(monkeypatch, **seconds)
    net, x = gater_net(["basic"], letters="?"), images(5)
    fast, gates = gw.skip_closed_filters(net), patterns(net, 1)
    assert_close(fast(x, gates), net(x, gates), **CLOSE)
    found = [part.images.tolist() for part in fast.last_parts]
    bucket = [part.images.tolist() for part in bucketed(gates.numpy() > 0, fast.work)]
    assert found == (bucket if parts is None else parts)


def test_auto_times_each_size_of_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = fixed_times(monkeypatch, mask=1.0, skip=0.5, bucket=0.6)
    fast = gw.skip_closed_filters(gater_net(["basic"], letters="?"))
    for count in (1, 3, 1, 3):
        fast(images(count))
    assert timed == [("mask", "skip"), ("mask", "skip", "bucket")]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        fast(images(1))
    finally:
        torch.set_num_threads(threads)
    assert len(timed) == 3


def test_auto_times_patterns_that_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    picked: list[int] = []
    fast = gw.skip_closed_filters(gater_net(["basic"], letters="?"))
    run = fast._run

    def noted(*arguments: object) -> object:
        picked.append(len(fast.active_filters._picked))
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fast, "_run", noted)
    fixed_times(monkeypatch, mask=1.0, skip=0.5, bucket=0.6)
    fast(images(3))
    picked.clear()
    fast(images(1))
    fast(images(1))
    assert picked[0] == 0, "the weights of patterns of the first batch are picked again"
    assert picked[1] == picked[2] > 0, "later batches find the weights of their patterns"


def test_moved_network_is_timed_again() -> None:
    net, x = gater_net(["basic"], letters="?"), images(2)
    fast = gw.skip_closed_filters(net)
    fast(x)
    fast.double()
    with pytest.warns(UserWarning, match=r"ran on cpu, torch.float32 and is now on cpu, torch.float64"):
        actual = fast(x.double())
    assert_close(actual, net.double()(x.double()), rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(x.double())


def test_help_names_every_mode() -> None:
    assert all(f'"{mode}"' in gw.skip_closed_filters.__doc__ for mode in MODES)


def test_picked_weights_are_packed_if_onednn_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Size] = []

    def noted(x: torch.Tensor, *others: object) -> torch.Tensor:
        packed.append(x.shape)
        return packed_convolution(x, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("gatewise.inference.dynamic_layers.packed_convolution", noted)
    net = gater_net(["basic"], 8, states="11010000")
    fast = gw.skip_closed_filters(net, mode="skip")
    with torch.no_grad():
        torch.testing.assert_close(fast(images(2)), net(images(2)), rtol=1e-4, atol=1e-5)
        assert packed.count(torch.Size([2, 3, 8, 8])) == 2, "the reader of the three open filters, and the stem"
        packed.clear()
        with FlopCounterMode(display=False) as counter:
            fast(images(1))
        assert counter.get_total_flops() == 2 * int(net.executed_macs(net.decide(images(1)))), "packed ones are counted"
        packed.clear()
        gw.skip_closed_filters(net.double(), mode="skip")(images(2).double())
        assert not packed, "oneDNN's own order is for float32"


def test_complete_layers_are_packed_once_with_any_memory_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: list[torch.Size] = []

    def noted(weight: torch.Tensor, *others: object) -> torch.Tensor:
        packed.append(weight.shape)
        return pack(weight, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("gatewise.inference.dynamic_layers.pack", noted)
    fast = gw.skip_closed_filters(gater_net(["basic"], 8, states="11010000"), "skip", memory=0)
    for _ in range(2):
        fast(images(1))
    assert packed.count(torch.Size([3, 8, 3, 3])) == 2, "picked again each time"
    assert packed.count(torch.Size([8, 3, 3, 3])) == 1 + 2, "the stem once, the reader of the open filters each time"


def test_copy_of_used_net_starts_with_empty_cache() -> None:
    fast = gw.skip_closed_filters(gater_net(["basic"], 8), mode="skip")
    with torch.no_grad():
        expected = fast(images(2))
        assert fast.active_filters._picked.bytes > 0
        copied = copy.deepcopy(fast)
        assert copied.active_filters._picked.bytes == 0
        assert torch.equal(copied(images(2)), expected)
