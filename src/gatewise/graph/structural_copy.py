"""Copy the structure of a network, so that it can be run without a trace in the network itself.

A forward may write to buffers and attributes, and a deepcopy fails for many networks in use: those with tensors that
are part of a graph (weight norms, pruning masks, a map that was kept), or with locks, files and streams.
"""

# pyright: basic

import contextlib
import copy
import copyreg
import functools
import random
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset
from torch.utils.hooks import RemovableHandle

from gatewise.core._torch_compat import COMPILED_CALL, compiled_network, uncompiled

_SHARED = (type, BuiltinFunctionType, ModuleType, Dataset, DataLoader)
_IMMUTABLE = {type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype, torch.Size}
Network = TypeVar("Network", bound=nn.Module)
_OWN_WAY = ("__deepcopy__", "__setstate__", "__del__")


def structural_copy(model: Network) -> Network:
    """Return a copy of a network with its own modules, buffers and attributes, and with the same parameters.

    Modules, containers and plain Python objects are copied, tensors other than parameters are cloned, and methods and
    closures refer to the copies. What Python cannot copy (a lock, a file, a stream) is shared with the network. A
    module with several names has them in the copy, too.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> twin = structural_copy(net)
    >>> twin[0] is net[0], twin[0].weight is net[0].weight, twin[1].running_mean is net[1].running_mean
    (False, True, False)
    """
    return _Copier().copy(model)


def full_copy(model: Network) -> Network:
    """Return a structural copy of a network with its own parameters.

    A deepcopy would fail for many networks, and keeps functions whose variables hold the network itself.

    >>> from torch.nn.utils import prune
    >>> layer = prune.identity(nn.Linear(3, 2), "weight")  # its weight is the result of a product
    >>> twin = full_copy(layer)
    >>> twin.weight_orig is layer.weight_orig, torch.equal(twin.weight_orig, layer.weight_orig)
    (False, True)
    """
    return _Copier(own_parameters=True).copy(model)


@contextlib.contextmanager
def rehearsal(model: Network) -> Iterator[Network]:
    """Yield a structural copy in eval mode, and restore the states of the random number generators on exit.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    >>> with rehearsal(net) as copied:
    ...     net.training, copied.training, copied[0].training
    (True, False, False)
    """
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    kinds = {device.type for device in devices} - {"cpu", "mps"}  # that of the CPU is always kept, mps cannot
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([]))
        for kind in kinds:
            if hasattr(getattr(torch, kind, None), "get_rng_state"):
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

    def __init__(self, own_parameters: bool = False) -> None:
        self._own_parameters = own_parameters
        self._copies: dict[int, tuple[Any, Any]] = {}
        self._globals: dict[int, dict[str, Any]] = {}  # variables of files, by the identity of the original ones

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
        kind = type(value)
        if isinstance(value, Tensor | torch.jit.ScriptModule):
            return copy.deepcopy(value) if self._owns(value) else _tensor_or_script(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if kind is FunctionType:
            written = uncompiled(value)
            return self._function(value) if written is value else self.copy(written)
        if kind is MethodType:
            return MethodType(value.__func__, self.copy(value.__self__))
        if kind is functools.partial:
            named = {name: self.copy(argument) for name, argument in value.keywords.items()}
            copied = functools.partial(self.copy(value.func), *map(self.copy, value.args), **named)
            vars(copied).update({name: self.copy(attribute) for name, attribute in vars(value).items()})
            return copied
        if kind is tuple:
            return tuple(map(self.copy, value))
        if kind is weakref.ref:
            return weakref.ref(self.copy(value())) if id(value()) in self._copies else value
        return self._object(value)

    def _owns(self, value: Any) -> bool:
        return self._own_parameters and isinstance(value, nn.Parameter) and not is_lazy(value)

    def _function(self, function: Any) -> Any:
        """Return a function with the copies of all that leads to a module: in its closure, defaults and globals."""
        if not leads_to_module(function):
            return function
        cells = function.__closure__ or ()
        closure = tuple(CellType() if leads_to_module(_contents(cell)) else cell for cell in cells)
        copied = FunctionType(
            function.__code__, self._globals_of(function), function.__name__, function.__defaults__, closure
        )
        self._remember(function, copied)  # before its variables are copied, since it may call itself
        for new, old in zip(closure, cells, strict=True):
            if new is not old:
                new.cell_contents = self.copy(_contents(old))
        copied.__defaults__ = self._led(function.__defaults__)
        copied.__kwdefaults__ = self._led(function.__kwdefaults__)
        vars(copied).update({name: self._led(attribute) for name, attribute in vars(function).items()})
        for name in _globals_leading_to_module(function):
            copied.__globals__[name] = self.copy(function.__globals__[name])
        return copied

    def _led(self, value: Any) -> Any:
        return self.copy(value) if leads_to_module(value) else value

    def _globals_of(self, function: Any) -> dict[str, Any]:
        """Return the globals of a function, or one copy of them if some lead to a module."""
        found = function.__globals__
        if not _globals_leading_to_module(function):
            return found
        return self._globals.setdefault(id(found), dict(found))

    def _module(self, module: nn.Module) -> nn.Module:
        copied = object.__new__(type(module))
        self._remember(module, copied)
        for name, value in vars(module).items():
            if name != COMPILED_CALL:  # it would call the network itself
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
    if kind is RemovableHandle:  # a lazy module removes its hook with it
        return object.__new__, (kind,), vars(value), None, None
    if own_way or kind.__reduce_ex__ is not object.__reduce_ex__:
        return None
    try:
        parts: Any = (*value.__reduce_ex__(4), None, None, None)[:5]
    except Exception:  # a lock, a file, a generator
        return None
    known = parts[0] in (copyreg.__newobj__, kind)  # pyright: ignore[reportAttributeAccessIssue]
    return parts if known else None


def _tensor_or_script(value: Any) -> Any:
    """Return a parameter as it is, a clone of another tensor, and a copy of what torch must copy itself."""
    try:
        if isinstance(value, torch.jit.ScriptModule):
            return copy.deepcopy(value)
        if is_lazy(value):  # a forward would give it values
            kind: Any = type(value)
            return kind(device=value.device, dtype=value.dtype)
        if isinstance(value, nn.Parameter):
            return value
        return value.detach().clone().requires_grad_(value.is_leaf and value.requires_grad)
    except Exception:  # it has no values
        return value


def leads_to_module(value: Any) -> bool:
    """Return whether a value is a module or a parameter, or has one in a closure, an attribute or an item.

    >>> layer = nn.ReLU()
    >>> leads_to_module(lambda x: layer(x)), leads_to_module([layer.forward]), leads_to_module(lambda x: x)
    (True, True, False)
    """
    seen: dict[int, Any] = {}  # the values themselves, since identities of those that are gone are used again
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, nn.Module | nn.Parameter):
            return True
        if id(found) not in seen:
            seen[id(found)] = found
            left += _held_by(found)
    return False


def _held_by(value: Any) -> Iterable[Any]:
    """Return what a function, a method or an object refers to; nothing for what a copy shares."""
    kind = type(value)
    if kind in _IMMUTABLE or isinstance(value, (*_SHARED, Tensor)):
        return ()
    if kind is FunctionType:
        closed = [_contents(cell) for cell in value.__closure__ or ()]
        named = [value.__globals__[name] for name in _own_globals(value)]
        return [*closed, value.__defaults__, value.__kwdefaults__, vars(value), *named]
    if kind is MethodType:
        return (value.__self__,)
    if kind is functools.partial:
        return (value.func, value.args, value.keywords)
    if kind is weakref.ref:
        return (value(),)
    if kind is tuple:
        return value
    parts = _parts_of(value)
    return () if parts is None else [*parts[1], parts[2], *(parts[3] or ()), *(item for _, item in parts[4] or ())]


def _own_globals(function: Any) -> list[str]:
    """Return the globals that a function names: networks, containers, and functions of the same file."""
    variables = function.__globals__
    found = {name: variables[name] for name in _names(function.__code__) if name in variables}
    return [
        name
        for name, value in found.items()
        if isinstance(value, (nn.Module, MethodType, functools.partial, list, tuple, dict))
        or (type(value) is FunctionType and value.__globals__ is variables)
    ]


def _names(code: CodeType) -> set[str]:
    """Return the names in a function and in those that it defines."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _globals_leading_to_module(function: Any) -> list[str]:
    return [name for name in _own_globals(function) if leads_to_module(function.__globals__[name])]


def _contents(cell: CellType) -> Any:
    """Return what a variable of a closure holds; None if it has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
