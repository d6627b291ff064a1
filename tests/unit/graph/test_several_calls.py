"""A layer that is called several times, or has two parents, gets one gate that runs at each of its calls."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.graph import Place, Places, Skipped
from gatewise.graph.measure import macs_per_sample
from gatewise.graph.place import Spot

X = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)


def conv(inputs: int = 8, outputs: int = 8, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu, self.second = conv(), nn.BatchNorm2d(8), nn.ReLU(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.relu(self.norm(self.first(x))))


class Siamese(nn.Module):
    """One backbone for each of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, 2), Block(), conv(8, 8, 2), Block())

    def forward(self, *images: Tensor) -> Tensor:
        return torch.stack([self.backbone(image).mean((2, 3)) for image in images]).std(0)


class Heads(nn.Module):
    """One head for maps of two resolutions, as in RetinaNet and FCOS."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.fine, self.coarse = conv(3, 8, 2), conv(8, 8, 2)
        self.head = nn.Sequential(conv(8, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        return self.head(fine).mean((2, 3)) + self.head(coarse).mean((2, 3))


class InTurn(nn.Module):
    """One convolution, or one block, that runs several times in turn."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.last = conv(3), layer, conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.layer(x)
        return self.last(x).mean((2, 3))


class TwoParents(nn.Module):
    """One convolution is the child of two modules, as the position encodings of CoaT are."""

    def __init__(self) -> None:
        super().__init__()
        shared = conv()
        self.stem, self.left, self.right = conv(3), nn.Sequential(shared), nn.Sequential(shared, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.left(x) - self.right(x)).mean((2, 3))


class OneActivation(nn.Module):
    """One ReLU for the maps of different filters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.relu = conv(3), conv(), conv(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.relu(self.second(self.relu(self.first(x))))).mean((2, 3))


class Member:
    """A network, its inputs, and for each kind of place all layers that have it, with their numbers of calls."""

    def __init__(self, build: Callable[[], nn.Module], images: int = 1, **places: dict[str, int]) -> None:
        self.build, self.inputs, self.places = build, (X, X.flip(0), X.flip(3))[:images], places


def siamese(images: int) -> Member:
    inner, ends, stages = (
        {f"backbone.{number}{layer}": images for number in (1, 3)} for layer in (".relu", ".second", "")
    )
    return Member(Siamese, images, inner=inner, residual_end=ends, stage_end=stages)


MEMBERS = {
    "siamese networks": siamese(2),
    "triplet networks": siamese(3),
    "heads of several resolutions": Member(
        Heads, inner={"coarse": 1, "head.2": 2}, before_conv={"fine": 1, "coarse": 1, "head.0": 2, "head.3": 2}
    ),
    "one convolution in turn": Member(
        lambda: InTurn(conv()), inner={"stem": 1, "layer": 3}, before_conv={"stem": 1, "layer": 3, "last": 1}
    ),
    "one residual block in turn": Member(
        lambda: InTurn(Block()), inner={"layer.relu": 3}, residual_end={"layer.second": 3}, stage_end={"last": 1}
    ),
    "children of two modules": Member(TwoParents, before_conv={"stem": 1, "left.0": 2}),
    "one activation for several maps": Member(OneActivation, inner={"second": 1, "third": 1}),
}
CASES = [(name, place) for name, member in MEMBERS.items() for place in member.places]


@pytest.mark.situation("layers that are called several times, or have two parents")
@pytest.mark.parametrize(("name", "place"), CASES, ids=[f"{name}, {place}" for name, place in CASES])
def test_one_gate_runs_at_each_call(name: str, place: str) -> None:
    member = MEMBERS[name]
    torch.manual_seed(0)
    net = member.build().eval()
    plain, before = net(*member.inputs), copy.deepcopy(net.state_dict())
    insertion = gw.insert_gates(net, "gct", place=place, example=member.inputs)
    expected = member.places[place]
    assert list(insertion.names) == list(expected)
    assert insertion.check(*member.inputs) == ()

    torch.testing.assert_close(net(*member.inputs), plain, rtol=0, atol=0)
    calls = dict.fromkeys(insertion.gates, 0)
    for path, gate in insertion.gates.items():
        nn.init.constant_(gate.gamma, 0.5)
        gate.register_forward_hook(lambda *_, path=path: calls.update({path: calls[path] + 1}))
    assert not torch.equal(net(*member.inputs), plain)
    assert {layer: calls[f"{layer}.gct"] for layer in expected} == expected

    net.load_state_dict(before, strict=True)
    trained = net.state_dict()
    net.load_state_dict(trained, strict=True)
    insertion.undo()
    assert list(net.state_dict()) == list(before)
    torch.testing.assert_close(net(*member.inputs), plain, rtol=0, atol=0)


def test_keys_of_a_gate_exist_under_each_name_of_its_layer() -> None:
    net = TwoParents()
    gw.insert_gates(net, "gct", include=["left.0"])
    keys = [key for key in net.state_dict() if "gct" in key]
    assert keys == [f"{side}.0.gct.{name}" for side in ("left", "right") for name in ("alpha", "gamma", "beta")]
    some = {key: value for key, value in net.state_dict().items() if not key.startswith("right.0.gct")}
    with pytest.raises(RuntimeError, match=r"Missing key.*right\.0\.gct\.alpha"):
        net.load_state_dict(some, strict=True)


@pytest.mark.situation("layers that are called several times, or have two parents")
def test_files_load_into_a_network_whose_layer_has_two_parents(tmp_path: Path) -> None:
    torch.save(TwoParents().state_dict(), tmp_path / "plain.pt")
    net = TwoParents().eval()
    gw.insert_gates(net, "gct")
    gw.load_weights(net, tmp_path / "plain.pt")
    nn.init.constant_(net.left[0].gct.gamma, 0.5)
    torch.save(net.state_dict(), tmp_path / "gated.pt")
    other = TwoParents().eval()
    gw.insert_gates(other, "gct")
    gw.load_weights(other, tmp_path / "gated.pt")
    assert torch.equal(other(X), net(X))
    assert torch.equal(copy.deepcopy(net)(X), net(X))


def test_same_tensor_as_both_inputs_is_two_inputs() -> None:
    net = Siamese()
    twice = [gw.find_places(net, place, (X, X)).found for place in ("inner", "residual_end", "stage_end")]
    apart = [gw.find_places(net, place, (X, X + 1)).found for place in ("inner", "residual_end", "stage_end")]
    assert twice == apart
    assert all(twice)


def test_layer_with_the_place_at_some_calls_only_is_skipped_with_reason() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = conv()

        def forward(self, x: Tensor) -> Tensor:
            y = self.shared(x)
            return y + self.shared(y.relu())

    result = gw.find_places(Uneven(), "residual_end", torch.zeros(1, 8, 4, 4))
    assert result.found == []
    assert result.skipped == [
        Skipped("the network's own forward", "shared is called 2 times, and its output is such a place at 1 of them")
    ]


def spot(layer: str, call: str, calls: int, channels: int = 8, origin: str = "conv") -> Spot:
    return Spot(Place(layer, "output", channels, 2), call, calls, (origin,))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (spot("relu", "2", 2), ""),
        (spot("relu", "1", 2), "relu is called 2 times, and its output is such a place at 1 of them"),
        (spot("relu", "2", 2, 4), "relu is called 2 times, with different numbers of channels or axes: [4, 8]"),
        (spot("relu", "2", 2, 8, "fc"), "relu is called 2 times, for channels that different layers make: conv, fc"),
    ],
)
def test_calls_of_a_layer_must_be_alike(second: Spot, reason: str) -> None:
    places = Places()
    places.take([spot("relu", "1", 2)], "first", "")
    places.take([second], "second", "")
    assert [place.layer for place in places.settled().found] == ([] if reason else ["relu"])
    assert places.skipped == ([Skipped(name, reason) for name in ("first", "second")] if reason else [])


def test_map_with_another_place_takes_a_shared_layer_from_all() -> None:
    """The second map prefers its own norm, so a gate after the ReLU would act on it a second time."""
    places = Places()
    places.take([spot("relu", "1", 2), spot("conv", "1", 1)], "first", "")
    places.take([spot("norm", "1", 1), spot("relu", "2", 2)], "second", "")
    assert [place.layer for place in places.settled().found] == ["conv", "norm"]


# --- GaterNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 5, 12])
def test_multiply_adds_of_all_calls_are_counted(width: int) -> None:
    """A network with fewer filters is one whose other filters are closed."""
    net = gw.GaterNet(Heads(), example=X, sites=["head.0"]).eval()
    gates = (torch.arange(12) < width).float().expand(2, -1)
    executed = net.executed_macs(gates) - net.gater_macs
    assert executed.tolist() == pytest.approx([macs_per_sample(Heads(width), X)] * 2)


def test_inputs_that_are_gated_in_one_call_only_are_counted() -> None:
    net = gw.GaterNet(Heads(), example=X).eval()
    assert [(site.name, site.filters) for site in net.sites] == [("coarse", 8), ("head.0", 12)]
    gates = torch.cat([torch.arange(8) < 2, torch.arange(12) < 3]).float().expand(1, -1)
    first, coarse = 8 * 8 * 8 * 3 * 9, 4 * 4 * 2 * 8 * 9
    head_of_fine, head_of_coarse = 8 * 8 * (3 * 8 * 9 + 4 * 3 * 9), 4 * 4 * (3 * 2 * 9 + 4 * 3 * 9)
    expected = first + coarse + head_of_fine + head_of_coarse
    assert (net.executed_macs(gates) - net.gater_macs).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("mode", ["skip", "bucket", "mask"])
@pytest.mark.parametrize(
    "build", [Heads, lambda: InTurn(conv()), lambda: InTurn(Block())], ids=["heads", "turn", "block"]
)
def test_skipping_and_compaction_keep_results(build: Callable[[], nn.Module], mode: str) -> None:
    torch.manual_seed(0)
    net = gw.GaterNet(build().eval(), example=X).eval()
    gates = (torch.rand(2, net.gate_count) > 0.5).float()
    fast: Any = gw.skip_closed_filters(net, mode=mode)
    torch.testing.assert_close(fast(X, gates=gates), net(X, gates=gates))
    torch.testing.assert_close(gw.compact(net, [X])(X), net(X))


def test_local_gater_decides_once_for_all_calls() -> None:
    net = gw.GaterNet(Heads(), example=X, gater="local").eval()
    logits, gates = net.forward_with_gates(X)
    torch.testing.assert_close(net(X, gates=gates), logits)


def test_filters_that_also_leave_the_layer_elsewhere_are_no_site() -> None:
    class Elsewhere(Heads):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.head[0](self.fine(x)).mean((2, 3)).sum(1, keepdim=True)

    net = gw.GaterNet(Elsewhere(), example=X)
    assert [site.name for site in net.sites] == ["coarse"]
    reason = "its channels are those of head.0, which is also called without this place"
    assert Skipped("head.2", reason) in net.skipped
