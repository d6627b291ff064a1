"""Hooks that apply the gates to the backbone during a forward of its GaterNet, and do nothing otherwise."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import call_while_tracing, in_backward
from gatewise.core.hooks import Change, count_change, layers_with_change, names_of, submodule
from gatewise.gaternet.sites import Site
from gatewise.gates.kernels.backend import why_not_fusible
from gatewise.gates.kernels.channels import scale_channels
from gatewise.graph import change_map, remove_changes


class _OfForward(threading.local):
    """What a forward gives to the hooks, separately in each thread; outside a forward it is empty.

    Attributes:
        factors: factors of the map at each gated site, (N, channels), by index of the site; None where all are open.
        decide: for local gating, (index of the site, input of its convolution) -> factors.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the gates at the end of a forward."""
        self.factors: dict[int, Tensor | None] = {}
        self.decide: Callable[[int, Tensor], Tensor | None] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _OfForward, ()


@dataclass(eq=False)
class GateContext:
    """The state that the hooks in the backbone read.

    Attributes:
        sites: the gated layers; a hook has the index of its site.
        gated: whether the network has run with gates and gradients.
        hooks: the hooks in the backbone.
        current: the gates of the forward that this thread runs.
    """

    sites: tuple[Site, ...]
    gated: bool = False
    hooks: list["_Hook"] = field(default_factory=list["_Hook"])
    current: _OfForward = field(default_factory=_OfForward)

    def set_all_open(self) -> None:
        """Multiply no maps in the next forward of the backbone."""
        self.current.clear()
        self.current.factors = dict.fromkeys(range(len(self.sites)))

    def set_gates(self, gates: Tensor) -> None:
        """Multiply the maps of the next forward of the backbone by these gates, (N, gates)."""
        self.current.factors = {number: site.spread(site.own(gates)) for number, site in enumerate(self.sites)}


@dataclass(frozen=True, eq=False)
class _DecideLocally:
    """Compute the factors of a site from the input of its convolution, in local gating; return the input unchanged."""

    gate_context: GateContext
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        current = self.gate_context.current
        if current.decide is not None:
            current.factors[self.number] = current.decide(self.number, x)
        return x


@dataclass(frozen=True, eq=False)
class _ApplyGates:
    """Multiply the map at a site by the factors of the site, if there are any."""

    gate_context: GateContext
    number: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        given = self.gate_context.current.factors
        factors = given.get(self.number)
        if factors is None:
            if self.gate_context.gated and self.number not in given:
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


@dataclass(frozen=True)
class _Hook:
    """A hook on one side of a layer of the backbone."""

    layer: tuple[str, ...]  # names on its path
    side: str
    change: Change

    def is_attached(self, backbone: nn.Module) -> bool:
        layer = submodule(backbone, self.layer)
        return layer is not None and count_change(layer, self.side, self.change) > 0


def attach(backbone: nn.Module, gate_context: GateContext, *, decide: bool) -> None:
    """Add the hooks of all sites to the backbone; `decide` adds those of local gating, too."""
    for number, site in enumerate(gate_context.sites):
        if decide:
            _add(backbone, site.name, "input", _DecideLocally(gate_context, number))
        _add(backbone, site.layer, site.side, _ApplyGates(gate_context, number))


def _add(backbone: nn.Module, path: str, side: str, change: "_DecideLocally | _ApplyGates") -> None:
    change_map(backbone.get_submodule(path), side, change)
    change.gate_context.hooks.append(_Hook(names_of(path), side, change))


@call_while_tracing
def keep_attached(backbone: nn.Module, gate_context: GateContext) -> None:
    """Add hooks again whose layers were replaced, for example by SyncBatchNorm; called before every forward.

    Raises:
        InvalidValueError: the layer of a site no longer exists.
    """
    for position, hook in enumerate(gate_context.hooks):
        if hook.is_attached(backbone):
            continue
        moved = layers_with_change(backbone, hook.side, hook.change)
        layer = submodule(backbone, hook.layer)
        if moved:  # as torch.ao.quantization.fuse_modules does
            gate_context.hooks[position] = replace(hook, layer=names_of(moved[0]))
        elif layer is not None:
            change_map(layer, hook.side, hook.change)
        else:
            raise errors.InvalidValueError(
                f"GaterNet multiplies the {hook.side} of {'.'.join(hook.layer)!r} by gates, but the backbone no longer "
                f"has this layer. Convert the backbone first, then build a GaterNet from it."
            )


def detach(backbone: nn.Module) -> None:
    """Remove the hooks of a GaterNet from a backbone."""
    remove_changes(backbone, (_DecideLocally, _ApplyGates))


def recomputing() -> bool:
    """Return whether activation checkpointing is recomputing a forward; False under torch.compile."""
    return not torch.compiler.is_compiling() and in_backward()


def check_gates_not_recomputed() -> None:
    """Raise ValueError in a recomputed part of the backbone: without gates the gradients would be wrong."""
    if recomputing():
        raise errors.InvalidValueError(
            "activation checkpointing recomputes a part of GaterNet's backbone in the backward pass, without its "
            "gates. Disable it in the backbone, and checkpoint the GaterNet instead: "
            "torch.utils.checkpoint.checkpoint(net, images, use_reentrant=False)"
        )
