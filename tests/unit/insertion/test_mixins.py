"""Mixins in front of a module's class: name kept, copied and pickled with them, removable."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gatewise import GatewiseError
from gatewise.insertion.mixins import add_mixin, own_class, remove_mixin


class Doubles(nn.Module):
    def extra_repr(self) -> str:
        return f"doubled {super().extra_repr()}"


class Named(nn.Module):
    def extra_repr(self) -> str:
        return f"named {super().extra_repr()}"


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def in_the_oldest_protocol(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module, protocol=0))


@pytest.mark.parametrize("copied", [lambda module: module, copy.copy, copy.deepcopy, pickled, in_the_oldest_protocol])
@pytest.mark.parametrize("first", [Doubles, Named])
def test_mixins_are_added_and_removed_in_any_order(first: Any, copied: Callable[[nn.Module], nn.Module]) -> None:
    layer, plain = nn.BatchNorm2d(4), repr(nn.BatchNorm2d(4))
    for mixin in (Doubles, Named, Doubles):  # the last exists already
        add_mixin(layer, mixin)
    layer = copied(layer)
    assert repr(layer) == plain.replace("(4,", "(named doubled 4,")
    assert (type(layer).__name__, type(layer).__module__) == ("BatchNorm2d", nn.BatchNorm2d.__module__)
    assert (own_class(layer), isinstance(layer, nn.BatchNorm2d)) == (nn.BatchNorm2d, True)
    assert layer.state_dict().keys() == nn.BatchNorm2d(4).state_dict().keys()
    remove_mixin(layer, first)
    assert repr(layer) == plain.replace("(4,", f"({'named' if first is Doubles else 'doubled'} 4,")
    remove_mixin(layer, Named if first is Doubles else Doubles)
    assert type(layer) is nn.BatchNorm2d


def test_torch_fx_network_is_copied_with_its_mixin() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    kind = type(traced)
    add_mixin(traced, Doubles)
    twin, x = copy.deepcopy(traced), torch.randn(1, 2)
    assert isinstance(twin, Doubles)
    assert isinstance(twin, torch.fx.GraphModule)
    assert torch.equal(twin(x), traced(x))
    remove_mixin(traced, Doubles)
    assert type(traced) is kind


def test_class_changed_by_other_code_is_left_alone() -> None:
    layer = nn.BatchNorm2d(4)
    add_mixin(layer, Doubles)
    parametrize.register_parametrization(layer, "weight", Square())
    with pytest.raises(GatewiseError, match="was changed after gatewise changed it"):
        remove_mixin(layer, Doubles)
    twin = copy.deepcopy(layer)
    assert (type(twin), repr(twin)) == (type(layer), repr(layer))
    parametrize.remove_parametrizations(layer, "weight")
    remove_mixin(layer, Doubles)
    assert type(layer) is nn.BatchNorm2d
