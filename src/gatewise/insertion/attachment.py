"""Attach gates to layers, and keep them attached when layers are replaced.

Conversions such as SyncBatchNorm, frozen batch norms and eager-mode fusion make new layers and copy no hooks. Therefore
hooks of the network and of its parts check before every forward that each inserted gate is still a child of a layer
that calls it.
"""

import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from gatewise.core._torch_compat import call_while_tracing
from gatewise.core.hooks import (
    change_map,
    count_change,
    layers_with_change,
    modules_around,
    names_of,
    remove_change,
    submodule,
)
from gatewise.core.symbolic import call_as_node

_SHOWN = 3  # lost gates that a warning names


@dataclass(frozen=True)
class CallGate:
    """Hook that calls a gate on the input or output of its layer.

    It stores the name of the gate, not the gate, so that a deepcopied or unpickled layer calls its own copy.

    Attributes:
        gate: the gate's name in the layer.
        channel_axis: axis of the map with the channels.
        key: equal in all copies of one inserted gate.
    """

    gate: str
    channel_axis: int
    key: str = ""

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        gate = getattr(layer, self.gate)
        if isinstance(x, fx.Proxy):
            gate = partial(call_as_node, gate)
        if self.channel_axis == 1:
            return gate(x)
        return gate(x.movedim(self.channel_axis, 1)).movedim(1, self.channel_axis)


@dataclass(frozen=True)
class Attachment:
    """A gate, the layer it was attached to, and the hook that calls it.

    Attributes:
        layer: names on the path of the layer in the network.
        side: "input" or "output" of the layer.
        call: what the hook does.
        gate: the gate.
        normalised: number of channels if the layer normalises with running statistics, otherwise None.
    """

    layer: tuple[str, ...]
    side: str
    call: CallGate
    gate: nn.Module
    normalised: int | None

    @property
    def path(self) -> str:
        """Path of the gate in the network."""
        return ".".join([*self.layer, self.call.gate])

    def holds(self, model: nn.Module) -> bool:
        """Return whether the layer has the gate as a child and calls it once."""
        layer = submodule(model, self.layer)
        return (
            layer is not None
            and submodule(layer, (self.call.gate,)) is not None
            and count_change(layer, self.side, self.call) == 1
        )


def attach(layer: nn.Module, path: str, side: str, channel_axis: int, name: str, gate: nn.Module) -> Attachment:
    """Make a gate a child of a layer, and let the layer call it.

    Args:
        layer: the layer.
        path: its path in the network.
        side: "input" or "output": the map that the gate changes.
        channel_axis: axis of the map with the channels.
        name: of the gate in the layer; a number is appended if it is taken.
        gate: the gate.
    """
    unique, count = name, 1
    while hasattr(layer, unique):
        count += 1
        unique = f"{name}_{count}"
    call = CallGate(unique, channel_axis, uuid.uuid4().hex)
    layer.add_module(unique, gate)
    change_map(layer, side, call)
    return Attachment(names_of(path), side, call, gate, normalised_channels(layer))


def detach(model: nn.Module, attachment: Attachment) -> None:
    """Remove a gate and the hooks that call it, wherever in the network they are now."""
    for layer in list(model.modules()):
        if count_change(layer, attachment.side, attachment.call):
            remove_change(layer, attachment.side, attachment.call)
            if submodule(layer, (attachment.call.gate,)) is not None:
                delattr(layer, attachment.call.gate)
        for name, child in list(layer.named_children()):
            if child is attachment.gate:
                delattr(layer, name)


def keep_attached(model: nn.Module, attachments: Iterable[Attachment]) -> list[RemovableHandle]:
    """Let a network, and each part of it that contains gated layers, keep the gates attached."""
    attachments, settled = tuple(attachments), set[str]()
    handles: list[RemovableHandle] = []
    for path, part in modules_around(model, [attachment.layer for attachment in attachments]).items():
        inside = [one for one in attachments if one.layer[: len(path)] == path]
        local = tuple(replace(one, layer=one.layer[len(path) :]) for one in inside)
        handles.append(part.register_forward_pre_hook(KeepAttached(local, path, settled)))
    return handles


class KeepAttached:
    """Forward pre-hook of a module that attaches gates again whose layer was replaced, or warns that they are lost.

    It checks the structure only, so it does not matter whether the forward reaches a gate.

    Args:
        attachments: of the gates in the module; their layers are relative to it.
        path: of the module in the network.
        settled: keys of the gates that need no warning of a part of the network, shared by the hooks of all parts.
    """

    def __init__(
        self, attachments: tuple[Attachment, ...], path: tuple[str, ...] = (), settled: set[str] | None = None
    ) -> None:
        self.attachments = attachments
        self.path = path
        self.settled = set[str]() if settled is None else settled

    def __call__(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        _keep_attached(self, module)


@call_while_tracing
def _keep_attached(hook: KeepAttached, module: nn.Module) -> None:
    if all(attachment.holds(module) for attachment in hook.attachments):
        return
    lost: list[Attachment] = []
    kept: list[Attachment] = []
    for attachment in hook.attachments:
        found = attachment if attachment.holds(module) else _attached_again(module, attachment)
        kept.extend([found] if found else [])
        if found is None and not (hook.path and attachment.call.key in hook.settled):
            lost.append(attachment)
        if found is not attachment:
            hook.settled.add(attachment.call.key)
    hook.attachments = tuple(kept)  # a lost gate is named once
    if lost:
        warnings.warn(_warning(module, lost, hook.path), stacklevel=2)


def _attached_again(model: nn.Module, old: Attachment) -> Attachment | None:
    """Attach a gate to the layer that took the place of its own; return None if there is no such layer.

    The candidates, in this order: a layer that has the gate or a copy and calls it; a layer that has the gate; a layer
    that has the hook; and a norm with as many channels that replaced a norm with running statistics.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    callers = layers_with_change(model, old.side, old.call)
    moved = [path for path in callers if submodule(layers[path], (old.call.gate,)) is None]  # hooks without their gate
    owners = [path for path, layer in layers.items() if any(child is old.gate for child in layer.children())]
    same_norm = [".".join(old.layer)] if old.normalised else []
    candidates = [
        *(path for path in callers if path not in moved),
        *owners,
        *(path for path in moved if type(layers[path]).forward is not nn.Sequential.forward),
        *(path for path in same_norm if normalised_channels(layers.get(path)) == old.normalised),
    ]
    for path in moved:
        if path not in candidates[:1]:
            remove_change(layers[path], old.side, old.call)
    if not candidates:
        return None
    new = replace(old, layer=names_of(candidates[0]))
    layer = layers[candidates[0]]
    if submodule(layer, (new.call.gate,)) is None:
        anchor = next(layer.parameters(), next(layer.buffers(), None))
        layer.add_module(new.call.gate, new.gate if anchor is None else new.gate.to(anchor.device))
        new.gate.train(layer.training)
    if count_change(layer, new.side, new.call) != 1:
        remove_change(layer, new.side, new.call)
        change_map(layer, new.side, new.call)
    return new


def normalised_channels(layer: nn.Module | None) -> int | None:
    """Return the number of channels if a layer normalises with running statistics, otherwise None."""
    mean = getattr(layer, "running_mean", None)
    return len(mean) if isinstance(mean, Tensor) else None


def _warning(module: nn.Module, lost: list[Attachment], path: tuple[str, ...]) -> str:
    """Return the message for gates that a module, at this path in the network, has lost."""
    network = type(module).__name__
    within = "".join(f"{name}." for name in path)
    reasons: list[str] = []
    for attachment in lost[:_SHOWN]:
        layer = submodule(module, attachment.layer)
        fate = "no longer exists" if layer is None else f"is now a {type(layer).__name__} without it"
        host = within + ".".join(attachment.layer)
        reasons.append(f"{within}{attachment.path} ({host.rstrip('.') or 'the network'} {fate})")
    more = f", and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return (
        f"{network} no longer runs {len(lost)} of its gates: {'; '.join(reasons)}{more}. Their layers were replaced "
        f"after the insertion. Insert gates into the converted network with insert_gates(), or call insertion.undo() "
        f"before the conversion if the gates are not needed."
    )
