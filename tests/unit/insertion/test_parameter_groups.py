"""Parameter groups: parameters are exempt from weight decay by the gate that owns them, not by name."""

from typing import Any, ClassVar

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import gatewise as gw


def gated(gate: str = "gct", **options: Any) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gw.insert_gates(net, gate, place="before_conv", **options)
    return net


def names(net: nn.Module, groups: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Return the names of the parameters that decay, and of those that do not."""
    name_of = {id(parameter): name for name, parameter in net.named_parameters()}
    decay: tuple[set[str], set[str]] = (set(), set())
    for group in groups:
        decay[group.get("weight_decay") == 0].update(name_of[id(parameter)] for parameter in group["params"])
    return decay


def test_only_beta_does_not_decay() -> None:
    net = gated()
    decaying, exempt = names(net, gw.parameter_groups(net, 1e-4))
    assert exempt == {"0.gct.beta", "3.gct.beta"}
    assert decaying == {name for name, _ in net.named_parameters()} - exempt
    assert {"0.gct.alpha", "0.gct.gamma", "0.weight", "0.bias", "1.weight", "1.bias"} <= decaying


def test_weight_decay_applies_to_first_group_only() -> None:
    assert [group["weight_decay"] for group in gw.parameter_groups(gated(), 1e-4)] == [1e-4, 0.0]
    assert [group["weight_decay"] for group in gw.parameter_groups(gated(), 0.0)] == [0.0, 0.0]


def test_default_weight_decay_is_that_of_optimizer() -> None:
    groups = gw.parameter_groups(gated())
    assert "weight_decay" not in groups[0]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize("model", ["resnet18", "resnet18+gct", "resnet18+se", "resnet18+gct+gc"])
def test_every_trainable_parameter_is_in_exactly_one_group(model: str) -> None:
    net = gw.make_model(model, num_classes=4)
    grouped = [id(parameter) for group in gw.parameter_groups(net, 0.1) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in net.parameters()}


def test_shared_parameter_is_listed_once() -> None:
    net = gated()
    net[0].twin = net[3]
    grouped = [id(parameter) for group in gw.parameter_groups(net) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == 12


def test_frozen_parameters_and_empty_groups_are_omitted() -> None:
    net = gated()
    net[0].weight.requires_grad_(False)
    net[0].gct.beta.requires_grad_(False)
    decaying, exempt = names(net, gw.parameter_groups(net, 0.1))
    assert exempt == {"3.gct.beta"}
    assert "0.weight" not in decaying
    assert "0.bias" in decaying
    net[3].gct.beta.requires_grad_(False)
    assert len(gw.parameter_groups(net, 0.1)) == 1


def test_exemption_is_by_owner_not_by_name() -> None:
    """The official code looks for "beta" in names; here a backbone's beta decays and a renamed gate's does not."""

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.beta = nn.Parameter(torch.ones(1))

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Affine())
    net.beta_conv = nn.Conv2d(1, 1, 1)
    gw.insert_gates(net, "gct", include=["0"])
    _, exempt = names(net, gw.parameter_groups(net, 0.1))
    assert exempt == {"0.gct.beta"}


class Offset(gw.Gate):
    """A custom gate with an exempt parameter of another name, and one inside a submodule."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("offset", "inner.bias")

    def __init__(self, channels: int, *, spatial_dims: int = 2, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1, device=device, dtype=dtype))
        self.inner = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.offset


def test_custom_gate_declares_exempt_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    gw.insert_gates(net, Offset, place="before_conv")
    decaying, exempt = names(net, gw.parameter_groups(net, 0.1))
    assert exempt == {"0.offset.offset", "0.offset.inner.bias"}
    assert decaying == {"0.weight", "0.bias", "0.offset.inner.weight"}


def test_no_weight_decay_of_timm_network_is_used() -> None:
    class Declaring(nn.Sequential):
        def no_weight_decay(self) -> set[str]:
            return {"0.bias"}

    net = Declaring(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    gw.insert_gates(net, "gct")
    _, exempt = names(net, gw.parameter_groups(net, 0.1))
    assert exempt == {"0.bias", "0.gct.beta", "1.gct.beta"}


def test_single_gate_is_accepted() -> None:
    gate = gw.make_gate("gct", 8)
    assert names(gate, gw.parameter_groups(gate, 0.1)) == ({"alpha", "gamma"}, {"beta"})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_timm_optimizer_factory_accepts_groups(optimizer: str) -> None:
    net = timm.create_model("resnet18", num_classes=4)
    gw.insert_gates(net, "gct")
    made = create_optimizer_v2(net, opt=optimizer, lr=0.1, weight_decay=0.05, param_group_fn=gw.parameter_groups)
    decaying, exempt = names(net, made.param_groups)
    assert exempt == {name for name, _ in net.named_parameters() if name.endswith(".gct.beta")}
    assert len(decaying) + len(exempt) == len(list(net.parameters()))
    assert {group["weight_decay"] for group in made.param_groups} == {0.05, 0.0}


def test_step_with_huge_weight_decay_moves_all_but_beta() -> None:
    net = gated()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(gw.parameter_groups(net, 5.0), lr=0.1).step()  # 1 - 0.1 * 5 = 0.5 where it decays
    for name, parameter in net.named_parameters():
        expected = 1.0 if name.endswith("gct.beta") else 0.5
        assert torch.equal(parameter, torch.full_like(parameter, expected)), name


def test_submodule_declares_exempt_parameters() -> None:
    backbone = timm.create_model("convit_tiny")
    assert backbone.no_weight_decay()
    net = nn.Sequential(nn.Identity(), backbone)
    _, exempt = names(net, gw.parameter_groups(net, 0.1))
    assert exempt == {f"1.{name}" for name in backbone.no_weight_decay()}
