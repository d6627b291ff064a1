"""Skipping in unusual networks: other ranks, nested outputs, shared layers, no images."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

import gatewise as gw
from gatewise.errors import InvalidValueError
from gatewise.graph.measure import Latency
from gatewise.inference.compaction import Constant
from gatewise.inference.skip import MODES
from support.random_networks import CLOSE, Scripted, gater_net, images, network
from support.skipping import patterns


class Counting(nn.Module):
    """Divides by the number of channels that it sees, which no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.make(x))
        return self.read(x / x.shape[1])


@pytest.mark.parametrize("states", ["0?10", "?", "1?", "0??1"])
def test_executed_work_is_what_was_tried(states: str) -> None:
    net = gw.GaterNet(Counting(), gater=Scripted(states.ljust(4, "0")), image_size=(8, 8)).eval()
    small = gw.compact(net, [images(24)])
    for kept in (net, small):
        fast = gw.skip_closed_filters(kept, "skip")
        assert [site.reason for site in fast.skipped] == ["removing them changes the output of the network"]
        assert_close(fast(images(24)), kept(images(24)), **CLOSE)


def test_one_activation_at_two_places() -> None:
    shared = nn.ReLU()
    convolutions = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
    backbone = nn.Sequential(convolutions[0], shared, convolutions[1], shared, convolutions[2])
    net = gw.GaterNet(backbone, gater=lambda gates: Scripted("?" * gates), image_size=(8, 8)).eval()
    fast = gw.skip_closed_filters(net, "skip")
    assert not fast.skipped
    assert_close(fast(images(4)), net(images(4)), **CLOSE)
    assert_close(gw.compact(net, [images(24)])(images(4)), net(images(4)), **CLOSE)


@pytest.mark.parametrize("mode", ["skip", "bucket", "auto"])
@pytest.mark.parametrize("axes", [1, 3])
def test_maps_of_other_ranks(mode: str, axes: int) -> None:
    conv, norm = [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv3d, nn.BatchNorm3d)][axes // 2]
    backbone = nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 4, 3, padding=1)).eval()
    size = (8,) * axes
    net = gw.GaterNet(backbone, gater=lambda gates: Constant([float(n % 3 > 0) for n in range(gates)]), image_size=size)
    x = torch.randn(3, 3, *size)
    fast = gw.skip_closed_filters(net.eval(), mode)
    assert not fast.skipped
    assert_close(fast(x), net(x), **CLOSE)


class Answering(nn.Module):
    """A network that returns `form` of its last map."""

    def __init__(self, form: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.layers, self.form = network(["basic"], 8)[:4], form

    def forward(self, x: torch.Tensor) -> object:
        return self.form(self.layers(x))


Pair = namedtuple("Pair", "map mean")


@dataclass
class Answer:
    map: torch.Tensor
    mean: torch.Tensor


@torch.no_grad()
def test_every_image_is_in_an_output_of_a_dataclass() -> None:
    net = gw.GaterNet(Answering(lambda x: Answer(x, x.mean((2, 3)))), gater=Scripted("?" * 8), image_size=(8, 8)).eval()
    expected = net(images(6))
    for form in (gw.skip_closed_filters(net, "skip"), gw.compact(net, [images(24)])):
        found = form(images(6))
        assert_close(found.map, expected.map, **CLOSE)
        assert_close(found.mean, expected.mean, **CLOSE)


def test_output_that_cannot_be_merged_with_routes_says_what_to_do() -> None:
    net = gw.GaterNet(Answering(lambda x: (x, x.mean())), routes=2, image_size=(8, 8)).eval()
    for form in (net, gw.skip_closed_filters(net)):
        with pytest.raises(InvalidValueError, match=r"got shape \(\)\. .*net\.of_route\(0\)"):
            form.forward_with_gates(images(2), net.routes.float())


@torch.no_grad()
def test_forward_that_is_a_closure_is_gated() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    plain = backbone.forward
    backbone.forward = lambda x: plain(x) / 2  # type: ignore[method-assign]
    net = gw.GaterNet(backbone, gater=Scripted("?0" * 4), image_size=(8, 8)).eval()
    expected = net(images(6))
    for form in (
        gw.skip_closed_filters(net, "mask"),
        gw.skip_closed_filters(net, "skip"),
        gw.compact(net, [images(24)]),
    ):
        assert_close(form(images(6)), expected, **CLOSE)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 8),  # a row for each position
        lambda x: Pair(x, x.mean((2, 3))),
        lambda x: OrderedDict(maps=[x, None], mean=x.mean((2, 3))),
        lambda x: {"maps": (x,), "name": "last"},
    ],
)
def test_output_structure_is_kept(form: Callable[[torch.Tensor], object]) -> None:
    net = gw.GaterNet(Answering(form), gater=Scripted("?" * 8), image_size=(8, 8)).eval()
    fast = gw.skip_closed_filters(net, "skip")
    found, expected = fast(images(6)), net(images(6))
    assert len(fast.last_parts) > 1
    assert type(found) is type(expected)
    leaves, form_found = tree_flatten(found)
    others, form_expected = tree_flatten(expected)
    assert form_found == form_expected
    for own, other in zip(leaves, others, strict=True):
        if isinstance(own, torch.Tensor):
            assert_close(own, other, **CLOSE)
        else:
            assert own == other


def test_output_without_batch_axis_rejected() -> None:
    net = gw.GaterNet(Answering(torch.mean), gater=Scripted("?" * 8), image_size=(8, 8)).eval()
    with pytest.raises(InvalidValueError, match=r"got shape \(\).*mode='mask'"):
        gw.skip_closed_filters(net, "skip")(images(6))


@pytest.mark.parametrize("mode", MODES)
def test_empty_batch_with_local_gates(mode: str) -> None:
    """It asked for the gates before the forward, which local gating does not have."""
    net = gw.GaterNet(network(["basic"], 8), gater="local", image_size=(8, 8)).eval()
    output, gates = gw.skip_closed_filters(net, mode).forward_with_gates(images(2)[:0])
    assert (output.shape, gates.shape) == (net(images(2)[:0]).shape, (0, net.gate_count))


@pytest.mark.parametrize("mode", MODES)
def test_empty_batch_and_gates_between(mode: str) -> None:
    net = gater_net(["basic"], letters="?")
    fast = gw.skip_closed_filters(net, mode)
    assert fast(images(2)[:0]).shape == (0, 5)
    gates = torch.rand(2, net.gate_count)
    assert_close(fast(images(2), gates), net(images(2), gates), **CLOSE)


def test_skipping_net_has_no_state_dict() -> None:
    fast = gw.skip_closed_filters(gater_net(["basic"]), "skip")
    for use in (fast.state_dict, lambda: fast.load_state_dict({})):
        with pytest.raises(InvalidValueError, match=r"no state dict.*Save and load the GaterNet"):
            use()


def test_thousands_of_patterns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewise.inference.active_filters._MANY_PATTERNS", 3)
    net = gater_net(["basic", "basic"], letters="?")
    fast = gw.skip_closed_filters(net, "skip")
    for seed in range(10):
        gates = patterns(net, seed)
        assert_close(fast(images(5), gates), net(images(5), gates), **CLOSE)
        assert len(fast.active_filters._known) <= 3


@pytest.mark.parametrize("pays", [False, True])
def test_auto_skips_no_local_filters_if_faster(monkeypatch: pytest.MonkeyPatch, *, pays: bool) -> None:
    seconds = {"mask": 1.0, "bucket": 0.5 if pays else 1.5}
    times = {name: Latency(*[own] * 3, (own,)) for name, own in seconds.items()}
    monkeypatch.setattr("gatewise.inference.skip.interleaved_latency", lambda *_, **__: times)
    net = gw.GaterNet(gw.make_model("resnet20", num_classes=5), gater="local", image_size=(8, 8)).eval()
    for decider in net.gater:
        nn.init.normal_(decider.head.fc2.weight, std=2.0)
    fast = gw.skip_closed_filters(net, "auto")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = fast(images(1))
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        assert_close(found, net(images(1)), **CLOSE)
    assert (counter.get_total_flops() < whole.get_total_flops()) == pays
