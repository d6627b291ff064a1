"""One public call traces a network once, and a graph can be shared by several calls."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

import gatewise as gw
from gatewise.gates.spec import parse_gates
from gatewise.graph import Graph, graph, place_kind, place_names
from gatewise.graph.trace import example_inputs
from gatewise.inference import ConditionalNet, folded
from gatewise.insertion.insert import insert_all


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return the networks that are traced, in order."""
    traced: list[nn.Module] = []
    trace = graph.trace
    monkeypatch.setattr(
        graph, "trace", lambda model, *options, **by: traced.append(model) or trace(model, *options, **by)
    )
    return traced


def chain() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    net = nn.Sequential(*layers)
    net.input_size = (3, 12, 12)
    return net.eval()


def gater_net(**options: Any) -> gw.GaterNet:
    torch.manual_seed(0)
    return gw.GaterNet(chain(), **options)


IMAGES = torch.zeros(2, 3, 12, 12)
CALLS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "insert_gates": (chain, lambda net: gw.insert_gates(net, "gct@inner")),
    "insert_gates after a type": (chain, lambda net: gw.insert_gates(net, "se", after=nn.ReLU)),
    "several gates": (chain, lambda net: insert_all(net, parse_gates("gct@inner+se@inner+eca@stage_end+gct"))),
    "find_places": (chain, lambda net: gw.find_places(net, "stage_end")),
    "GaterNet": (chain, gw.GaterNet),
    "GaterNet by names": (chain, lambda net: gw.GaterNet(net, sites=["0"])),
    "GaterNet by expression": (chain, lambda net: gw.GaterNet(net, sites="0|3")),
    "compact": (gater_net, lambda net: gw.compact(net, [IMAGES])),
    "skip_closed_filters": (gater_net, lambda net: gw.skip_closed_filters(net, mode="bucket")),
    "the form skip of an export": (gater_net, ConditionalNet),
    "folded": (chain, folded),
    "optimize_for_inference": (chain, gw.optimize_for_inference),
    "make_model": (lambda: "resnet20+gct@inner+se", gw.make_model),
}


@pytest.mark.parametrize("name", CALLS)
def test_public_call_traces_network_once(name: str, traces: list[nn.Module]) -> None:
    make, call = CALLS[name]
    argument = make()
    traces.clear()
    call(argument)
    assert len(traces) == 1


def test_gater_around_gated_network_needs_one_trace_more(traces: list[nn.Module]) -> None:
    """The gates are inserted before the size of the images is known, with which the GaterNet counts its work."""
    gw.make_model("resnet20+gct@inner+se+gaternet")
    assert len(traces) == 2


def test_shared_graph_is_traced_once_for_all_places_and_insertions(traces: list[nn.Module]) -> None:
    net = chain()
    shared = Graph(net)
    found = {place: gw.find_places(shared, place) for place in place_names()}
    gates = ("gct@inner", "se@stage_end", "eca@inner")
    inserted = [gw.insert_gates(shared, gate) for gate in gates]
    assert len(traces) == 1
    assert found == {place: gw.find_places(net, place) for place in place_names()}
    assert [insertion.places for insertion in inserted] == [
        tuple(found[gate.partition("@")[2]].found) for gate in gates
    ]


def test_places_without_graph_are_never_traced(traces: list[nn.Module]) -> None:
    places = [name for name in place_names() if not place_kind(name).needs_graph]
    for place in places:
        gw.find_places(chain(), place)
    gw.insert_gates(chain(), "gct")
    gw.insert_gates(chain(), "gct", before=nn.Conv2d)
    assert "before_conv" in places
    assert traces == []


def test_graph_with_another_example_rejected() -> None:
    for call in (gw.find_places, gw.insert_gates):
        with pytest.raises(gw.errors.InvalidValueError, match=f"{call.__name__}: a Graph has its own example"):
            call(Graph(chain()), "inner", example=IMAGES)


# Images that the network was built for

BUILT: dict[str, Callable[[int], nn.Module]] = {
    "one first convolution": lambda channels: timm.create_model("test_resnet", in_chans=channels),
    "two first convolutions": lambda channels: timm.create_model("repvgg_a0", in_chans=channels),
    "a backbone inside": lambda channels: gw.make_model("segmenter:backbone=test_resnet", in_chans=channels),
}


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kind", BUILT)
def test_images_are_those_of_the_first_convolution(kind: str, channels: int) -> None:
    """The `pretrained_cfg` of timm goes on describing images of three channels."""
    network = BUILT[kind](channels)
    assert network.pretrained_cfg["input_size"][0] == 3
    assert example_inputs(network)[0].shape == (2, channels, *network.pretrained_cfg["input_size"][1:])


def test_timm_network_for_grey_images_gets_a_gater() -> None:
    net = gw.GaterNet(timm.create_model("test_resnet", in_chans=1), image_size=(32, 32))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 1000)
