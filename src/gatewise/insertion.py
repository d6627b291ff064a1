"""Put gates into any network, list them, check them, undo it.

A gate becomes a child of the layer that it guards and is called by a hook on that layer. So the network's own
parameters keep their names, its class and methods stay, and deepcopy, pickle, export and compile go on working.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gatewise import _validation, errors
from gatewise._types import Example
from gatewise.places import Place, Skipped, change_map, evaluation_mode
from gatewise.places.selection import LayerTypes, Names, candidates, selection
from gatewise.registry import Gate, gate_names, gate_spec
from gatewise.spec import GateChoice, Gates


@dataclass(frozen=True)
class _CallGate:
    """Calls a gate on its layer's input or output.

    It holds the gate's name, not the gate, so that a deepcopied or unpickled layer calls its own copy.
    """

    gate: str
    channel_axis: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        gate = getattr(layer, self.gate)
        if self.channel_axis == 1:
            return gate(x)
        return gate(x.movedim(self.channel_axis, 1)).movedim(1, self.channel_axis)


@dataclass
class Insertion:
    """What `insert_gates` did to one network.

    Attributes:
        model: the network, changed in place.
        places: where the gates sit.
        gates: path of each gate in the network -> gate.
        skipped: candidates that were left out, each with the reason.
    """

    model: nn.Module
    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]
    gates: dict[str, Gate] = field(default_factory=dict[str, Gate])
    _handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle], repr=False)

    def __repr__(self) -> str:
        return f"Insertion({len(self.gates)} gates in {type(self.model).__name__}, {len(self.skipped)} left out)"

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that are guarded, in the network's order."""
        return tuple(place.layer for place in self.places)

    def check(self, *example: Example) -> tuple[str, ...]:
        """Run one forward in eval mode and return the paths of gates that it never reached.

        A gate is not reached where the network reads its layer's weight instead of calling the layer. Training
        flags and buffers are afterwards as before.
        """
        reached: set[str] = set()
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        handles = [
            gate.register_forward_pre_hook(lambda *_, path=path: reached.add(path)) for path, gate in self.gates.items()
        ]
        try:
            with evaluation_mode(self.model), torch.no_grad():
                self.model(*example)
        finally:
            for handle in handles:
                handle.remove()
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        return tuple(path for path in self.gates if path not in reached)

    def undo(self) -> None:
        """Take the gates out again; the network's state dict is then bit for bit what it was."""
        for handle in self._handles:
            handle.remove()
        for path in self.gates:
            layer, _, name = path.rpartition(".")
            delattr(self.model.get_submodule(layer), name)
        self.gates, self.places, self._handles = {}, (), []


def insert_gates(
    model: nn.Module,
    gate: str | GateChoice | type[Gate],
    *,
    place: str | None = None,
    before: LayerTypes | None = None,
    after: LayerTypes | None = None,
    include: Names | None = None,
    exclude: Names | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    example: Example = None,
    **options: Any,
) -> Insertion:
    """Put a gate at every matching place of `model`, in place, and return a handle that lists, checks and undoes it.

    Args:
        model: any network.
        gate: a registered name, a string such as "gct:mode=l1@inner", a `GateChoice`, or a `Gate` class.
        place: "before_conv", "inner", "residual_end" or "stage_end"; without it, before= or after=, the place of the
            gate's paper.
        before: layer types whose input is gated instead.
        after: layer types whose output is gated instead.
        include: keeps only layers whose path matches: a regular expression (searched for, so "layer2" keeps
            everything inside it), or a list of paths, each standing for the layer and all inside it.
        exclude: leaves out layers, in the same two forms.
        where: keeps only layers for which where(path, layer) is true.
        example: an input (or tuple of inputs), for networks whose input size cannot be guessed.
        **options: of the gate.

    Refused, with ValueError: matching nothing, a listed path that does not exist, more than one of place, before and
    after. A freshly inserted gct or gc leaves every output bit for bit as it was.

    A checkpoint of the plain network loads before and after, with strict=True too: gates that it knows nothing of
    keep their values.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> insertion = insert_gates(net, "gct", mode="l1", exclude=["0"])
    >>> insertion.names, list(insertion.gates)
    (('2',), ['2.gct'])
    >>> insertion.undo()
    """
    _validation.check_module("insert_gates", model)
    if where is not None and not callable(where):
        raise errors.InvalidTypeError(
            f"where must be a function of name and layer, got {_validation.safe_repr(where)}."
        )
    choice, make = _resolve(gate, place, options)
    if sum(option is not None for option in (choice.place if choice else place, before, after)) > 1:
        raise errors.InvalidValueError("give only one of place=, before= and after=.")
    place = place or (choice.place or gate_spec(choice.name).place if choice else None)
    there = candidates(model, place, before, after, example)
    why_not = selection(model, include, exclude, where)
    chosen = [(found, why_not(found.layer)) for found in there.found]
    places = tuple(found for found, reason in chosen if not reason)
    skipped = [*there.skipped, *(Skipped(found.layer, reason) for found, reason in chosen if reason)]
    if not places:
        named = str(choice) if choice else _snake_case(gate)
        listed = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3]) or "the network has no such place"
        raise errors.InvalidValueError(
            f"no place for {named} in {type(model).__name__} ({listed}). "
            f"Choose another place, for example {named.partition('@')[0]}@before_conv or @stage_end; in Python also "
            f"layers with before= or after=."
        )
    insertion = Insertion(model, places, tuple(skipped))
    name = choice.name if choice else _snake_case(gate)
    try:
        for found in places:
            _attach(insertion, found, name, make)
    except BaseException:
        insertion.undo()
        raise
    forgive = _ForgivePlainCheckpoint(tuple(insertion.gates))
    insertion._handles.append(model.register_load_state_dict_post_hook(forgive))
    return insertion


def insert_all(model: nn.Module, gates: Gates, example: Example = None) -> list[Insertion]:
    """Insert each chosen gate in turn, all at places of the network as it was before the first."""
    return [insert_gates(model, choice, example=example) for choice in gates]


def _resolve(
    gate: str | GateChoice | type[Gate], place: str | None, options: dict[str, Any]
) -> tuple[GateChoice | None, Callable[..., Gate]]:
    """Return the choice (None for a class) and how to make one gate."""
    if isinstance(gate, type) and issubclass(gate, Gate):
        return None, partial(gate, **options)
    if not isinstance(gate, str | GateChoice):
        raise errors.InvalidTypeError(
            f"gate must be a name such as 'gct', a GateChoice or a Gate class, got {_validation.safe_repr(gate)}."
        )
    choice = GateChoice.parse(gate) if isinstance(gate, str) else gate
    if place is not None:
        _validation.check_str("place", place)
    if place and choice.place and place != choice.place:
        raise errors.InvalidValueError(f"{gate!r} names a place and so does place={place!r}; give one.")
    choice = GateChoice(choice.name, {**choice.options, **options}, place or choice.place)
    return choice, partial(gate_spec(choice.name).make, **choice.options)


def _attach(insertion: Insertion, place: Place, name: str, make: Callable[..., Gate]) -> None:
    model = insertion.model
    layer = model.get_submodule(place.layer)
    if isinstance(layer, nn.Sequential):
        raise errors.InvalidValueError(
            f"{place.layer!r} is a Sequential, which would run the gate itself; choose a layer inside it."
        )
    options: dict[str, Any] = {} if place.spatial_dims == 2 else {"spatial_dims": place.spatial_dims}
    if options and name in gate_names() and "spatial_dims" not in gate_spec(name).options:
        raise errors.InvalidValueError(
            f"{name} is for maps of two spatial axes, but {place.layer!r} has {place.spatial_dims}. Choose another "
            f"gate, or leave the layer out with exclude=."
        )
    anchor = next((p for owner in (layer, model) for p in owner.parameters() if p.is_floating_point()), torch.empty(0))
    gate = make(place.channels, device=anchor.device, dtype=anchor.dtype, **options)
    gate.train(layer.training)
    unique, count = name, 1
    while hasattr(layer, unique):
        count += 1
        unique = f"{name}_{count}"
    layer.add_module(unique, gate)
    handle = change_map(layer, place.side, _CallGate(unique, place.channel_axis))
    insertion.gates[f"{place.layer}.{unique}" if place.layer else unique] = gate
    insertion._handles.append(handle)


def _snake_case(gate: Any) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", gate.__name__).lower()


@dataclass(frozen=True)
class _ForgivePlainCheckpoint:
    """Drops the keys of one insertion's gates from the missing ones if the checkpoint holds none of them."""

    paths: tuple[str, ...]

    def __call__(self, model: nn.Module, incompatible: Any) -> None:
        missing: list[str] = incompatible.missing_keys
        gates = gates_in(model)
        own = [f"{path}.{key}" for path in self.paths if path in gates for key in gates[path].state_dict()]
        if not own:
            return
        for prefix in {key.removesuffix(own[0]) for key in missing if key.endswith(own[0])}:
            gate_keys = {prefix + key for key in own}
            if gate_keys <= set(missing):
                missing[:] = [key for key in missing if key not in gate_keys]


def gates_in(model: nn.Module) -> dict[str, Gate]:
    """Return every gate in the network, by its own path.

    >>> gates_in(nn.Sequential(nn.ReLU()))
    {}
    """
    _validation.check_module("gates_in", model)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return {path: module for path, module in modules.items() if isinstance(module, Gate)}


def gate_hosts(model: nn.Module) -> list[tuple[str, str, str]]:
    """Return for every gate that `insert_gates` put into the network its layer, the side of it, and its own path.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> gate_hosts(net)
    [('0', 'input', '0.gct')]
    """
    found: list[tuple[str, str, str]] = []
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, layer in modules.items():
        hooks: dict[str, dict[int, Any]] = {"input": layer._forward_pre_hooks, "output": layer._forward_hooks}
        for side, those in hooks.items():
            for hook in those.values():
                change = getattr(hook, "change", None)
                if isinstance(change, _CallGate) and change.channel_axis == 1:
                    found.append((path, side, f"{path}.{change.gate}" if path else change.gate))
    return found
