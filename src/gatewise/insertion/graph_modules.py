"""Layers with gates in the GraphModules of torch.fx.

torch.fx records a layer of torch.nn as one node and does not see its hooks, so a tool that fuses or replaces such
layers would lose their gates. Therefore a GraphModule gets a twin of each layer with gates. The twin is the same layer
in everything but its class, a subclass: tools that look for exactly one class, such as those that fuse, leave it.
"""

# pyright: basic

import warnings
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.module import register_module_module_registration_hook

from gatewise.core.hooks import change_map, changes_on, layers_with_change, submodule
from gatewise.insertion.attachment import CallGate, normalised_channels
from gatewise.insertion.mixins import add_mixin, own_class


class GatedTwin(nn.Module):
    """A layer with gates in a GraphModule."""


def _twin_in_graph_module(parent: nn.Module, name: str, child: nn.Module | None) -> nn.Module | None:
    """Return the twin to register instead of a layer with gates, or None; called whenever a module gets a child.

    Gates of a twin that is replaced move to its successor, if it has taken over the gates or normalises the same map.

    Warns:
        UserWarning: a layer with gates is replaced by one that cannot take them over.
    """
    # a GraphModule has plain modules for the names on the paths of its layers
    if child is None or not (type(parent) is nn.Module or isinstance(parent, fx.GraphModule)):
        return None
    replaced = submodule(parent, (name,))
    if isinstance(replaced, GatedTwin):
        _move_gates(name, replaced, child)
    if isinstance(child, GatedTwin) or not any(_calls(child)):
        return None
    twin = object.__new__(type(child))
    object.__setattr__(twin, "__dict__", child.__dict__)  # also later changes of one are changes of both
    add_mixin(twin, GatedTwin)
    return twin


def _calls(layer: nn.Module) -> Iterator[tuple[str, CallGate]]:
    """Yield the side of each gate of a layer, and the hook that calls it."""
    for side in ("input", "output"):
        yield from ((side, change) for change in changes_on(layer, side) if isinstance(change, CallGate))


def _move_gates(name: str, old: nn.Module, new: nn.Module) -> None:
    channels = normalised_channels(old)
    for side, call in _calls(old):
        if layers_with_change(new, side, call):
            continue
        if channels and normalised_channels(new) == channels and submodule(new, (call.gate,)) is None:
            new.add_module(call.gate, getattr(old, call.gate))
        if submodule(new, (call.gate,)) is not None:
            change_map(new, side, call)
        else:
            warnings.warn(
                f"{name}, a {own_class(old).__name__} in a GraphModule of torch.fx, is replaced by a "
                f"{own_class(new).__name__} that does not run its gate {call.gate}. Replace the layer first, then "
                f"insert gates; or remove the gates first with insertion.undo().",
                stacklevel=4,
            )


register_module_module_registration_hook(_twin_in_graph_module)  # pyright: ignore[reportArgumentType]  # says None
