"""Hooks that gate a backbone's layers while its GaterNet runs, and do nothing otherwise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from gatewise.gaternet.sites import Site
from gatewise.places import change_map


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
class _Decide:
    """Lets a site decide from the input of its convolution, in local gating; the map stays as it is."""

    board: Switchboard
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        if self.board.decide is not None:
            self.board.gates[self.number] = self.board.decide(self.number, x)
        return x


@dataclass(frozen=True, eq=False)
class _Switch:
    """Multiplies the map at a site by the site's gates while there are any."""

    board: Switchboard
    number: int
    site: Site

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        gates = self.board.gates.get(self.number)
        if gates is None:
            return x
        if self.site.group_size > 1:
            gates = gates.repeat_interleave(self.site.group_size, 1)
        shape = [gates.shape[0], *[1] * (self.site.axes - 1)]
        shape[self.site.channel_axis] = self.site.filters
        return x * gates.reshape(shape).to(x.dtype)


def attach(backbone: nn.Module, sites: Sequence[Site], board: Switchboard, *, decide: bool) -> None:
    """Let every site of the backbone listen to `board`, and decide for itself first if asked to."""
    for number, site in enumerate(sites):
        if decide:
            change_map(backbone.get_submodule(site.name), "input", _Decide(board, number))
        change_map(backbone.get_submodule(site.layer), site.side, _Switch(board, number, site))
