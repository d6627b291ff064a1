"""Hooks that change the map at a place, on a layer's input or its output."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[nn.Module, Tensor], Tensor]  # of a layer and the map on its side


@dataclass(frozen=True, eq=False)
class _OnInput:
    change: Change
    argument: str  # under which the layer's forward takes the map, if it is called by keyword

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
    """Let `change(layer, map)` stand in for the map on one side of `layer`, "input" or "output", at every call.

    `change` must not hold the layer or its children, so that deepcopied and unpickled layers call their own.

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
    """Take away what `change_map` put on the layers of `model` if it is of these classes; the rest stays.

    A copied network has no handles for its hooks, so they are found by what they do.

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
