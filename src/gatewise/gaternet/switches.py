"""Hooks that gate a backbone's layers while its GaterNet runs, and do nothing otherwise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gatewise.gaternet.sites import Site


@dataclass(eq=False)
class Switchboard:
    """What the hooks in the backbone read while the network runs, and nothing at other times.

    Attributes:
        gates: (N, gates of the site) for each site that is switched now.
        decide: for local gating, turns the input of a site's convolution into its gates, which are noted here.
    """

    gates: dict[int, Tensor] = field(default_factory=dict)
    decide: Callable[[int, Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Decide:
    """A hook on a site's convolution: lets the site decide from its input, in local gating."""

    board: Switchboard
    site: int

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002
        if self.board.decide is not None:
            self.board.gates[self.site] = self.board.decide(self.site, args[0])


@dataclass(frozen=True, eq=False)
class _Switch:
    """A hook on a site's layer: multiplies the map by its gates while there are any."""

    board: Switchboard
    number: int
    site: Site

    def _apply(self, x: Tensor) -> Tensor:
        gates = self.board.gates.get(self.number)
        if gates is None:
            return x
        if self.site.group_size > 1:
            gates = gates.repeat_interleave(self.site.group_size, 1)
        shape = [gates.shape[0], *[1] * (self.site.axes - 1)]
        shape[self.site.channel_axis] = self.site.filters
        return x * gates.reshape(shape).to(x.dtype)


class _OutputSwitch(_Switch):
    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        return self._apply(output)


class _InputSwitch(_Switch):
    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG002
        return (self._apply(args[0]), *args[1:])


def attach(backbone: nn.Module, sites: Sequence[Site], board: Switchboard) -> None:
    """Let every site of the backbone listen to `board`."""
    for number, site in enumerate(sites):
        layer = backbone.get_submodule(site.layer)
        if site.side == "output":
            layer.register_forward_hook(_OutputSwitch(board, number, site))
        else:
            layer.register_forward_pre_hook(_InputSwitch(board, number, site))
