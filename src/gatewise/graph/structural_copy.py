"""Copy the structure of a network, so that it can be run without a trace in the network itself.

A forward may write to buffers and attributes, and a deepcopy fails for many networks in use: those with tensors that
are part of a graph (weight norms, pruning masks, a map that was kept), or with locks, files and streams.
"""

# pyright: basic

import contextlib
import copyreg
import functools
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gatewise.core._torch_compat import compiled_network, uncompiled

_SHARED = (nn.Parameter, type, BuiltinFunctionType, ModuleType, Dataset, DataLoader, torch.jit.ScriptModule)
_IMMUTABLE = {type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype, torch.Size}
_MADE_BY_THEMSELVES = (set, frozenset, OrderedDict, defaultdict, deque, Counter)  # their reduction calls the class
_OWN_WAY = ("__deepcopy__", "__setstate__", "__del__")


def structural_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network with its own modules, buffers and attributes, and with the same parameters.

    Modules, containers and plain Python objects are copied, tensors other than parameters are cloned, and bound methods
    are bound to the copies. What Python cannot copy (a lock, a file, a closure) is shared with the network. A module
    with several names has them in the copy, too.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> twin = structural_copy(net)
    >>> twin[0] is net[0], twin[0].weight is net[0].weight, twin[1].running_mean is net[1].running_mean
    (False, True, False)
    """
    return _Copier().copy(model)


@contextlib.contextmanager
def rehearsal(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a structural copy in eval mode, and restore the states of the random number generators on exit.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    >>> with rehearsal(net) as copied:
    ...     net.training, copied.training, copied[0].training
    (True, False, False)
    """
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    accelerators = {device.type for device in devices} - {"cpu", "meta"}
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([]))
        for kind in accelerators:
            own = [device for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(own, device_type=kind))
        try:
            copied = structural_copy(model)
            for module in copied.modules():
                module.training = False
            yield copied
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


class _Copier:
    """Copies of values, each made once; the originals are kept, since they are known by their identity."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Any, Any]] = {}

    def copy(self, value: Any) -> Any:
        """Return the copy of a value, or the value itself if it is immutable or cannot be copied."""
        if type(value) in _IMMUTABLE or isinstance(value, _SHARED):
            return value
        if id(value) not in self._copies:
            copied = self._new(value)
            if id(value) not in self._copies:
                self._remember(value, copied)
        return self._copies[id(value)][1]

    def _remember(self, value: Any, copied: Any) -> None:
        self._copies[id(value)] = value, copied

    def _new(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return _cloned(value)
        kind = type(value)
        if kind is FunctionType:
            original = uncompiled(value)
            return value if original is value else self.copy(original)
        if kind is MethodType:
            return MethodType(value.__func__, self.copy(value.__self__))
        if kind is functools.partial:
            named = {name: self.copy(argument) for name, argument in value.keywords.items()}
            return functools.partial(self.copy(value.func), *map(self.copy, value.args), **named)
        if kind is tuple:
            return tuple(map(self.copy, value))
        return self._object(value)

    def _module(self, module: nn.Module) -> nn.Module:
        copied = object.__new__(type(module))
        self._remember(module, copied)
        for name, value in vars(module).items():
            if name != "_compiled_call_impl":  # it would call the network itself
                vars(copied)[name] = self.copy(value)
        network = compiled_network(module)
        if network is not None:
            vars(copied)["forward"] = self.copy(network).__call__
        return copied

    def _object(self, value: Any) -> Any:
        """Return a copy of a container or of an instance of a class that leaves copying to Python."""
        parts = _parts_of(value)
        if parts is None:
            return value
        make, arguments, state, items, pairs = parts
        try:
            copied = make(*(argument if argument is type(value) else self.copy(argument) for argument in arguments))
            self._remember(value, copied)
            attributes, slots = state if isinstance(state, tuple) else (state, None)
            if attributes:
                vars(copied).update({name: self.copy(attribute) for name, attribute in attributes.items()})
            for name, attribute in (slots or {}).items():
                object.__setattr__(copied, name, self.copy(attribute))
            for item in items or ():
                copied.append(self.copy(item))
            for key, item in pairs or ():
                copied[self.copy(key)] = self.copy(item)
        except Exception:  # in code of the class
            self._remember(value, value)
        return self._copies[id(value)][1]


def _parts_of(value: Any) -> tuple[Callable[..., Any], Any, Any, Any, Any] | None:
    """Return how Python would make the value again; None if it cannot, or if the class has its own way."""
    kind = type(value)
    own_way = isinstance(kind.__new__, FunctionType) or any(hasattr(kind, name) for name in _OWN_WAY)
    if own_way or kind.__reduce_ex__ is not object.__reduce_ex__:
        return None
    try:
        parts: Any = (*value.__reduce_ex__(4), None, None, None)[:5]
    except Exception:  # a lock, a file, a generator
        return None
    known = parts[0] in (copyreg.__newobj__, *_MADE_BY_THEMSELVES)  # pyright: ignore[reportAttributeAccessIssue]
    return parts if known else None


def _cloned(tensor: Tensor) -> Tensor:
    try:
        return tensor.detach().clone()
    except Exception:  # it has no values yet, as in a lazy module
        return tensor
