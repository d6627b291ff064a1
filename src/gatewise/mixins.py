"""Methods that one module has for a while: mixins in front of its class, as torch's parametrizations change a class."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from gatewise import errors

Mixins = tuple[type[nn.Module], ...]
_PARTS = "_gatewise_parts"  # of a composed class: the module's own class, and the mixins in front of it


def add_mixin(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Put the methods of `mixin` before those of a module's class, until `remove_mixin`.

    The module's class is then a subclass of its own one, under the same name. Attributes and state dict stay as they
    are; copies and pickles keep the mixin. A module that has it already is left alone.
    """
    own, mixins = _parts(type(module))
    if not isinstance(module, mixin):
        _become(module, own, (mixin, *mixins))


def remove_mixin(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Take away what `add_mixin` put there.

    Raises:
        InvalidValueError: somebody has changed the module's class since.
    """
    own, mixins = _parts(type(module))
    if mixin not in mixins:
        raise errors.InvalidValueError(
            f"the class of this {own.__name__} was changed after gatewise had changed it, as a parametrization does. "
            f"Undo that first."
        )
    _become(module, own, tuple(other for other in mixins if other is not mixin))


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class without the mixins in front of it."""
    return _parts(type(module))[0]


def _parts(kind: type[nn.Module]) -> tuple[type[nn.Module], Mixins]:
    return vars(kind).get(_PARTS, (kind, ()))


def _become(module: nn.Module, own: type[nn.Module], mixins: Mixins) -> None:
    object.__setattr__(module, "__class__", _composed(own, mixins) if mixins else own)


@functools.lru_cache(maxsize=64)
def _composed(own: type[nn.Module], mixins: Mixins) -> type[nn.Module]:
    """Return the class with the mixins' methods before its own, and its own ways of being copied and pickled."""

    def reduced(module: nn.Module, protocol: Any) -> Any:
        make, arguments, *rest = own.__reduce_ex__(module, protocol)  # type: ignore[misc]
        if type(module) is not kind:  # of a class that somebody derived from this one
            return make, arguments, *rest
        arguments = tuple(own if argument is kind else argument for argument in arguments)
        return _make_again, (mixins, make, arguments), *rest

    def deepcopied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        _become(module, own, ())  # torch.fx's look for themselves in the list of their classes
        try:
            twin = copy.deepcopy(module, memo)
        finally:
            _become(module, own, mixins)
        _become(twin, type(twin), mixins)
        return twin

    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    copying = {"__deepcopy__": deepcopied} if hasattr(own, "__deepcopy__") else {}
    namespace = {**names, **copying, "__reduce_ex__": reduced, _PARTS: (own, mixins)}
    metaclass: Any = type(own)
    kind = metaclass(own.__name__, (*mixins, own), namespace)
    return kind


def _make_again(mixins: Mixins, make: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    module = make(*arguments)
    _become(module, type(module), mixins)
    return module
