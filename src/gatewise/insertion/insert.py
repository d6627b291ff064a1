"""Insert gates into any network, list them, check them and remove them.

A gate becomes a child module of its layer and is called by a hook on that layer. So the names of all other parameters,
the class of the network and its methods do not change, and deepcopy, pickle, export and compile keep working.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.hooks import changes_on
from gatewise.core.symbolic import call_as_node
from gatewise.core.types import Example
from gatewise.gates.registry import Gate, gate_names, gate_spec
from gatewise.gates.spec import GateChoice, Gates
from gatewise.graph import Graph, Place, Skipped, change_map, evaluation_mode
from gatewise.graph.selection import LayerTypes, Names, candidates, selection


@dataclass(frozen=True)
class _CallGate:
    """Hook that calls a gate on the input or output of its layer.

    It stores the name of the gate, not the gate, so that a deepcopied or unpickled layer calls its own copy.
    """

    gate: str
    channel_axis: int

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        gate = getattr(layer, self.gate)
        if isinstance(x, fx.Proxy):
            gate = partial(call_as_node, gate)
        if self.channel_axis == 1:
            return gate(x)
        return gate(x.movedim(self.channel_axis, 1)).movedim(1, self.channel_axis)


@dataclass
class Insertion:
    """Result of `insert_gates`: list, check and undo the insertion.

    Attributes:
        model: the network, changed in place.
        places: locations of the gates.
        gates: path of each gate in the network -> gate.
        skipped: candidate layers without a gate, each with the reason.
    """

    model: nn.Module
    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]
    gates: dict[str, Gate] = field(default_factory=dict[str, Gate])
    _handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle], repr=False)

    def __repr__(self) -> str:
        return f"Insertion({len(self.gates)} gates in {type(self.model).__name__}, {len(self.skipped)} skipped)"

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the gated layers, in the order of the network."""
        return tuple(place.layer for place in self.places)

    def check(self, *example: Example) -> tuple[str, ...]:
        """Run one forward in eval mode and return the paths of the gates that were not called.

        A gate is not called if the network uses the weight of its layer directly instead of calling the layer. Training
        flags and buffers are restored afterwards.

        Args:
            *example: inputs of the network.
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

    def keep(self, handle: RemovableHandle) -> None:
        """Keep the handle of a hook that `undo` removes."""
        self._handles.append(handle)

    def undo(self) -> None:
        """Remove the gates; the state dict is then exactly what it was before the insertion."""
        for handle in self._handles:
            handle.remove()
        for path in self.gates:
            layer, _, name = path.rpartition(".")
            delattr(self.model.get_submodule(layer), name)
        self.gates, self.places, self._handles = {}, (), []


def insert_gates(
    model: nn.Module | Graph,
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
    """Insert a gate at every matching place of `model`, in place, and return an `Insertion` to list, check or undo it.

    A newly inserted gct or gc does not change any output, bit for bit. A checkpoint of the plain network loads before
    and after the insertion, also with strict=True: gates that are not in the checkpoint keep their values.

    Args:
        model: any network, or its `Graph`, which several insertions can share.
        gate: a registered name, a string such as "gct:mode=l1@inner", a `GateChoice`, or a `Gate` class.
        place: a kind of place, one of `gatewise.graph.place_names()`; the default, if neither before nor after is
            given, is the place of the gate's paper.
        before: layer types whose input is gated, instead of a place.
        after: layer types whose output is gated, instead of a place.
        include: keep only layers whose path matches: a regular expression (searched for, so "layer2" matches
            all layers inside it), or a list of paths, each of which matches the layer and all layers inside it.
        exclude: omit layers, in the same two forms.
        where: keep only layers for which where(path, layer) is true.
        example: an input (or tuple of inputs), for networks whose input size cannot be guessed.
        **options: of the gate.

    Returns:
        The `Insertion`, with the gates by path and the skipped layers with reasons.

    Raises:
        InvalidValueError: no layer matches, a listed path does not exist, or more than one of place, before and after
            is given.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> insertion = insert_gates(net, "gct", mode="l1", exclude=["0"])
    >>> insertion.names, list(insertion.gates)
    (('2',), ['2.gct'])
    >>> insertion.undo()
    """
    graph = Graph.of("insert_gates", model, example)
    model = graph.model
    if where is not None and not callable(where):
        raise errors.InvalidTypeError(
            f"where must be a function of path and layer, got {_validation.safe_repr(where)}."
        )
    choice, make = _resolve(gate, place, options)
    if sum(option is not None for option in (choice.place if choice else place, before, after)) > 1:
        raise errors.InvalidValueError("give only one of place=, before= and after=.")
    place = place or (choice.place or gate_spec(choice.name).place if choice else None)
    all_places = candidates(graph, place, before, after)
    why_not_selected = selection(model, include, exclude, where)
    reasons = [(candidate, why_not_selected(candidate.layer)) for candidate in all_places.found]
    places = tuple(candidate for candidate, reason in reasons if reason is None)
    skipped = [*all_places.skipped, *(Skipped(candidate.layer, reason) for candidate, reason in reasons if reason)]
    if not places:
        gate_text = str(choice) if choice else _snake_case(gate)
        listed = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3]) or "the network has no such place"
        raise errors.InvalidValueError(
            f"no place for {gate_text} in {type(model).__name__} ({listed}). "
            f"Choose another place, for example {gate_text.partition('@')[0]}@before_conv or @stage_end; in Python you "
            f"can also choose layers with before= or after=."
        )
    insertion = Insertion(model, places, tuple(skipped))
    name = choice.name if choice else _snake_case(gate)
    try:
        for chosen in places:
            _attach(insertion, chosen, name, make)
    except BaseException:
        insertion.undo()
        raise
    forgive = _ForgivePlainCheckpoint(tuple(insertion.gates))
    insertion.keep(model.register_load_state_dict_post_hook(forgive))
    return insertion


def insert_all(model: nn.Module, gates: Gates, example: Example = None) -> list[Insertion]:
    """Insert each gate in turn; the places of all are those of the network without gates."""
    graph = Graph(model, example)
    return [insert_gates(graph, choice) for choice in gates]


def _resolve(
    gate: str | GateChoice | type[Gate], place: str | None, options: dict[str, Any]
) -> tuple[GateChoice | None, Callable[..., Gate]]:
    """Return the choice (None for a class) and a function that makes one gate."""
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
        raise errors.InvalidValueError(f"{gate!r} has a place and place={place!r} is given; give only one.")
    choice = GateChoice(choice.name, {**choice.options, **options}, place or choice.place)
    return choice, partial(gate_spec(choice.name).make, **choice.options)


def _attach(insertion: Insertion, place: Place, name: str, make: Callable[..., Gate]) -> None:
    model = insertion.model
    layer = model.get_submodule(place.layer)
    if isinstance(layer, nn.Sequential):
        raise errors.InvalidValueError(
            f"{place.layer!r} is a Sequential, which would run the gate a second time; choose a layer inside it."
        )
    options: dict[str, Any] = {} if place.spatial_dims == 2 else {"spatial_dims": place.spatial_dims}
    if options and name in gate_names() and "spatial_dims" not in gate_spec(name).options:
        raise errors.InvalidValueError(
            f"{name} is for maps with two spatial axes, but {place.layer!r} has {place.spatial_dims}. Choose another "
            f"gate, or omit the layer with exclude=."
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
    insertion.keep(handle)


def _snake_case(gate: Any) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", gate.__name__).lower()


@dataclass(frozen=True)
class _ForgivePlainCheckpoint:
    """Hook that removes the keys of one insertion from the missing keys if the checkpoint has none of them."""

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
    """Return all gates in the network, by path.

    >>> gates_in(nn.Sequential(nn.ReLU()))
    {}
    """
    _validation.check_module("gates_in", model)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return {path: module for path, module in modules.items() if isinstance(module, Gate)}


def gate_hosts(model: nn.Module) -> list[tuple[str, str, str]]:
    """Return for every gate inserted by `insert_gates` its layer, the side ("input" or "output") and its own path.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> gate_hosts(net)
    [('0', 'input', '0.gct')]
    """
    hosts: list[tuple[str, str, str]] = []
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, layer in modules.items():
        for side in ("input", "output"):
            for change in changes_on(layer, side):
                if isinstance(change, _CallGate) and change.channel_axis == 1:
                    hosts.append((path, side, f"{path}.{change.gate}" if path else change.gate))
    return hosts
