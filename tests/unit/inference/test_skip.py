"""Skipping: every mode equals the masked network and computes only open filters."""

import copy
import json
import pickle
import warnings
from pathlib import Path

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
from gatewise.graph.measure import environment
from gatewise.inference.costs import Costs, default_cache
from gatewise.inference.meter import fingerprint
from gatewise.inference.packed import pack, packed_convolution
from gatewise.inference.plan import Plan, Seconds
from gatewise.inference.skip import MODES
from gatewise.inference.sub_batches import bucketed, one_by_pattern
from support.random_networks import CLOSE, conv, drawn_networks, gater_net, images, made, norm
from support.skipping import (
    own_cache,  # noqa: F401 - a fixture
    patterns,
)


@given(drawn_networks, st.sampled_from(["mask", "skip", "bucket"]))
def test_every_mode_equals_masked_network(drawn: tuple[list[str], int, int, str], mode: str) -> None:
    net, x = made(drawn, letters="?"), images(5)
    fast = gw.skip_closed_filters(net, mode)
    gates = patterns(net, drawn[2])
    assert_close(fast(x, gates), net(x, gates), **CLOSE)
    output, decided = fast.forward_with_gates(x)
    assert torch.equal(decided, net.forward_with_gates(x)[1])
    assert_close(output, net(x), **CLOSE)


@settings(max_examples=15)  # each compacts a network
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


@pytest.mark.parametrize("gates", ["gct", pytest.param("se", marks=pytest.mark.slow), "gct+se", "gc"])
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
    assert [len(part.images) for part in one_by_pattern(gates, work)] == [2, 1, 1]


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


def test_auto_agrees_with_real_timing(own_cache: Path) -> None:
    net, x = gater_net(["bottleneck", "inverted"], letters="?"), images(6)
    fast = gw.skip_closed_filters(net)
    assert fast.mode == "auto"
    for count in (1, 6):
        gates = patterns(net, 1)[:1].repeat(count, 1)
        assert_close(fast(x[:count], gates), net(x[:count], gates), **CLOSE)
    assert_close(fast(x), net(x), **CLOSE)
    stored = json.loads(own_cache.read_text())
    assert stored["format"] == 1
    (machine,) = stored["machines"]
    assert torch.__version__ in machine
    assert "threads" in machine


def test_measured_costs_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = gater_net(["basic"], letters="?")
    gw.skip_closed_filters(net).plan(images(2))
    monkeypatch.setattr("gatewise.inference.meter._times", lambda _: pytest.fail("measured again"))
    again = gw.skip_closed_filters(net)
    again.plan(images(2))
    assert_close(again(images(2)), net(images(2)), **CLOSE)


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\x00",
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": 2, "machines": {}}',
        b'{"format": 1, "machines": {"x": {"y": ["z"]}}}',
        b'{"format": 1, "machines": {"x": {"y": [-1.0]}}}',
        b'{"format": 1, "machines": {"x": 3}}',
    ],
)
def test_invalid_cache_file_is_reported_and_replaced(own_cache: Path, content: bytes) -> None:
    own_cache.write_bytes(content)
    net = gater_net(["basic"], letters="?")
    with pytest.warns(UserWarning, match="is not a valid file of costs"):
        gw.skip_closed_filters(net).plan(images(1))
    assert json.loads(own_cache.read_text())["format"] == 1


def test_costs_of_other_machines_are_kept_and_not_used(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_cache.write_text('{"format": 1, "machines": {"another": {"x": [1.0]}}}')
    with caplog.at_level("INFO", "gatewise"):
        gw.skip_closed_filters(gater_net(["basic"], letters="?")).plan(images(1))
    assert "no costs for this machine" in caplog.text
    stored = json.loads(own_cache.read_text())["machines"]
    assert stored.pop("another") == {"x": [1.0]}
    assert len(stored) == 1


def test_unwritable_cache_gives_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    net = gater_net(["basic"], letters="?")
    fast = gw.skip_closed_filters(net, cache=tmp_path / "file" / "costs.json")
    with pytest.warns(UserWarning, match="cannot write the measured costs"):
        assert_close(fast(images(2)), net(images(2)), **CLOSE)


def test_cache_path_comes_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache() == tmp_path / "costs.json"
    monkeypatch.delenv("GATEWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "gatewise" / "costs.json"


def test_moved_network_is_planned_again() -> None:
    net, x = gater_net(["basic"], letters="?"), images(2)
    fast = gw.skip_closed_filters(net)
    fast(x)
    fast.double()
    with pytest.warns(UserWarning, match=r"was planned for cpu, torch.float32 and is now on cpu, torch.float64"):
        actual = fast(x.double())
    assert_close(actual, net.double()(x.double()), rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(x.double())


def test_machine_with_other_threads_is_another(own_cache: Path) -> None:
    one = Costs(own_cache, torch.device("cpu"), torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert Costs(own_cache, torch.device("cpu"), torch.float32).machine != one.machine
    finally:
        torch.set_num_threads(threads)
    assert Costs(own_cache, torch.device("cpu"), torch.float64).machine != one.machine


@pytest.mark.parametrize("damage", [[1.0], [1], [1.0, 2.0]])
def test_costs_of_other_length_are_measured_again(own_cache: Path, damage: list[float]) -> None:
    net = gater_net(["basic"], letters="?")
    gw.skip_closed_filters(net).plan(images(1))
    content = json.loads(own_cache.read_text())
    ((machine, costs),) = content["machines"].items()
    content["machines"][machine] = dict.fromkeys(costs, damage)
    own_cache.write_text(json.dumps(content))
    gw.skip_closed_filters(net).plan(images(1))
    stored = json.loads(own_cache.read_text())["machines"][machine]
    assert {len(values) for values in stored.values()} <= {1, 3, 5}
    assert sorted(stored) == sorted(costs)


def test_two_users_of_cache_keep_each_others_costs(own_cache: Path) -> None:
    one, two = (Costs(own_cache, torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float64))
    same = Costs(own_cache, torch.device("cpu"), torch.float32)
    for costs, what in ((one, "a"), (two, "b"), (same, "c")):
        costs.of(what, 1, lambda: [1.0])
        costs.save()
    stored = json.loads(own_cache.read_text())["machines"]
    assert stored == {one.machine: {"a": [1.0], "c": [1.0]}, two.machine: {"b": [1.0]}}


def test_networks_of_other_widths_groups_or_depths_are_measured_apart() -> None:
    nets = [
        gater_net(["basic"], 8, letters="?"),
        gater_net(["basic"], 12, letters="?"),
        gater_net(["basic"], 8, letters="?", group_size=2),
        gater_net(["basic", "basic"], 8, letters="?"),
    ]
    marks = [fingerprint(gw.skip_closed_filters(net, "skip").net) for net in nets]
    assert len(set(marks)) == len(nets)
    assert fingerprint(gw.skip_closed_filters(nets[0], "skip").net) == marks[0]


def test_costs_of_other_version_are_measured_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Costs(own_cache, torch.device("cpu"), torch.float32)
    facts = environment()
    monkeypatch.setattr("gatewise.inference.costs.environment", lambda _: {**facts, "gatewise": "another"})
    assert Costs(own_cache, torch.device("cpu"), torch.float32).machine != one.machine


def plan_of(net: gw.GaterNet, memory: int = 2**28, **costs: float) -> Plan:
    """Return a plan with these seconds for every layer, for any number of images."""
    work = gw.skip_closed_filters(net, "skip").work
    layers, sites = len(work.paths), len(work.narrows)
    given = {"dense": 1.0, "fixed": 0.0, "slope": 1.0, "mask": 0.0, "rest": 0.0, "plain": 1e9, **costs}
    seconds = Seconds(
        dense=np.full(layers, given["dense"]),
        fixed=np.full((2, layers), given["fixed"]),
        slope=np.full((2, layers), given["slope"]),
        mask=np.full(sites, given["mask"]),
        rest=np.array(given["rest"]),
        plain=np.array(given["plain"]),
    )
    many = Seconds(*(8 * getattr(seconds, name) for name in ("dense", "fixed", "slope", "mask", "rest", "plain")))
    return Plan(work, {1: seconds, 8: many}, np.full(layers, 100.0), memory)


def test_narrowing_is_chosen_until_its_cost_exceeds_gain() -> None:
    net = gater_net(["basic"], letters="?")
    assert plan_of(net).limits[1].tolist() == [[1.0], [1.0]]
    assert plan_of(net, fixed=0.25).limits[1][0, 0] == pytest.approx(0.75, abs=0.02)
    assert plan_of(net, fixed=0.25, mask=0.1).limits[1][0, 0] == pytest.approx(0.8, abs=0.02)
    assert plan_of(net, fixed=1.1).limits[1].tolist() == [[-1.0], [-1.0]]


def test_weights_count_as_cached_while_memory_lasts() -> None:
    net = gater_net(["basic"], letters="?")
    one, two = np.zeros((2, 8), bool)
    one[:2], two[6:] = True, True

    def known(memory: int) -> list[list[bool]]:
        plan = plan_of(net, memory)
        seen = []
        for gates in (one, two, one, np.ones(8, bool)):
            plan.parts(gates[None])
            seen.append([pattern.tobytes() in plan._seen for pattern in (one, two)])
        return seen

    size = 2 * 100 * 0.25  # two layers, a quarter of each
    assert known(0) == [[False, False]] * 4
    assert known(int(size)) == [[True, False], [False, True], [True, False], [False, False]]
    assert known(1000) == [[True, False], [True, True], [True, True], [True, True]]
    plain = plan_of(net, plain=0.1)
    assert plain.parts(one[None])[0].plain
    assert not plain._seen, "nothing was picked"


def test_batch_runs_in_fastest_mode() -> None:
    net = gater_net(["basic"], letters="?")
    gates = np.zeros((4, 8), bool)
    gates[:2, :2] = gates[2:, 6:] = True
    assert [part.images.tolist() for part in plan_of(net).parts(gates)] == [[0, 1], [2, 3]]
    assert [part.images.tolist() for part in plan_of(net, rest=100.0).parts(gates)] == [[0, 1, 2, 3]]
    (part,) = plan_of(net, plain=0.1).parts(gates)
    assert part.plain
    (part,) = plan_of(net, slope=0.0).parts(gates[:1])
    assert part.narrow.all()


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
