"""Hooks that replace the map at a place: the input or the output of a layer."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[nn.Module, Tensor], Tensor]  # (layer, map) -> map


@dataclass(frozen=True, eq=False)
class _OnInput:
    change: Change
    argument: str  # name of the parameter of forward, for calls by keyword

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (self.change(layer, args[0]), *args[1:]), named
        return args, {**named, self.argument: self.change(layer, named[self.argument])}


@dataclass(frozen=True, eq=False)
class _OnOutput:
    change: Change

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        return self.change(layer, output)


def change_map(layer: nn.Module, side: str, change: Change) -> RemovableHandle:
    """Replace the map on one side of `layer` with `change(layer, map)` at every call.

    `change` must not reference the layer or its children: deepcopied and unpickled layers would use the originals.

    Args:
        layer: the layer to hook.
        side: "input" or "output".
        change: (layer, map) -> map.

    Returns:
        The handle that removes the hook.

    >>> import torch
    >>> layer = nn.ReLU()
    >>> _ = change_map(layer, "input", lambda _, x: -x)
    >>> layer(torch.tensor([-1.0, 2.0])), layer(input=torch.tensor([-3.0]))
    (tensor([1., 0.]), tensor([3.]))
    """
    if side == "output":
        return layer.register_forward_hook(_OnOutput(change))
    argument = next(iter(inspect.signature(layer.forward).parameters))
    return layer.register_forward_pre_hook(_OnInput(change, argument), with_kwargs=True)


def remove_changes(model: nn.Module, kinds: tuple[type, ...]) -> None:
    """Remove the hooks of `change_map` from all layers of `model` if their `change` is an instance of `kinds`.

    This also works on a copied network, for which there are no handles.

    >>> layer = nn.ReLU()
    >>> class Negate:
    ...     def __call__(self, _, x):
    ...         return -x
    >>> _ = change_map(layer, "output", Negate())
    >>> remove_changes(nn.Sequential(layer), (Negate,))
    >>> len(layer._forward_hooks)
    0
    """
    for layer in model.modules():
        both: list[dict[int, Any]] = [layer._forward_hooks, layer._forward_pre_hooks]
        for hooks in both:
            for number in [n for n, hook in hooks.items() if isinstance(getattr(hook, "change", None), kinds)]:
                del hooks[number]
                layer._forward_pre_hooks_with_kwargs.pop(number, None)
