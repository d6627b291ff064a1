"""Hooks that gate a backbone's layers while its GaterNet runs, and do nothing otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.gaternet.sites import Site
from gatewise.kernels.backend import why_not_fusible
from gatewise.kernels.channels import scale_channels
from gatewise.places import change_map, remove_changes


@dataclass(eq=False)
class GateContext:
    """What the hooks in the backbone read while the network runs; no factors and no `decide` at other times.

    Attributes:
        sites: what each hook, known by its number, gates.
        factors: by which the map at a site is multiplied, (N, its channels), for each site that is switched now.
        gated: whether the network has ever run with gates and gradients.
        decide: for local gating, turns a site's number and the input of its convolution into those factors.
    """

    sites: tuple[Site, ...]
    factors: dict[int, Tensor | None] = field(default_factory=dict[int, Tensor | None])
    gated: bool = False
    decide: Callable[[int, Tensor], Tensor | None] | None = None


@dataclass(frozen=True, eq=False)
class _DecideLocally:
    """Lets a site decide from the input of its convolution, in local gating; the map stays as it is."""

    gate_context: GateContext
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        if self.gate_context.decide is not None:
            self.gate_context.factors[self.number] = self.gate_context.decide(self.number, x)
        return x


@dataclass(frozen=True, eq=False)
class _ApplyGates:
    """Multiplies the map at a site by the site's factors while there are any."""

    gate_context: GateContext
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        factors = self.gate_context.factors.get(self.number)
        if factors is None:
            if self.gate_context.gated:
                check_gates_not_recomputed()
            return x
        site = self.gate_context.sites[self.number]
        _validation.check_unchanged_width(f"the gates of {site.name!r}", factors.shape[1], x.shape[site.channel_axis])
        shape = [1] * site.axes
        shape[0], shape[site.channel_axis] = factors.shape
        factors = factors.reshape(shape)
        if site.channel_axis == 1 and not why_not_fusible(x, factors):
            return scale_channels(x, factors)
        return x * factors.to(x.dtype)


def attach(backbone: nn.Module, gate_context: GateContext, *, decide: bool) -> None:
    """Let every site of the backbone listen to `gate_context`, and decide for itself first if asked to."""
    for number, site in enumerate(gate_context.sites):
        if decide:
            change_map(backbone.get_submodule(site.name), "input", _DecideLocally(gate_context, number))
        change_map(backbone.get_submodule(site.layer), site.side, _ApplyGates(gate_context, number))


def detach(backbone: nn.Module) -> None:
    """Take all switches out of a backbone."""
    remove_changes(backbone, (_DecideLocally, _ApplyGates))


def recomputing() -> bool:
    """Whether activation checkpointing computes a forward again in the backward pass (False under torch.compile)."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def check_gates_not_recomputed() -> None:
    """Raise if a part of a GaterNet's backbone is recomputed: its gates are gone, so gradients would be wrong."""
    if recomputing():
        raise errors.InvalidValueError(
            "a part of GaterNet's backbone is computed again in the backward pass, where its gates are gone. Switch "
            "activation checkpointing off in the backbone, and checkpoint the whole net instead: "
            "torch.utils.checkpoint.checkpoint(net, images, use_reentrant=False)"
        )
