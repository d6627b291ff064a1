"""Override methods of one module temporarily: put a mixin before its class, as torch's parametrizations do."""

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from gatewise import errors

Mixins = tuple[type[nn.Module], ...]
_PARTS = "_gatewise_parts"  # attribute of a composed class: (the module's own class, the mixins before it)


def add_mixin(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Let the methods of `mixin` override those of a module until `remove_mixin` is called.

    The module's class becomes a subclass of its original class with the same name. Attributes and state dict do not
    change. Copies and pickles keep the mixin. Adding a mixin twice has no effect.
    """
    own, mixins = _parts(type(module))
    if not isinstance(module, mixin):
        _become(module, own, (mixin, *mixins))


def remove_mixin(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Undo `add_mixin`.

    Raises:
        InvalidValueError: the module's class was changed after `add_mixin`.
    """
    own, mixins = _parts(type(module))
    if mixin not in mixins:
        raise errors.InvalidValueError(
            f"the class of this {own.__name__} was changed after gatewise changed it, for example by a "
            f"parametrization. Undo that change first."
        )
    _become(module, own, tuple(other for other in mixins if other is not mixin))


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class without mixins."""
    return _parts(type(module))[0]


def is_batch_norm_act(module: nn.Module) -> bool:
    """Return whether a layer is timm's `BatchNormAct2d`, a batch norm followed by a dropout and an activation."""
    timm_layers = sys.modules.get("timm.layers")  # without timm there is no such layer
    return timm_layers is not None and own_class(module) is timm_layers.BatchNormAct2d


def _parts(kind: type[nn.Module]) -> tuple[type[nn.Module], Mixins]:
    return vars(kind).get(_PARTS, (kind, ()))


def _become(module: nn.Module, own: type[nn.Module], mixins: Mixins) -> None:
    object.__setattr__(module, "__class__", _composed(own, mixins) if mixins else own)


@functools.lru_cache(maxsize=64)
def _composed(own: type[nn.Module], mixins: Mixins) -> type[nn.Module]:
    """Return a subclass of the mixins and `own` whose instances can be copied and pickled."""

    def reduced(module: nn.Module, protocol: Any) -> Any:
        make, arguments, *rest = own.__reduce_ex__(module, protocol)  # type: ignore[misc]
        if type(module) is not kind:  # an instance of a further subclass
            return make, arguments, *rest
        arguments = tuple(own if argument is kind else argument for argument in arguments)
        return _make_again, (mixins, make, arguments), *rest

    def deepcopied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        _become(module, own, ())  # a GraphModule searches for its class in its method resolution order
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
