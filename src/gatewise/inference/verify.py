"""Verify by comparing outputs that filters can be removed without changing the network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gatewise.core.deviation import largest_error, largest_finite
from gatewise.core.reasons import reason_of
from gatewise.core.types import main_output, tensors_of
from gatewise.gaternet import GaterNet
from gatewise.graph import ChannelDependency, Graph, find_channel_dependencies, followed_by_norm
from gatewise.graph.structural_copy import full_copy

Run = Callable[[GaterNet, Sequence[ChannelDependency], Tensor, Tensor], Any]
_AGREE = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest relative difference, by the type that a net runs in


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


class Trial:
    """Outputs of a net on noise, for random gates with at least one closed gate per site, and for their complement.

    The net runs in float64, or in float32 if its forward does not accept float64.

    Args:
        net: the network; it is not changed.
        run: runs a copy of the net without its closed filters: (net, dependencies, images, gates) -> output.
        pattern: maps random gates, (N, gate_count), to the gates to test.
    """

    @torch.no_grad()
    def __init__(self, net: GaterNet, run: Run, pattern: Callable[[Tensor], Tensor]) -> None:
        self.run = run
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, *net.input_shape, generator=generator, dtype=torch.float64)
        gates = (torch.rand(1, net.gate_count, generator=generator) < 0.5).double().expand(2, -1).clone()
        for site in net.sites:  # at least one gate is closed, and one open
            gates[:, site.first] = 1 - gates[:, site.first + site.gates - 1]
        device = next(net.parameters()).device
        for dtype, self.largest in _AGREE.items():
            self.exact = full_copy(net).to(dtype).eval()
            self.x = x.to(device, dtype)
            self.gates = [pattern(chosen.to(device, dtype)) for chosen in (gates, 1 - gates)]
            self.failure = None
            try:
                self.expected = [self.exact(self.x, chosen) for chosen in self.gates]
                break
            except Exception as error:  # the forward of a user's network can raise anything
                self.failure = f"the network cannot be tried on noise: {_told(error)}"

    @torch.no_grad()
    def why_not(self, dependencies: Sequence[ChannelDependency]) -> str | None:
        """Return why the net without the closed filters of these dependencies is not the same, or None if it is."""
        if self.failure is not None:
            return self.failure
        try:
            outputs = [self.run(self.exact, dependencies, self.x, chosen) for chosen in self.gates]
            if all(largest_difference(*pair) < self.largest for pair in zip(outputs, self.expected, strict=True)):
                return None
        except Exception as error:  # for example because of a size that is fixed in a forward
            return f"without them the network raises {_told(error)}"
        return "removing them changes the output of the network"


def _told(error: Exception) -> str:
    return f"{type(error).__name__} ({reason_of(error, 200)})"


def drop_unsafe(trial: Trial, dependencies: list[ChannelDependency]) -> list[ChannelDependency]:
    """Return the dependencies; those that would change the output of a net, or make its forward fail, are impossible.

    All sites are tried together, and after a difference one after another, with those that were found to be safe.
    """
    if trial.why_not(dependencies) is None:
        return dependencies
    safe = [ChannelDependency(reason=dependency.reason) for dependency in dependencies]
    for number, dependency in enumerate(dependencies):
        if dependency.possible:
            reason = trial.why_not([*safe[:number], dependency, *safe[number + 1 :]])
            safe[number] = dependency if reason is None else ChannelDependency(reason=reason)
    return safe


def largest_difference(actual: Any, expected: Any) -> float:
    """Return the largest max |a - b| / max |b| over the tensors of two outputs of equal structure.

    Values that are not finite must be equal; otherwise the difference is infinite.

    Raises:
        InvalidTypeError: an output has no tensor.

    >>> largest_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    0.2...
    """
    main_output(expected)
    pairs = zip(tensors_of(actual), tensors_of(expected), strict=True)
    return max(largest_error(a, b) / max(largest_finite(b), 1e-30) for a, b in pairs)
