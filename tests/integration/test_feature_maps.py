"""Maps from inside a network, as others take them, are those with the gates."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._features import FeatureHookNet
from timm.models._features_fx import FeatureGraphNet
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor

import gatewise as gw

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
STAGE = "layer2"


def trained(net: nn.Module, gate: str) -> nn.Module:
    """Insert gates that change their maps."""
    gw.insert_gates(net, gate, example=X)
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for gate in gw.gates_in(net).values() for p in gate.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return net.eval()


def of_torchvision(gate: str) -> nn.Module:
    torch.manual_seed(0)
    block = torchvision.models.resnet.BasicBlock
    return trained(torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=3), gate)


def of_timm(gate: str) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3)
    for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)  # those that end a branch begin as 0
    return trained(net, gate)


def expected(net: nn.Module) -> Tensor:
    """Return the output of a stage, as the next stage gets it."""
    found: list[Tensor] = []
    handle = net.get_submodule(STAGE).register_forward_hook(lambda _, __, output: found.append(output.clone()))
    net(X)
    handle.remove()
    return found[0]


TAKERS: dict[str, tuple[Callable[[str], nn.Module], Callable[[Any], Tensor]]] = {
    "torchvision's create_feature_extractor": (
        of_torchvision,
        lambda net: create_feature_extractor(net, [STAGE])(X)[STAGE],
    ),
    "torchvision's IntermediateLayerGetter": (
        of_torchvision,
        lambda net: IntermediateLayerGetter(net, {STAGE: "map"})(X)["map"],
    ),
    "timm's forward_intermediates": (of_timm, lambda net: net.forward_intermediates(X, intermediates_only=True)[2]),
    "timm's FeatureHookNet": (of_timm, lambda net: FeatureHookNet(copy.deepcopy(net), out_indices=(0, 1, 2))(X)[2]),
    "timm's FeatureGraphNet": (of_timm, lambda net: FeatureGraphNet(net, out_indices=(0, 1, 2))(X)[2]),
}


@pytest.mark.situation("maps from inside a network with gates")
@pytest.mark.parametrize("gate", ["gct@stage_end", "gct", "se"])
@pytest.mark.parametrize("taker", TAKERS)
@torch.no_grad()
def test_maps_have_their_gates(taker: str, gate: str) -> None:
    make, take = TAKERS[taker]
    net = make(gate)
    want = expected(net)
    torch.testing.assert_close(take(net), want, rtol=1e-5, atol=1e-6)
    for each in gw.gates_in(net).values():
        each.forward = lambda x: x  # type: ignore[method-assign]
    assert not torch.allclose(expected(net), want), "the gates change the map"


@pytest.mark.situation("maps from inside a network with gates: timm's features_only")
@torch.no_grad()
def test_features_only_network_takes_gates() -> None:
    torch.manual_seed(0)
    features, plain = (timm.create_model("test_resnet", features_only=on, num_classes=3) for on in (True, False))
    trained(features, "gct@stage_end")
    trained(plain, "gct@stage_end")
    shared = {name: value for name, value in features.state_dict().items() if name in plain.state_dict()}
    assert len(shared) > len(gw.gates_in(features))
    plain.load_state_dict(shared, strict=False)
    torch.testing.assert_close(features.eval()(X)[2], expected(plain.eval()), rtol=1e-5, atol=1e-6)


def test_traced_network_lists_its_gates() -> None:
    net = of_torchvision("gct@stage_end")
    traced = torch.fx.symbolic_trace(net)
    assert set(gw.gates_in(traced)) == set(gw.gates_in(net))
    recorded = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    assert "layer2.0.gct" in recorded
