"""Gates stay in the GraphModules that tools of torch.fx make of a network."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, fx, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx.experimental.optimization import fuse, remove_dropout

import gatewise as gw

SITUATION = "A tool of torch.fx rewrites the network"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(torch.ao.quantization|reduce_range|quantize_per_tensor|_quantized)", "ignore:.*[qQ]uantiz"
)


class Block(nn.Module):
    """A residual branch with a norm that is fusible, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.drop(self.act1(self.bn1(self.conv1(x))))))


def network(place: str = "residual_end") -> nn.Module:
    """Return a network with gates that change its output."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(model[1].bn2.weight, 8.0)  # the effect of gates is far above the errors of int8
    gw.insert_gates(model.eval(), "se", place=place, example=image())
    return model


def image() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def quantised(model: nn.Module) -> nn.Module:
    prepared = prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (image(),))
    prepared(image())
    return convert_fx(prepared)


def with_other_activations(model: nn.Module) -> nn.Module:
    traced = fx.symbolic_trace(model)
    for path, layer in list(traced.named_modules()):
        if type(layer) is nn.ReLU:
            parent, _, name = path.rpartition(".")
            setattr(traced.get_submodule(parent), name, nn.Identity())
    return traced


Rewrite = Callable[[nn.Module], nn.Module]
TOOLS: dict[str, Rewrite] = {
    "symbolic_trace": fx.symbolic_trace,
    "fuse": fuse,
    "fuse in place": lambda model: fuse(model, inplace=True),
    "fuse a GraphModule": lambda model: fuse(fx.symbolic_trace(model)),
    "remove_dropout": remove_dropout,
    "prepare_fx": lambda model: prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (image(),)),
    "prepare_fx, then convert_fx": quantised,
    "SyncBatchNorm of a GraphModule": lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(fx.symbolic_trace(m)),
    "a GraphModule frozen by timm": lambda model: freeze_batch_norm_2d(fx.symbolic_trace(model)),
    "a copied GraphModule": lambda model: copy.deepcopy(fx.symbolic_trace(model)),
    "a pickled GraphModule": lambda model: pickle.loads(pickle.dumps(fx.symbolic_trace(model))),
    "an exported GraphModule": lambda m: torch.export.export(fx.symbolic_trace(m), (image(),)).module(),
}


@pytest.mark.situation(SITUATION)
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("place", ["before_conv", "residual_end", "inner"])
@torch.no_grad()
def test_gates_run_in_rewritten_network(place: str, tool: str) -> None:
    model = network(place)
    expected = model(image())
    without = copy.deepcopy(model)
    for gate in gw.gates_in(without).values():
        gate.forward = lambda x: x
    effect = (without(image()) - expected).abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.ao says that it moves
        found = TOOLS[tool](copy.deepcopy(model))(image())
    within = effect / 4 if "convert_fx" in tool else 1e-5  # int8
    assert float((found - expected).abs().max()) < within < effect


@pytest.mark.situation(SITUATION)
@pytest.mark.parametrize("tool", ["a pass that replaces layers of exactly one class"])
def test_pass_leaves_layers_with_gates(tool: str) -> None:
    replaced = with_other_activations(network("inner"))
    with torch.no_grad():
        torch.testing.assert_close(replaced(image()), network("inner")(image()), msg=tool)
    assert isinstance(with_other_activations(network()).get_submodule("1.act1"), nn.Identity)


@pytest.mark.situation(SITUATION)
@pytest.mark.parametrize("tool", ["a pass that replaces instances of a class"])
def test_gate_of_replaced_layer_is_named(tool: str) -> None:
    traced = fx.symbolic_trace(network())
    block = traced.get_submodule("1")
    assert isinstance(block.bn2, nn.BatchNorm2d)
    with pytest.warns(UserWarning, match="bn2, a BatchNorm2d in a GraphModule .* replaced by a GroupNorm .* gate se"):
        block.bn2 = nn.GroupNorm(2, 8)
    assert list(gw.gates_in(traced)) == [], tool


def test_layer_and_its_twin_in_graph_module_stay_the_same_layer() -> None:
    model = network()
    traced = fx.symbolic_trace(model)
    assert list(traced.state_dict()) == list(model.state_dict())
    traced.train()
    assert model[1].bn2.training
    model.eval()
    assert not traced.get_submodule("1.bn2").training
    assert type(model[1].bn2) is nn.BatchNorm2d
    assert type(traced.get_submodule("1.bn1")) is nn.BatchNorm2d, "a layer without gates is not changed"


def test_layer_wrapped_in_graph_module_keeps_its_gate() -> None:
    traced = fx.symbolic_trace(network())
    block = traced.get_submodule("1")
    expected = traced(image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block.bn2 = nn.Sequential(block.bn2)
    torch.testing.assert_close(traced(image()), expected)


def test_modules_outside_graph_modules_are_not_replaced() -> None:
    model = network()
    assert type(nn.ModuleDict({"norm": model[1].bn2})["norm"]) is nn.BatchNorm2d
