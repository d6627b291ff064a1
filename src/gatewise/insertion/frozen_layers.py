"""Frozen layers: what was trainable before, also where a conversion has replaced a layer or renamed a parameter.

Conversions such as SyncBatchNorm make new layers, which have neither the attributes nor the mixins of the old ones.
Therefore a hook of the network has the record of each frozen layer by path, and hands it to the layer there now.
Pruning, weight and spectral norm, and making them permanent, rename parameters: `weight` is `weight_orig`, `weight_g`
and `weight_v`, or `original0` and more of a child `parametrizations.weight`.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from gatewise.core._torch_compat import call_while_tracing
from gatewise.core.hooks import names_of, pre_hooks, remove_pre_hooks, submodule
from gatewise.insertion.attachment import normalised_channels
from gatewise.insertion.mixins import add_mixin, remove_mixin

_RECORD = "_record_of_freezing"  # attribute of a module: its `Record`
_RENAMED = re.compile("_(orig|g|v)$")
_PARAMETRIZATIONS = "parametrizations"


class Record:
    """What is known of a frozen layer.

    Attributes:
        before: requires_grad of its parameters before it was frozen, by name.
        origin: the record of the layer that was frozen first at this place.
        thawed: whether that layer, or one that replaced it, was thawed.
    """

    def __init__(self, origin: "Record | None" = None) -> None:
        self.before: dict[str, bool] = {}
        self.origin = self if origin is None else origin
        self.thawed = False

    def flag(self, name: str) -> bool | None:
        """Return requires_grad of a parameter before, also under a name that torch gave it since; None if unknown.

        >>> record = Record()
        >>> record.before = {"weight_g": True, "weight_v": True}
        >>> record.flag("weight"), record.flag("weight_v"), record.flag("bias")
        (True, True, None)
        """
        if name in self.before:
            return self.before[name]
        tensor = _RENAMED.sub("", name)
        return next((before for known, before in self.before.items() if _RENAMED.sub("", known) == tensor), None)


class KeepsStatistics(nn.Module):
    """`train` of a frozen normalisation layer: it stays in eval mode, its children follow `mode`."""

    def train(self, mode: bool = True) -> "KeepsStatistics":
        super().train(mode)
        self.training = False
        return self


class KeepFrozen:
    """Forward pre-hook of a network that hands records to layers in the place of frozen ones, and freezes norms there.

    Other new layers, such as a head for other classes, are trained if they are trainable.

    Args:
        model: the network, after it was frozen.
        inside: ids of the modules of gates.
    """

    def __init__(self, model: nn.Module, inside: Collection[int]) -> None:
        modules: dict[str, nn.Module] = dict(model.named_modules())
        self.layers = tuple(
            (names_of(path), record_of(layer), isinstance(layer, KeepsStatistics))
            for path, layer in modules.items()
            if _RECORD in vars(layer) and id(layer) not in inside
        )

    def __call__(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        _keep_frozen(self, module)


@call_while_tracing
def _keep_frozen(hook: KeepFrozen, module: nn.Module) -> None:
    for names, record, is_norm in hook.layers:
        if record.origin.thawed:
            continue
        layer = submodule(module, names)
        if layer is not None and not hasattr(layer, _RECORD):
            _take_place(layer, record, is_norm)
        elif layer is None and names[-2:-1] == (_PARAMETRIZATIONS,):
            _return_to_layer(submodule(module, names[:-2]), names[-1], record)


def _take_place(layer: nn.Module, record: Record, is_norm: bool) -> None:
    """Give a layer the record of the one that it replaced, for parameters that are frozen."""
    own = Record(record.origin)
    setattr(layer, _RECORD, own)
    if is_norm and normalised_channels(layer) is not None:
        keep_statistics(layer)
        layer.requires_grad_(False)
    frozen = {name for name, parameter in layer.named_parameters(recurse=False) if not parameter.requires_grad}
    own.before = {name: before for name, before in record.before.items() if name in frozen}


def _return_to_layer(layer: nn.Module | None, name: str, record: Record) -> None:
    """Record a parameter whose parametrisation, a module with a record, was removed from a layer."""
    if layer is not None and record.before:
        record_of(layer).before.setdefault(name, any(record.before.values()))


def _with_parametrisations(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a layer, those of its parametrisations under the name of the tensor."""
    yield from layer.named_parameters(recurse=False, remove_duplicate=False)
    if parametrize.is_parametrized(layer):
        for name, parametrisation in getattr(layer, _PARAMETRIZATIONS).items():
            for parameter in parametrisation.parameters(recurse=False):
                yield name, parameter


def record_of(layer: nn.Module) -> Record:
    """Return the record of a layer, a new one if it has none.

    >>> layer = nn.Linear(1, 1)
    >>> record_of(layer) is record_of(layer)
    True
    """
    return vars(layer).setdefault(_RECORD, Record())


def flags_before(model: nn.Module) -> dict[int, bool]:
    """Return the requires_grad before freezing of each parameter that is in a record, by the id of the parameter."""
    hand_over_records(model)
    return {
        id(parameter): before
        for layer in model.modules()
        if _RECORD in vars(layer)
        for name, parameter in _with_parametrisations(layer)
        if (before := record_of(layer).flag(name)) is not None
    }


def keep_statistics(layer: nn.Module) -> None:
    """Keep a layer in eval mode, also after `train()`."""
    add_mixin(layer, KeepsStatistics)
    record_of(layer)
    layer.training = False


def keep_frozen(model: nn.Module, inside: Collection[int]) -> None:
    """Let a network that was just frozen keep the records of its layers; `inside` are the ids of gates' modules."""
    remove_pre_hooks(model, KeepFrozen)
    model.register_forward_pre_hook(KeepFrozen(model, inside))


def hand_over_records(model: nn.Module) -> None:
    """Give layers that have replaced frozen ones their records, as the next forward would."""
    for module in model.modules():
        for hook in pre_hooks(module, KeepFrozen):
            hook(module, ())


def thaw(model: nn.Module) -> None:
    """Restore what the records say, let normalisation follow train() again, and end the records.

    Layers that replaced frozen ones have theirs after `hand_over_records`.
    """
    for layer in model.modules():
        remove_pre_hooks(layer, KeepFrozen)
        record: Record | None = vars(layer).pop(_RECORD, None)
        if record is None:
            continue
        record.origin.thawed = True
        for name, parameter in _with_parametrisations(layer):
            if (before := record.flag(name)) is not None:
                parameter.requires_grad_(before)
        if isinstance(layer, KeepsStatistics):
            remove_mixin(layer, KeepsStatistics)
            layer.train(model.training)
