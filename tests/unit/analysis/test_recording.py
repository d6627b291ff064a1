"""Recording of gates: exact values, statistics without keeping them, attention maps of the forward."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw
from gatewise.analysis.attention import attention_maps, mean_distance, query_distances
from gatewise.analysis.gate_stats import BINS, GateStats, gate_statistics
from gatewise.analysis.recording import GateRecorder, Recorded, gates_bypassed
from gatewise.errors import InvalidValueError
from support.gate_cases import every_case, make, perturbed, random_map, settled
from support.project import SUPPORT


def gated(*gates: str) -> nn.Sequential:
    """Return three convolutions with gated maps and perturbed weights, in training mode."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 1))
    for gate in gates:
        gw.insert_gates(net, gate, place="before_conv", include=["3", "4"])
    return perturbed(net).train()  # type: ignore[arg-type]


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 9, 8, generator=torch.Generator().manual_seed(1))


# Recording


@every_case
def test_every_registered_gate_is_recorded_by_its_formula(name: str, options: dict[str, Any]) -> None:
    gate = settled(perturbed(make(name, options)))
    x = random_map(gate)
    with GateRecorder(gate) as recorder, torch.no_grad():
        y = gate(x)
    seen = recorder.take()[""]
    for image in range(len(x)):
        size = math.sqrt(x[image].square().mean())
        for channel in range(gate.channels):
            before, after = x[image, channel], y[image, channel]
            factor = (before * after).sum() / before.square().sum()
            value = (after - before).mean() / size if gate.is_additive else factor
            unit = size if gate.is_additive else before.square().mean().sqrt()
            change = (after - before).square().mean().sqrt() / unit
            assert_close(seen.changes[image, channel], change.float(), rtol=1e-3, atol=1e-4)
            assert_close(seen.values[image, channel], value, rtol=1e-3, atol=1e-4)
            assert_close(seen.before[image, channel], before.square().mean().sqrt())
            assert_close(seen.after[image, channel], after.square().mean().sqrt(), rtol=1e-4, atol=1e-5)


def test_factors_of_channels_equal_those_of_gate() -> None:
    gate = perturbed(gw.make_gate("se", 8))
    x = torch.randn(3, 8, 4, 4)
    with GateRecorder(gate) as recorder:
        y = gate(x)
    assert_close(recorder.take()[""].values[..., None, None] * x, y)


def test_channel_of_zeros_has_no_factor() -> None:
    x = torch.zeros(2, 8, 4, 4)
    x[:, 0] = 1
    seen = Recorded.of(gw.make_gate("se", 8), x, 3 * x)
    assert_close(seen.values[:, 0], torch.full((2,), 3.0))
    assert_close(seen.changes[:, 0], torch.full((2,), 2.0))
    assert seen.values[:, 1:].isnan().all()
    assert seen.changes[:, 1:].isnan().all()
    assert torch.equal(Recorded.of(gw.make_gate("gc", 8), x, x).values, torch.zeros(2, 8))
    empty = Recorded.of(gw.make_gate("gc", 8), 0 * x, 0 * x)
    assert torch.equal(empty.values, torch.zeros(2, 8))


@pytest.mark.parametrize("fails", [False, True])
def test_recorder_restores_net(fails: bool) -> None:
    net = gated("gct")
    net[1].eval()
    before = [module.training for module in net.modules()]
    recorder = GateRecorder(net)
    try:
        with recorder:
            assert not any(module.training for module in net.modules())
            net(images())
            if fails:
                net(torch.zeros(1, 5, 9, 9))
    except RuntimeError:
        assert fails
    assert [module.training for module in net.modules()] == before
    recorder.take()
    net(images())
    assert recorder.take() == {}
    assert not any(module._forward_hooks for module in net.modules() if isinstance(module, gw.Gate))
    assert len(net._forward_pre_hooks) == 1, "that which keeps gates attached"


def test_only_last_forward_is_held_and_returned_once() -> None:
    net = gated("gct")
    with GateRecorder(net) as recorder:
        net(images(6))
        net(images(2))
        assert {len(seen.values) for seen in recorder.take().values()} == {2}
        assert recorder.take() == {}


def test_gate_called_twice_counts_with_its_mean() -> None:
    gate = perturbed(gw.make_gate("gct", 4))
    net = nn.Sequential(gate, gate)
    x = 1 + torch.rand(2, 4, 3, 3)
    with GateRecorder(net) as recorder, torch.no_grad():
        net(x)
    first, second = (Recorded.of(gate, z, gate(z)).values for z in (x, gate(x)))
    assert not torch.allclose(first, second)
    assert_close(recorder.take()["0"].values, (first + second) / 2)


def test_net_without_gates_rejected() -> None:
    with pytest.raises(InvalidValueError, match="Sequential has no gates to record"):
        GateRecorder(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(InvalidValueError, match="Sequential has no gates to describe"):
        GateStats(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_bypassed_gates_do_nothing_and_others_are_unchanged() -> None:
    net = gated("gct", "se").eval()
    gates = gw.gates_in(net)
    some = {path: gate for path, gate in gates.items() if path.endswith("se")}
    with gates_bypassed(some), GateRecorder(net) as recorder:
        net(images())
    seen = recorder.take()
    with gates_bypassed(gates):
        bypassed = net(images())
    assert_close(bypassed, plain(net)(images()))
    assert all(bool((seen[path].values != 1).any()) for path in gates if path not in some)
    assert not torch.equal(net(images()), bypassed), "afterwards they work again"


def plain(net: nn.Module) -> nn.Module:
    """Return the net without its gates."""
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 1))
    other.load_state_dict({k: v for k, v in net.state_dict().items() if k in other.state_dict()})
    return other.eval()


# Statistics


def recorded(net: nn.Module, x: Tensor) -> dict[str, Recorded]:
    with GateRecorder(net) as recorder, torch.no_grad():
        net(x)
    return recorder.take()


def cut(seen: dict[str, Recorded], part: slice) -> dict[str, Recorded]:
    """Return what was recorded of some of the images."""
    return {
        path: Recorded(*(getattr(own, name)[part] for name in ("values", "changes", "before", "after")))
        for path, own in seen.items()
    }


@pytest.mark.parametrize("gate", ["gct", "se", "gc"])
def test_statistics_cover_all_values(gate: str) -> None:
    net, labels = gated(gate), torch.tensor([0, 1, 1, 0, 2, 1])
    for parameter in nn.ModuleList(gw.gates_in(net).values()).parameters():
        parameter.data.mul_(3).abs_()  # so that values differ from image to image by more than rounding
    seen = recorded(net, images())
    stats = GateStats(net, classes=4)
    for part in (slice(0, 2), slice(2, 6)):
        stats.update(cut(seen, part), labels[part])
    for path, found in stats.summaries().items():
        values = seen[path].values.double()
        assert found.neutral == (0 if found.is_additive else 1)
        assert_close(found.mean, values.mean(0))
        assert found.average == pytest.approx(values.mean().item())
        assert found.overall_deviation == pytest.approx(values.std(correction=0).item(), rel=1e-5)
        assert_close(found.deviation, values.std(0, correction=0), rtol=1e-6, atol=1e-7)
        for label in range(3):
            assert_close(found.by_class[label], values[labels == label].mean(0))
        assert found.by_class[3].isnan().all()
        assert found.near_identity == pytest.approx((seen[path].changes < 0.05).double().mean().item())
        low, high = found.edges[0], found.edges[-1]
        assert torch.equal(
            found.histogram.double(),
            torch.histc(values.clamp(low, high - 1e-9), BINS, float(low), float(high)),
        )
        total = (values - values.mean()).square().mean()
        assert found.between_images == pytest.approx((values.var(0, correction=0).mean() / total).item(), rel=1e-4)
        of_classes = torch.stack([values[labels == label].mean(0) for label in labels.tolist()])
        between, within = ((v - values.mean(0)).square().sum() for v in (of_classes, values))
        rest = (values - of_classes).square().sum() / (values.shape[1] * (6 - 3))
        share = (between - values.shape[1] * (3 - 1) * rest) / within
        assert found.between_classes == pytest.approx(max(0.0, share.item()), rel=1e-4)
        spread = [s.std(1, correction=0) / s.mean(1) for s in (seen[path].before, seen[path].after)]
        assert found.spread_before == pytest.approx(spread[0].mean().item(), rel=1e-5)
        assert found.competition == pytest.approx((spread[1].mean() / spread[0].mean()).item(), rel=1e-5)


def test_random_labels_explain_no_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 4, generator=generator)
    net = nn.Sequential(gw.make_gate("se", 4))
    by_chance, real = GateStats(net, classes=40), GateStats(net, classes=2)
    seen = {"0": Recorded(values, values.abs(), values, values)}
    by_chance.update(seen, torch.arange(200) % 40)
    assert by_chance.summaries()["0"].between_classes < 0.05, "plain shares of variance would be 20 %"
    real.update(seen, (values[:, 0] > 0).long())
    assert 0.1 < real.summaries()["0"].between_classes < 0.25, "two thirds of one channel's in four"


def test_channels_of_zeros_are_not_counted() -> None:
    net = nn.Sequential(gw.make_gate("gct", 3))
    net[0].beta.data.fill_(0.5)
    x = torch.rand(6, 3, 4, 4) + 0.1
    x[::2, 1] = 0
    x[:, 2] = 0
    stats = GateStats(net, classes=2)
    stats.update(recorded(net, x), torch.arange(6) % 2)
    found = stats.summaries()["0"]
    factor = 1 + math.tanh(0.5)
    assert_close(found.mean[:2], torch.full((2,), factor, dtype=torch.float64), rtol=1e-5, atol=0)
    assert found.mean[2].isnan()
    assert found.by_class[0, 1].isnan(), "zero in all its images"
    assert found.by_class[1, 1].item() == pytest.approx(factor, rel=1e-5)
    assert (found.near_identity, found.between_images, found.between_classes) == (0, 0, 0)
    assert found.average == pytest.approx(factor, rel=1e-5)
    assert found.overall_deviation == pytest.approx(0, abs=1e-4)
    assert found.histogram.sum() == 6 + 3


def test_classes_count_images_that_reached_gate() -> None:
    net = nn.Sequential(perturbed(gw.make_gate("se", 3)))
    x, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 0, 1])
    stats, alone = GateStats(net, classes=2), GateStats(net, classes=2)
    stats.update(recorded(net, x), labels)
    stats.update({}, labels)
    alone.update(recorded(net, x), labels)
    assert_close(stats.summaries()["0"].by_class, alone.summaries()["0"].by_class)


def test_change_that_cancels_over_positions_is_counted() -> None:
    x = torch.ones(1, 2, 1, 2)
    y = x + torch.tensor([1.0, -1.0])
    net = nn.Sequential(gw.make_gate("nl", 2))
    stats = GateStats(net)
    stats.update({"0": Recorded.of(net[0], x, y)})
    found = stats.summaries()["0"]
    assert found.average == 0
    assert found.near_identity == 0


def test_logger_gets_scalars() -> None:
    net = gated("gct")
    stats = GateStats(net)
    stats.update(recorded(net, images()))
    found, scalars = stats.summaries()["3.gct"], stats.compute()
    assert set(scalars) == {
        f"{path}/{name}"
        for path in ("3.gct", "4.gct")
        for name in ("mean", "near_identity", "between_images", "competition")
    }
    assert_close(scalars["3.gct/mean"], found.mean.mean().float())
    assert scalars["3.gct/competition"].item() == pytest.approx(found.competition)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_batches_add_up_for_any_split(sizes: list[int], several: bool) -> None:
    torch.manual_seed(sum(sizes))
    net, count = gated("gct"), sum(sizes)
    seen = recorded(net, images(count))
    labels = torch.randint(3, (count,))
    whole = GateStats(net, classes=3)
    whole.update(seen, labels)
    parts = [GateStats(net, classes=3) for _ in range(2 if several else 1)]
    for number, (piece, own) in enumerate(zip(labels.split(sizes), range(len(sizes)), strict=True)):
        span = slice(sum(sizes[:own]), sum(sizes[: own + 1]))
        parts[number % len(parts)].update(cut(seen, span), piece)
    for other in parts[1:]:
        parts[0].merge_state(other)
    for name in whole._defaults:
        assert_close(getattr(parts[0], name), getattr(whole, name))


@pytest.mark.slow
def test_two_processes_count_images_of_both(tmp_path: Path) -> None:
    script = str(SUPPORT / "stats_in_processes.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for arguments in ([script], [*launcher, script]):
        subprocess.run([sys.executable, *arguments, str(tmp_path)], check=True, capture_output=True, timeout=300)
    alone, *shared = (load_file(tmp_path / name) for name in ("0_of_1", "0_of_2", "1_of_2"))
    for numbers in shared:
        assert numbers.pop("own") == 15
        for name, value in numbers.items():
            assert_close(value, alone[name])
    assert alone["0.gct/deviation"].max() > 0.01, "gates that differ between images"


def test_reset_clears_and_empty_statistics_rejected() -> None:
    net = gated("gct")
    stats = GateStats(net)
    stats.update(recorded(net, images()))
    stats.reset()
    with pytest.raises(InvalidValueError, match="no image has been counted yet"):
        stats.summaries()


def test_labels_need_classes() -> None:
    net = gated("gct")
    seen = recorded(net, images())
    with pytest.raises(InvalidValueError, match="call update without labels; otherwise pass labels"):
        GateStats(net, classes=2).update(seen)
    with pytest.raises(InvalidValueError, match="call update without labels; otherwise pass labels"):
        GateStats(net).update(seen, torch.zeros(6).long())


def test_states_do_not_grow() -> None:
    net = gated("gct", "gc")
    stats = GateStats(net, classes=3)
    sizes = []
    for count in (2, 50):
        stats.update(recorded(net, images(count)), torch.zeros(count).long())
        sizes.append([getattr(stats, name).numel() for name in stats._defaults])
    assert sizes[0] == sizes[1]


def test_unreached_gate_is_omitted() -> None:
    net = gated("gct")
    seen = recorded(net, images())
    stats = GateStats(net)
    stats.update({"4.gct": seen["4.gct"]})
    assert list(stats.summaries()) == ["4.gct"]


def test_images_may_have_several_classes_or_none() -> None:
    net, x, labels = gated("gct"), images(), torch.tensor([0, 1, 0, 1, 0, 1])
    with torch.no_grad():
        for gate in gw.gates_in(net).values():
            gate.gamma.add_(1)
    hot = torch.nn.functional.one_hot(labels, 2).float()
    (one, _), (same, _) = (gate_statistics(net, [(x, own)], classes=2).values() for own in (labels, hot))
    assert_close(one.by_class, same.by_class)
    assert one.between_classes == pytest.approx(same.between_classes)
    hot[:2] = torch.tensor([[1, 1], [0, 0]])
    (several, _) = gate_statistics(net, [(x, hot)], classes=2).values()
    (second, _) = gate_statistics(net, [(x[hot[:, 1] == 1], torch.zeros(3).long())], classes=1).values()
    assert_close(several.by_class[1], second.mean)
    assert math.isnan(several.between_classes)


def test_gates_equal_for_all_images_do_not_depend_on_them() -> None:
    net = gated("gct")
    for gate in gw.gates_in(net).values():
        gate.gamma.data.zero_()
    (first, _) = gate_statistics(net, [(images(), torch.tensor([0, 1, 0, 1, 0, 1]))], classes=2).values()
    assert first.between_images == pytest.approx(0, abs=1e-9)
    assert_close(first.mean, 1 + torch.tanh(gw.gates_in(net)["3.gct"].beta.detach().double().flatten()))


@pytest.mark.parametrize(("gamma", "competes"), [(1.0, True), (-1.0, False)])
def test_competition_is_measured_not_inferred_from_sign(gamma: float, competes: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    gw.insert_gates(net, "gct")
    net[0].gct.gamma.data.fill_(gamma)
    x = torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    (found,) = gate_statistics(net, [(x, torch.tensor([0, 1, 0, 1]))], classes=2).values()
    assert (found.competition > 1) is competes


# Attention

ATTENDING = [("gc", {}), ("gc", {"fusion": "multiply"}), ("snl", {}), ("nl", {})] + [
    ("nl", {"pairwise": form}) for form in ("gaussian", "dot_product", "concatenation")
]


@pytest.mark.parametrize(("name", "options"), ATTENDING)
def test_attention_is_that_of_forward(name: str, options: dict[str, Any]) -> None:
    gate: Any = perturbed(make(name, options))
    x = random_map(gate)
    positions = torch.tensor([0, 7, 29])
    with torch.no_grad():
        maps = gate.attention(x, positions)
        assert maps.shape == (2, 3, 5, 6)
        values = gate.g(x) if name == "nl" else x
        context = torch.einsum("nqp,ncp->ncq", maps.flatten(2), values.flatten(2)).unsqueeze(3)  # (N, R, Q, 1)
        expected = x.flatten(2)[:, :, positions]
        if name == "nl":
            expected = expected + gate.conv_out(context)[..., 0]
        elif name == "snl":
            expected = expected + gate.conv_value(context)[..., 0]
        elif gate.is_additive:
            expected = expected + gate.channel_add_conv(context[:, :, :1])[..., 0]
        else:
            expected = expected * gate.channel_mul_conv(context[:, :, :1]).sigmoid()[..., 0]
        assert_close(gate(x).flatten(2)[:, :, positions], expected, rtol=1e-4, atol=1e-5)


def test_gates_without_attention_have_no_maps() -> None:
    assert make("gc", {"pooling": "average"}).attention(torch.zeros(1, 8, 2, 2), torch.tensor([0])) is None
    assert attention_maps(gated("gct", "gc:pooling=average"), images(), queries=2) == {}


def test_maps_of_network_have_positions() -> None:
    net = gated("nl", "gc")
    found = attention_maps(net, images(), queries=3)
    assert set(found) == {"3.nl", "3.gc", "4.nl", "4.gc"}
    maps, positions = found["3.nl"]
    assert maps.shape == (6, 3, 7, 6)
    assert positions.tolist() == [7, 23, 33], "rows 1, 3, 5 of 7; columns 1, 5, 3 of 6"
    assert_close(maps.sum((2, 3)), torch.ones(6, 3))
    assert_close(found["3.gc"][0][:, 0], found["3.gc"][0][:, 2])
    assert net.training


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 1000))
def test_mean_distance_equals_loop_form(rows: int, width: int, seed: int) -> None:
    vectors = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed))
    for image, found in zip(vectors, mean_distance(vectors), strict=True):
        pairs = [(i, j) for i in range(rows) for j in range(rows) if i != j]
        cosines = [float(image[i] @ image[j] / (image[i].norm() * image[j].norm())) for i, j in pairs]
        assert float(found) == pytest.approx(sum((1 - c) / 2 for c in cosines) / len(cosines), abs=1e-5)


def test_distance_needs_a_map_per_position() -> None:
    batches = [(images(4), torch.zeros(4)), (images(2), torch.zeros(2))]
    found = {d.path: d for d in query_distances(gated("nl:rd_ratio=1", "gc"), batches)}
    assert found["3.gc"].attention == pytest.approx(0, abs=1e-6)
    assert found["3.gc"].outputs == pytest.approx(0, abs=1e-6)
    assert found["3.nl"].attention > 1e-4
    assert found["3.gc"].inputs > 0.1


def test_maps_are_compared_before_later_layer_overwrites_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(perturbed(gw.make_gate("gc", 4, rd_ratio=0.5)), nn.Hardtanh(-0.1, 0.1, inplace=True))
    x = torch.randn(2, 4, 3, 3)
    (found,) = query_distances(net, [(x, torch.zeros(2))])
    assert found.outputs == pytest.approx(0, abs=1e-6), "the same is added everywhere"


def test_distances_are_means_over_all_images() -> None:
    net = gated("nl")
    alone = [query_distances(net, [(image.unsqueeze(0), torch.zeros(1))])[0].inputs for image in images(3)]
    together = query_distances(net, [(images(3), torch.zeros(3))])[0].inputs
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3, 1]), "between 0 and 2, got 0 to 3"),
        (torch.tensor([0, -1, 1]), "between 0 and 2, got -1 to 1"),
        (torch.tensor([0, 1]), r"3 integers \(torch.int64\), got \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "of torch.float32"),
    ],
)
def test_invalid_labels_rejected(labels: torch.Tensor, message: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    gw.insert_gates(net, "gct")
    stats = gw.analysis.GateStats(net, classes=3)
    with gw.analysis.GateRecorder(net) as recorder:
        net(torch.randn(3, 3, 4, 4))
        with pytest.raises(InvalidValueError, match=message):
            stats.update(recorder.take(), labels)


def test_names_of_analysis_are_listed() -> None:
    assert {"GateStats", "GateRecorder"} <= set(dir(gw.analysis))
