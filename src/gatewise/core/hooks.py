"""Forward hooks of layers: hooks that replace the map at a place, and the only use of torch's hook dictionaries."""

# pyright: basic

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[nn.Module, Tensor], Tensor]  # (layer, map) -> map
Hook = TypeVar("Hook")

FORWARD_OF_ACCELERATE = "_original_forward"  # attribute of a network whose forward Accelerator.prepare has replaced

# torch has no public way to list hooks, to remove one without its handle, or to move them to another module.
_DICTIONARIES = {"input": "_forward_pre_hooks", "output": "_forward_hooks"}
_OPTIONS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


@dataclass(frozen=True, eq=False)
class _OnInput:
    change: Change
    argument: str  # name of the parameter of forward, for calls by keyword

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any] | None = None) -> Any:
        if named is None:  # torch.ao.quantization registers hooks of a layer on its replacement without with_kwargs
            return (self.change(layer, args[0]), *args[1:])
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
    >>> count_hooks(layer, "output")
    0
    """
    for layer in model.modules():
        for side in _DICTIONARIES:
            _remove(layer, side, lambda hook: isinstance(_change_of(hook), kinds))


def remove_change(layer: nn.Module, side: str, change: Change) -> None:
    """Remove all hooks that make a change equal to `change` on one side of a layer."""
    _remove(layer, side, lambda hook: _change_of(hook) == change)


def count_change(layer: nn.Module, side: str, change: Change) -> int:
    """Return how many hooks on one side of a layer make a change equal to `change`.

    >>> layer = nn.ReLU()
    >>> _ = change_map(layer, "output", print)
    >>> count_change(layer, "output", print), count_change(layer, "input", print)
    (1, 0)
    """
    return sum(_change_of(hook) == change for hook in _hooks(layer, side).values())


def layers_with_change(model: nn.Module, side: str, change: Change) -> list[str]:
    """Return the paths of the layers that make a change equal to `change` on one side.

    >>> net = nn.Sequential(nn.ReLU(), nn.ReLU())
    >>> _ = change_map(net[1], "output", print)
    >>> layers_with_change(net, "output", print)
    ['1']
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    return [path for path, layer in layers.items() if count_change(layer, side, change)]


def modules_around(model: nn.Module, paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], nn.Module]:
    """Return the network and each module in it that contains a submodule at one of the paths, by its own path.

    >>> net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential())
    >>> list(modules_around(net, [("0", "0")]))
    [(), ('0',)]
    """
    around = {(), *(names[:end] for names in paths for end in range(len(names)))}
    return {names: model.get_submodule(".".join(names)) for names in sorted(around)}


def names_of(path: str) -> tuple[str, ...]:
    """Return the names on the path of a submodule, for `submodule`.

    >>> names_of("layer1.0"), names_of("")
    (('layer1', '0'), ())
    """
    return tuple(path.split(".")) if path else ()


def submodule(model: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """Return the submodule at the path of these names, or None; quicker than `get_submodule`."""
    module: nn.Module | None = model
    for name in names:
        module = module._modules.get(name)
        if module is None:
            return None
    return module


def count_hooks(layer: nn.Module, side: str | None = None) -> int:
    """Return the number of forward hooks on one side of a layer, or on both.

    >>> layer = nn.ReLU()
    >>> _ = layer.register_forward_hook(print)
    >>> count_hooks(layer), count_hooks(layer, "input")
    (1, 0)
    """
    return sum(len(_hooks(layer, one)) for one in (_DICTIONARIES if side is None else (side,)))


def pre_hooks(module: nn.Module, kind: type[Hook]) -> list[Hook]:
    """Return the hooks of a class that a module calls before its forward."""
    return [hook for hook in _hooks(module, "input").values() if isinstance(hook, kind)]


def remove_pre_hooks(module: nn.Module, kind: type) -> None:
    """Remove the hooks of a class that a module calls before its forward, also from a copy, which has no handles.

    >>> layer = nn.ReLU()
    >>> _ = layer.register_forward_pre_hook(print)
    >>> remove_pre_hooks(layer, type(print))
    >>> count_hooks(layer)
    0
    """
    _remove(module, "input", lambda hook: isinstance(hook, kind))


def changes_on(layer: nn.Module, side: str) -> list[Change]:
    """Return the changes that `change_map` makes on one side of a layer, in the order of their calls."""
    return [hook.change for hook in _hooks(layer, side).values() if isinstance(hook, _OnInput | _OnOutput)]


def _hooks(layer: nn.Module, side: str) -> dict[int, Any]:
    return getattr(layer, _DICTIONARIES[side])


def _change_of(hook: Any) -> Change | None:
    return getattr(hook, "change", None)


def _remove(layer: nn.Module, side: str, is_meant: Callable[[Any], bool]) -> None:
    hooks = _hooks(layer, side)
    for number in [n for n, hook in hooks.items() if is_meant(hook)]:
        del hooks[number]
        for option in _OPTIONS:
            getattr(layer, option).pop(number, None)
