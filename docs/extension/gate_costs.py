"""Count the cost of each gate in a ResNet-50 at its paper's place. Every build gives the same numbers."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gatewise as gw
from gatewise.gates.registry import GateSpec
from gatewise.graph import Place, change_map, evaluation_mode
from gatewise.graph.measure import macs_per_sample, parameter_count

MODEL, SIDE = "resnet50", 224


@dataclass(frozen=True)
class Cost:
    """Cost of a module for one image in float32.

    Attributes:
        parameters: number of parameters.
        macs: multiply-adds.
        bytes_moved: bytes that PyTorch's operators read and write in eval mode, without fusion.
        bytes_least: bytes of reading and writing each map once.
        places: number of gates.
    """

    parameters: int
    macs: int
    bytes_moved: int
    bytes_least: int = 0
    places: int = 1

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.bytes_moved + other.bytes_moved,
            self.bytes_least + other.bytes_least,
            self.places + other.places,
        )


class BytesMoved(TorchDispatchMode):
    """Count the bytes of each operator's inputs and outputs; views count as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def cost_of(module: nn.Module, x: Tensor) -> Cost:
    """Return the cost of the module for x, a batch of one image.

    >>> cost_of(nn.ReLU(), torch.zeros(1, 2, 5, 5))
    Cost(parameters=0, macs=0, bytes_moved=400, bytes_least=400, places=1)
    """
    with evaluation_mode(module), torch.no_grad(), BytesMoved() as moved:
        module(x)
    return Cost(parameter_count(module), macs_per_sample(module, x), moved.total, 2 * x.numel() * x.element_size())


@functools.cache
def network() -> nn.Module:
    """Return the network in which all costs are counted."""
    return gw.make_model(MODEL, seed=0)


@functools.cache
def cost_of_network() -> Cost:
    """Return the cost of the network without gates."""
    return cost_of(network(), torch.zeros(1, 3, SIDE, SIDE))


@functools.cache
def shapes_at(place: str) -> tuple[torch.Size, ...]:
    """Return the shapes of the maps at all places of this name, for one image."""
    return shapes_of(network(), gw.find_places(network(), place).found, torch.zeros(1, 3, SIDE, SIDE))


def shapes_of(model: nn.Module, places: Sequence[Place], image: Tensor) -> tuple[torch.Size, ...]:
    """Return the shape of the map at each of these places."""
    seen: list[torch.Size] = []

    def note(_: nn.Module, x: Tensor) -> Tensor:
        seen.append(x.shape)
        return x

    handles = [change_map(model.get_submodule(place.layer), place.side, note) for place in places]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen)


def cost_of_gate(spec: GateSpec) -> Cost:
    """Return the cost that one gate at each place of its paper adds to the network."""
    costs: dict[torch.Size, Cost] = {}
    for shape in shapes_at(spec.place):
        if shape not in costs:
            costs[shape] = cost_of(spec.make(shape[1]), torch.rand(shape))
    return functools.reduce(Cost.__add__, (costs[shape] for shape in shapes_at(spec.place)))
