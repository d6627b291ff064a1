"""Hooks that gate a backbone's layers while its GaterNet runs, and do nothing otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from gatewise.gaternet.sites import Site
from gatewise.places import change_map, remove_changes


@dataclass(eq=False)
class Switchboard:
    """What the hooks in the backbone read while the network runs; besides `sites`, nothing at other times.

    Attributes:
        sites: what each hook, known by its number, gates.
        gates: (N, gates of the site) for each site that is switched now.
        decide: for local gating, turns the input of a site's convolution into its gates, which are noted here.
    """

    sites: tuple[Site, ...]
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

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        gates, site = self.board.gates.get(self.number), self.board.sites[self.number]
        if gates is None or not site.acts:
            return x
        shape = [1] * site.axes
        shape[0], shape[site.channel_axis] = gates.shape[0], site.filters
        return x * site.spread(gates).reshape(shape).to(x.dtype)


def attach(backbone: nn.Module, board: Switchboard, *, decide: bool) -> None:
    """Let every site of the backbone listen to `board`, and decide for itself first if asked to."""
    for number, site in enumerate(board.sites):
        if decide:
            change_map(backbone.get_submodule(site.name), "input", _Decide(board, number))
        change_map(backbone.get_submodule(site.layer), site.side, _Switch(board, number))


def detach(backbone: nn.Module) -> None:
    """Take all switches out of a backbone."""
    remove_changes(backbone, (_Decide, _Switch))
