"""Verify by comparing outputs that filters can be removed without changing the network."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gatewise.core.types import tensors_of
from gatewise.gaternet import GaterNet
from gatewise.graph import ChannelDependency, Graph, find_channel_dependencies, followed_by_norm

Run = Callable[[GaterNet, Sequence[ChannelDependency], Tensor, Tensor], Any]
_AGREE = 1e-9  # relative, in float64


def channel_dependencies_of(net: GaterNet) -> tuple[list[ChannelDependency], dict[str, str]]:
    """Return the channel dependency of each site, and the batch norm after each convolution without other consumers.

    If two sites would change the same side of a layer, only the first one is possible.
    """
    sites = [(site.name, site.layer, site.side) for site in net.sites]
    anchor = next(net.backbone.parameters())
    graph = Graph(net.backbone, torch.zeros(2, *net.input_shape).to(anchor))
    dependencies = find_channel_dependencies(graph, sites)
    taken: dict[tuple[str, str], str] = {}
    for number, (site, dependency) in enumerate(zip(net.sites, dependencies, strict=True)):
        sides = [(path, "outputs") for path in (*dependency.producers, *dependency.elementwise)] + [
            (p, "inputs") for p in dependency.consumers
        ]
        rivals = {taken[side] for side in sides if side in taken}
        if rivals:
            dependencies[number] = ChannelDependency(reason=f"it shares a layer with the filters of {rivals.pop()!r}")
        else:
            taken |= dict.fromkeys(sides, site.name)
    return dependencies, followed_by_norm(graph)


def drop_unsafe(
    net: GaterNet, dependencies: list[ChannelDependency], run: Run, pattern: Callable[[Tensor], Tensor]
) -> list[ChannelDependency]:
    """Return the dependencies; those that would change the output of `net`, or make its forward fail, are impossible.

    Outputs are compared in float64, on noise, for random gates with at least one closed gate per site, and for their
    complement: for all sites together, and after a difference for each site alone.

    Args:
        net: the network; it is not changed.
        dependencies: channel dependency of each site, from the graph.
        run: runs a copy of the net without its closed filters: (net, dependencies, images, gates) -> output.
        pattern: maps random gates, (N, gate_count), to the gates to test.
    """
    exact = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *net.input_shape, generator=generator, dtype=torch.float64)
    gates = (torch.rand(1, net.gate_count, generator=generator) < 0.5).double().expand(2, -1).clone()
    for site in net.sites:  # at least one gate is closed, and one open
        gates[:, site.first] = 1 - gates[:, site.first + site.gates - 1]
    device = next(net.parameters()).device
    x, tried = x.to(device), [pattern(chosen.to(device)) for chosen in (gates, 1 - gates)]
    with torch.no_grad():
        expected = [exact(x, chosen) for chosen in tried]

        def agrees(dependencies: Sequence[ChannelDependency]) -> bool:
            try:
                outputs = [run(exact, dependencies, x, chosen) for chosen in tried]
            except (RuntimeError, ValueError, IndexError):  # for example a hard-coded shape in a forward
                return False
            return all(largest_difference(*pair) < _AGREE for pair in zip(outputs, expected, strict=True))

        if agrees(dependencies):
            return dependencies
        wrong = ChannelDependency(reason="removing them changes the output of the network")
        alone = [
            [dependency if dependency is own or not dependency.possible else wrong for dependency in dependencies]
            for own in dependencies
        ]
        return [own if agrees(only) else wrong for own, only in zip(dependencies, alone, strict=True)]


def largest_difference(actual: Any, expected: Any) -> float:
    """Return the largest max |a - b| / max |b| over the tensors of two outputs of equal structure.

    >>> largest_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    0.2...
    """
    pairs = zip(tensors_of(actual), tensors_of(expected), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)
