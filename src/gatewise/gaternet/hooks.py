"""Hooks that gate a backbone's layers while its GaterNet runs, and do nothing otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.gaternet.sites import Site
from gatewise.kernels.backend import obstacle
from gatewise.kernels.channels import scale_channels
from gatewise.places import change_map, remove_changes


@dataclass(eq=False)
class Switchboard:
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
class _Decide:
    """Lets a site decide from the input of its convolution, in local gating; the map stays as it is."""

    board: Switchboard
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        if self.board.decide is not None:
            self.board.factors[self.number] = self.board.decide(self.number, x)
        return x


@dataclass(frozen=True, eq=False)
class _Switch:
    """Multiplies the map at a site by the site's factors while there are any."""

    board: Switchboard
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        factors = self.board.factors.get(self.number)
        if factors is None:
            if self.board.gated:
                refuse_lost_gates()
            return x
        site = self.board.sites[self.number]
        _validation.unchanged_width(f"the gates of {site.name!r}", factors.shape[1], x.shape[site.channel_axis])
        shape = [1] * site.axes
        shape[0], shape[site.channel_axis] = factors.shape
        factors = factors.reshape(shape)
        if site.channel_axis == 1 and not obstacle(x, factors):
            return scale_channels(x, factors)
        return x * factors.to(x.dtype)


def attach(backbone: nn.Module, board: Switchboard, *, decide: bool) -> None:
    """Let every site of the backbone listen to `board`, and decide for itself first if asked to."""
    for number, site in enumerate(board.sites):
        if decide:
            change_map(backbone.get_submodule(site.name), "input", _Decide(board, number))
        change_map(backbone.get_submodule(site.layer), site.side, _Switch(board, number))


def detach(backbone: nn.Module) -> None:
    """Take all switches out of a backbone."""
    remove_changes(backbone, (_Decide, _Switch))


def recomputing() -> bool:
    """Whether activation checkpointing computes a forward again in the backward pass (False under torch.compile)."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def refuse_lost_gates() -> None:
    """Raise if a part of a GaterNet's backbone is recomputed: its gates are gone, so gradients would be wrong."""
    if recomputing():
        raise errors.InvalidValueError(
            "a part of GaterNet's backbone is computed again in the backward pass, where its gates are gone. Switch "
            "activation checkpointing off in the backbone, and checkpoint the whole net instead: "
            "torch.utils.checkpoint.checkpoint(net, images, use_reentrant=False)"
        )
