"""Insert gates into any network, list them, check them and remove them.

A gate becomes a child module of its layer and is called by a hook on that layer. So the names of all other parameters,
the class of the network and its methods do not change, and deepcopy, pickle, export and compile keep working.
"""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.hooks import changes_on
from gatewise.core.types import Example
from gatewise.gates.registry import Gate, gate_names, gate_spec
from gatewise.gates.spec import GateChoice, Gates, parse_gates
from gatewise.graph import Graph, Place, Skipped, rehearsal
from gatewise.graph.selection import LayerTypes, Names, candidates, selection
from gatewise.insertion.attachment import Attachment, CallGate, attach, detach, keep_attached
from gatewise.insertion.meta_device import InitialisesGates
from gatewise.insertion.no_place import why_no_place
from gatewise.insertion.plain_checkpoints import accept_plain_checkpoints
from gatewise.insertion.synchronised import check_not_synchronised


@dataclass
class Insertion:
    """Result of `insert_gates`: list, check and undo the insertion.

    Attributes:
        model: the network, changed in place.
        places: locations of the gates.
        gates: path of each gate in the network -> gate.
        skipped: candidate layers without a gate, each with the reason.
        what: the gate and its place, in words.
        attachments: how each gate is attached to its layer.
    """

    model: nn.Module
    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]
    what: str = ""
    gates: dict[str, Gate] = field(default_factory=dict[str, Gate])
    attachments: list[Attachment] = field(default_factory=list[Attachment], repr=False)
    _handles: list[RemovableHandle | InitialisesGates] = field(default_factory=list[Any], repr=False)

    def __repr__(self) -> str:
        count = f"{len(self.gates)} gate{'' if len(self.gates) == 1 else 's'}"
        return f"Insertion({self.what}: {count} in {type(self.model).__name__}, {len(self.skipped)} skipped)"

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the gated layers, in the order of the network."""
        return tuple(place.layer for place in self.places)

    def check(self, *example: Example) -> tuple[str, ...]:
        """Run one forward in eval mode and return the paths of the gates that were not called.

        A gate is not called if the network uses the weight of its layer directly instead of calling the layer. A copy
        runs that shares the parameters, so nothing else changes in the network.

        Args:
            *example: inputs of the network.
        """
        reached: set[str] = set()
        with rehearsal(self.model) as copied, torch.no_grad():
            modules: dict[str, nn.Module] = dict(copied.named_modules())
            for path in self.gates.keys() & modules.keys():
                modules[path].register_forward_pre_hook(lambda *_, path=path: reached.add(path))
            copied(*example)
        return tuple(path for path in self.gates if path not in reached)

    def complete(self) -> None:
        """Let the network keep these gates attached, load checkpoints without them, and be compiled again with them.

        The first two also hold for each part of the network that contains some of the gates.
        """
        self._handles += keep_attached(self.model, self.attachments)
        self._handles += accept_plain_checkpoints(self.model, self.gates)
        self._handles.append(InitialisesGates(self.model, self.gates.values()))
        _forget_compiled()  # a network that was compiled before would run without the gates

    def undo(self) -> None:
        """Remove the gates; the state dict is then exactly what it was before the insertion."""
        for handle in self._handles:
            handle.remove()
        for attachment in self.attachments:
            detach(self.model, attachment)
        _forget_compiled()
        self.gates, self.places, self.attachments, self._handles = {}, (), [], []


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
        gate: a registered name, a string such as "gct:mode=l1@inner", several joined by "+" such as "gct+se", a
            `GateChoice`, or a `Gate` class.
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
        InvalidTypeError: the network is scripted, or wrapped for distributed training.

    Warns:
        UserWarning: a layer has a gate of the same class at the same place already; it then has both. Later, in a
            forward: a gate is lost because its layer was replaced.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> insertion = insert_gates(net, "gct", mode="l1", exclude=["0"])
    >>> insertion.names, list(insertion.gates)
    (('2',), ['2.gct'])
    >>> insertion.undo()
    """
    graph = Graph.of("insert_gates", model, example)
    _check_can_be_gated(graph.model)
    if where is not None and not callable(where):
        raise errors.InvalidTypeError(
            f"where must be a function of path and layer, got {_validation.safe_repr(where)}."
        )
    wanted = _wanted(gate, place, options)
    if any(sum(option is not None for option in (one.asked, before, after)) > 1 for one in wanted):
        raise errors.InvalidValueError("give only one of place=, before= and after=.")
    why_not_selected = selection(graph.model, include, exclude, where)
    found: list[tuple[_Wanted, tuple[Place, ...]]] = []
    skipped: list[Skipped] = []
    for one in wanted:
        all_places = candidates(graph, None if before or after else one.place, before, after)
        reasons = [(candidate, why_not_selected(candidate.layer)) for candidate in all_places.found]
        left_out = [Skipped(candidate.layer, reason) for candidate, reason in reasons if reason]
        places = tuple(candidate for candidate, reason in reasons if reason is None)
        if not places:
            by_type = before is not None or after is not None
            raise errors.InvalidValueError(why_no_place(graph, one.full_text, by_type, all_places, left_out, include))
        found.append((one, places))
        skipped += [*all_places.skipped, *left_out]
    what = " + ".join(f"{one.text} {_where(one.place, before, after)}" for one in wanted)
    return _inserted(graph.model, what, found, tuple(skipped))


def _inserted(
    model: nn.Module, what: str, found: "list[tuple[_Wanted, tuple[Place, ...]]]", skipped: tuple[Skipped, ...]
) -> Insertion:
    """Insert each gate at its places; on any error remove all of them."""
    insertion = Insertion(model, tuple(place for _, places in found for place in places), skipped, what)
    repeated: list[str] = []
    try:
        for one, places in found:
            for place in places:
                gate, attachment = _attach(model, place, one)
                insertion.gates[attachment.path] = gate
                insertion.attachments.append(attachment)
                repeated += [place.layer] if _repeats(model, attachment) else []
        insertion.complete()
    except BaseException:
        insertion.undo()
        raise
    if repeated:
        warnings.warn(_repetition(repeated), stacklevel=3)
    return insertion


def insert_all(model: nn.Module, gates: Gates, example: Example = None) -> list[Insertion]:
    """Insert each gate in turn; the places of all are those of the network without gates."""
    graph = Graph(model, example)
    return [insert_gates(graph, choice) for choice in gates]


@dataclass(frozen=True)
class _Wanted:
    """A gate to insert: its name as a child, its text for messages, the kind of place and how to make one."""

    name: str
    text: str
    asked: str | None  # place that was asked for
    place: str | None  # that or the one of the gate's paper
    make: Callable[..., Gate]

    @property
    def full_text(self) -> str:
        """The text with the place, if one was asked for."""
        return f"{self.text}@{self.asked}" if self.asked else self.text


def _wanted(gate: str | GateChoice | type[Gate], place: str | None, options: dict[str, Any]) -> list[_Wanted]:
    """Return the gates that the arguments of `insert_gates` choose."""
    if place is not None:
        _validation.check_str("place", place)
    if isinstance(gate, type) and issubclass(gate, Gate):
        name = _snake_case(gate)
        return [_Wanted(name, name, place, place, partial(gate, **options))]
    if not isinstance(gate, str | GateChoice):
        raise errors.InvalidTypeError(
            f"gate must be a name such as 'gct', a GateChoice or a Gate class, got {_validation.safe_repr(gate)}."
        )
    choices = parse_gates(gate) if isinstance(gate, str) else (gate,)
    if not choices:
        raise errors.InvalidValueError("'none' is no gate; there is nothing to insert.")
    if len(choices) > 1 and options:
        raise errors.InvalidValueError(
            f"options belong to one gate, and {gate!r} are {len(choices)}. Write them into the text, for example "
            f"'gct:mode=l1+se'."
        )
    wanted: list[_Wanted] = []
    for choice in choices:
        if place and choice.place and place != choice.place:
            raise errors.InvalidValueError(f"{str(choice)!r} has a place and place={place!r} is given; give only one.")
        asked = place or choice.place
        spec, given = gate_spec(choice.name), {**choice.options, **options}
        text = str(GateChoice(choice.name, given))
        wanted.append(_Wanted(choice.name, text, asked, asked or spec.place, partial(spec.make, **given)))
    return wanted


def _check_can_be_gated(model: nn.Module) -> None:
    """Raise if gates would not run in this network, or would not be trained."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise errors.InvalidTypeError(
                f"{path or 'the network'} is a {type(module).__name__}, which cannot call gates. Insert gates first, "
                f"then trace or script."
            )
    problem = "would not average the gradients of new gates"
    check_not_synchronised(model, problem, "Insert gates first, then wrap the network.")


def _where(place: str | None, before: LayerTypes | None, after: LayerTypes | None) -> str:
    """Return a place or layer types in words, such as "before Conv2d"."""
    types = after if before is None else before
    if types is None:
        return f"at {place}"
    names = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
    return f"{'after' if before is None else 'before'} {names}"


def _attach(model: nn.Module, place: Place, one: _Wanted) -> tuple[Gate, Attachment]:
    layer = model.get_submodule(place.layer)
    if isinstance(layer, nn.Sequential):
        raise errors.InvalidValueError(
            f"{place.layer!r} is a Sequential, which would run the gate a second time; choose a layer inside it."
        )
    options: dict[str, Any] = {} if place.spatial_dims == 2 else {"spatial_dims": place.spatial_dims}
    if options and one.name in gate_names() and "spatial_dims" not in gate_spec(one.name).options:
        raise errors.InvalidValueError(
            f"{one.name} is for maps with two spatial axes, but {place.layer!r} has {place.spatial_dims}. Choose "
            f"another gate, or omit the layer with exclude=."
        )
    anchor = next((p for owner in (layer, model) for p in owner.parameters() if p.is_floating_point()), torch.empty(0))
    gate = one.make(place.channels, device=anchor.device, dtype=anchor.dtype, **options)
    gate.train(layer.training)
    return gate, attach(layer, place.layer, place.side, place.channel_axis, one.name, gate)


def _repeats(model: nn.Module, new: Attachment) -> bool:
    """Return whether the layer already has a gate of this class on this side."""
    layer = model.get_submodule(".".join(new.layer))
    calls = [change for change in changes_on(layer, new.side) if isinstance(change, CallGate)]
    return any(type(getattr(layer, call.gate)) is type(new.gate) for call in calls if call != new.call)


def _repetition(layers: list[str]) -> str:
    shown = ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
    return (
        f"a gate of this kind was already at this place and is there twice now, at {shown}. Both run. Call "
        f"insertion.undo() to remove the gates of one insertion."
    )


def _forget_compiled() -> None:
    """Let networks be compiled again at their next call: Dynamo does not notice new or removed hooks."""
    if "torch._dynamo" in sys.modules:  # importing it takes a second
        torch.compiler.reset()


def _snake_case(gate: Any) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", gate.__name__).lower()


def gates_in(model: nn.Module) -> dict[str, Gate]:
    """Return all gates in the network, by path.

    >>> gates_in(nn.Sequential(nn.ReLU()))
    {}
    """
    _validation.check_module("gates_in", model)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return {path: module for path, module in modules.items() if isinstance(module, Gate)}


def without_gates(model: nn.Module) -> nn.Module:
    """Return the network with an identity in the place of each gate; it is changed in place.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> gates_in(without_gates(net))
    {}
    """
    if isinstance(model, Gate):
        return nn.Identity()
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if isinstance(module, Gate):
            model.set_submodule(path, nn.Identity())
    return model


def inserted_gates(model: nn.Module) -> list[nn.Module]:
    """Return the gates that `insert_gates` has put into a network, without those of its own class.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> inserted_gates(net) == [net[0].gct]
    True
    """
    return [getattr(layer, call.gate) for _, layer, _, call in _calls_of_gates(model)]


def gate_hosts(model: nn.Module) -> list[tuple[str, str, str]]:
    """Return for every gate inserted by `insert_gates` its layer, the side ("input" or "output") and its own path.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> gate_hosts(net)
    [('0', 'input', '0.gct')]
    """
    return [
        (path, side, f"{path}.{call.gate}" if path else call.gate)
        for path, layer, side, call in _calls_of_gates(model)
        if call.channel_axis == 1 and isinstance(getattr(layer, call.gate), Gate)
    ]


def _calls_of_gates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, CallGate]]:
    """Yield path, layer, side and call of each gate that `insert_gates` has put into a network."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, layer in modules.items():
        for side in ("input", "output"):
            for change in changes_on(layer, side):
                if isinstance(change, CallGate):
                    yield path, layer, side, change
