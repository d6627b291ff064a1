"""What can be taken out of a network without changing what it computes: read from its graph, then tried."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gatewise.gaternet import GaterNet
from gatewise.places import ChannelDependency, find_channel_dependencies

Run = Callable[[GaterNet, Sequence[ChannelDependency], Tensor, Tensor], Any]
_AGREE = 1e-9  # relative, in float64


def channel_dependencies_of(net: GaterNet) -> tuple[list[ChannelDependency], dict[str, str]]:
    """Return the flow of each site's filters, and for convolutions the batch norm that alone reads them.

    Two sites never change the same side of a layer: the later one is then impossible.
    """
    sites = [(site.name, site.layer, site.side) for site in net.sites]
    anchor = next(net.backbone.parameters())
    dependencies, followed = find_channel_dependencies(net.backbone, sites, torch.zeros(2, *net.input_shape).to(anchor))
    taken: dict[tuple[str, str], str] = {}
    for number, (site, dependency) in enumerate(zip(net.sites, dependencies, strict=True)):
        sides = [(path, "outputs") for path in (*dependency.producers, *dependency.elementwise)] + [
            (p, "inputs") for p in dependency.consumers
        ]
        rivals = {taken[side] for side in sides if side in taken}
        if rivals:
            dependencies[number] = ChannelDependency(reason=f"its filters meet those of {rivals.pop()!r}")
        else:
            taken |= dict.fromkeys(sides, site.name)
    return dependencies, followed


def drop_unsafe(
    net: GaterNet, dependencies: list[ChannelDependency], run: Run, pattern: Callable[[Tensor], Tensor]
) -> list[ChannelDependency]:
    """Return the flows, without those that would change what `net` computes or that its forward cannot bear.

    Args:
        net: is only read.
        dependencies: as read from the graph.
        run: runs a copy of the net without its closed filters: (net, flows, images, gates) -> output.
        pattern: turns random gates (N, gate_count) into those to try.

    Tried in float64, on noise, with random gates that leave something out of each site, and with those closed that were
    open: all sites together, and if that goes wrong one by one.
    """
    exact = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *net.input_shape, generator=generator, dtype=torch.float64)
    gates = (torch.rand(1, net.gate_count, generator=generator) < 0.5).double().expand(2, -1).clone()
    for site in net.sites:  # something is left out of each, and something left
        gates[:, site.first] = 1 - gates[:, site.first + site.gates - 1]
    device = next(net.parameters()).device
    x, tried = x.to(device), [pattern(chosen.to(device)) for chosen in (gates, 1 - gates)]
    with torch.no_grad():
        expected = [exact(x, chosen) for chosen in tried]

        def agrees(dependencies: Sequence[ChannelDependency]) -> bool:
            try:
                found = [run(exact, dependencies, x, chosen) for chosen in tried]
            except (RuntimeError, ValueError, IndexError):  # a shape that a forward has written down somewhere
                return False
            return all(largest_difference(*pair) < _AGREE for pair in zip(found, expected, strict=True))

        if agrees(dependencies):
            return dependencies
        wrong = ChannelDependency(reason="without them the network computes something else")
        alone = [
            [dependency if dependency is own or not dependency.possible else wrong for dependency in dependencies]
            for own in dependencies
        ]
        return [own if agrees(only) else wrong for own, only in zip(dependencies, alone, strict=True)]


def largest_difference(came: Any, expected: Any) -> float:
    """Return max |a - b| / max |b| over all tensors of two outputs of one network.

    >>> largest_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    0.2...
    """
    pairs = zip(tensors_of(came), tensors_of(expected), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output in order: a tensor, or any nesting of lists, tuples and dicts of such."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
