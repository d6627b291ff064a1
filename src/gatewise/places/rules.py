"""The rules that find places, each a function from the network's operations to places."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gatewise import _checks
from gatewise.places.trace import Op, trace
from gatewise.registry import PLACES, Gate

_WEIGHTED = {"conv", "linear"}


@dataclass(frozen=True)
class Place:
    """A spot where a gate can sit: the input or the output of one layer.

    Attributes:
        layer: path of the layer in the network.
        side: "input" or "output".
        channels: of the map there.
        spatial_dims: axes of the map besides samples and channels.
        channel_axis: where the channels are: 1, or the last axis in channels-last code such as ConvNeXt's.
    """

    layer: str
    side: str
    channels: int
    spatial_dims: int
    channel_axis: int = 1


@dataclass(frozen=True)
class Skipped:
    """A candidate that was left out."""

    name: str
    reason: str


@dataclass
class Places:
    """What a rule found, and the candidates that it left out."""

    found: list[Place] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def find_places(model: nn.Module, place: str, example: Any = None) -> Places:
    """Return the places of one kind in `model`, which is only read.

    `example` is an input (or a tuple of inputs) for networks whose input size cannot be guessed.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> [(p.layer, p.side, p.channels) for p in find_places(net, "inner").found]
    [('1', 'output', 8)]
    """
    _checks.one_of("place", place, PLACES)
    if place == "before_conv":
        return _before_conv(model)
    rules: dict[str, Callable[[list[Op], _Layers], Places]] = {
        "inner": _inner,
        "residual_end": _residual_end,
        "stage_end": _stage_end,
    }
    operations = trace(model, example)
    return rules[place](operations, _Layers(model, operations))


def boundary_places(
    model: nn.Module, side: str, chosen: Callable[[str, nn.Module], bool], example: Any = None
) -> Places:
    """Return the inputs or outputs of the layers for which `chosen(name, layer)` holds."""
    operations = trace(model, example)
    layers = _Layers(model, operations)
    places = Places()
    for name, layer in own_layers(model):
        if name and chosen(name, layer):
            boundary = layers.reads(name) if side == "input" else layers.results(name)
            maps = [op for op in dict.fromkeys(boundary) if op.is_map]
            reason = layers.why_not(name) or layers.why_no_single_map(name, side, maps)
            if reason:
                places.skipped.append(Skipped(name, reason))
            else:
                places.found.append(_place(name, side, maps[0]))
    return places


def own_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return the network's modules by path, without its gates and what is inside them."""
    inside: set[int] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, Gate):
            inside |= {id(module) for module in layer.modules()}
        if id(layer) not in inside:
            yield name, layer


def _place(layer: str, side: str, op: Op) -> Place:
    return Place(layer, side, op.channels, len(op.shape) - 2, op.channel_axis)


class _Layers:
    """Which layer a gate can be attached to at a given operation."""

    def __init__(self, model: nn.Module, operations: list[Op]) -> None:
        self.modules = dict(model.named_modules())
        self.operations = operations
        calls = {call: path for op in operations for call, path in op.calls.items()}
        paths = list(calls.values())
        self.calls = {path: paths.count(path) for path in set(paths)}

    def why_not(self, path: str) -> str:
        """Return why no gate can be a child of this layer, or ''."""
        module = self.modules.get(path)
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return f"a {type(module).__name__} runs all its children, a gate among them too; choose a layer inside it"
        return ""

    def why_no_single_map(self, path: str, side: str, maps: list[Op]) -> str:
        """Return why one gate cannot serve these inputs or outputs of a layer, or ''."""
        if not maps:
            return f"its {side} is no feature map that a forward reaches"
        if len(maps) > 1 and self.calls[path] == 1:
            return f"its {side} is {len(maps)} feature maps; choose a layer inside it"
        widths = sorted({op.channels for op in maps})
        return f"it is called with {widths} channels in turn" if len(widths) > 1 else ""

    def attachable(self, path: str) -> bool:
        return self.calls.get(path) == 1 and not self.why_not(path)

    def output_at(self, op: Op) -> Place | None:
        """Return the innermost layer, called once, whose result is `op`."""
        for _, path in op.ended_calls():
            if self.attachable(path):
                return _place(path, "output", op)
        return None

    def input_at(self, op: Op) -> Place | None:
        """Return the innermost layer, called once, that is the only reader of `op`."""
        for reader in op.readers[:1] if len(op.readers) == 1 else []:
            entered = [path for call, path in reader.calls.items() if call not in op.calls]
            for path in reversed(entered):
                if self.attachable(path):
                    return _place(path, "input", op)
        return None

    def reads(self, path: str) -> list[Op]:
        inside = [op for op in self.operations if path in op.calls.values()]
        return [source for op in inside for source in op.inputs if source not in inside]

    def results(self, path: str) -> list[Op]:
        return [op for op in self.operations if path in [ended for _, ended in op.ended_calls()]]


def _before_conv(model: nn.Module) -> Places:
    places = Places()
    for name, layer in own_layers(model):
        if isinstance(layer, nn.modules.conv._LazyConvXdMixin):
            places.skipped.append(Skipped(name, "its channels are not known before the first forward"))
        elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
            places.skipped.append(Skipped(name, "a transposed convolution; choose it with before= if it is meant"))
        elif isinstance(layer, nn.modules.conv._ConvNd):
            places.found.append(Place(name, "input", layer.in_channels, layer.weight.dim() - 2))
    return places


def _inner(operations: list[Op], layers: _Layers) -> Places:
    places = Places()
    for op in operations:
        if not (op.is_map and len(op.readers) == 1 and _mixes(op.readers[0])):
            continue
        if not _private_filters(op):
            places.skipped.append(Skipped(_where(op), "its channels are read elsewhere too, or are no filters"))
            continue
        spot = _before_own_gate(_before_dropout(op))
        if (place := layers.output_at(spot) or layers.input_at(spot)) is None:
            places.skipped.append(Skipped(_where(op), "no layer that is called once ends or begins there"))
        else:
            places.found.append(place)
    return places


def _mixes(op: Op) -> bool:
    """Whether every output channel of `op` reads every input channel of its group (a depthwise one does not)."""
    return op.kind in _WEIGHTED and not (op.groups > 1 and op.groups == op.inputs[0].channels)


def _private_filters(op: Op) -> bool:
    """Whether these channels are a convolution's filters, per-channel operations later, that nothing else reads."""
    if _mixes(op):
        return True
    if op.kind in {"add", "cat", "mixing", "input"}:
        return False
    sources = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return bool(sources) and all(_leads_only_to(op, source) and _private_filters(source) for source in sources)


def _leads_only_to(end: Op, source: Op) -> bool:
    """Whether all that is made of `source` goes into `end`; a gate of the network's own reads its map twice."""
    made = [source]
    for op in made:  # grows while it is read
        if op.index > end.index:
            return False
        made += [reader for reader in op.readers if reader is not end and reader not in made]
    return True


def _before_dropout(op: Op) -> Op:
    """Step back over dropout, so that a gate sees whole maps."""
    while op.kind == "dropout" and len(op.inputs[0].readers) == 1:
        op = op.inputs[0]
    return op


def _before_own_gate(op: Op) -> Op:
    """Step back over a gate of the network's own, such as SE: a closed filter must be closed for its squeeze too."""
    maps = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return maps[0] if op.kind == "mul" and len(maps) == 1 else op


def _residual_end(operations: list[Op], layers: _Layers) -> Places:
    ancestors: list[int] = []  # bit i of entry k: operation i is an ancestor of operation k, or k itself
    for op in operations:
        mask = 1 << op.index
        for source in op.inputs:
            mask |= ancestors[source.index]
        ancestors.append(mask)
    places = Places()
    for op in operations:
        if op.kind != "add" or len(op.inputs) != 2 or not op.is_map:
            continue
        first, second = op.inputs
        common = ancestors[first.index] & ancestors[second.index]
        if not common or first.shape != second.shape:
            continue
        fork = operations[common.bit_length() - 1]
        depths = [_depth(operations, fork, first), _depth(operations, fork, second)]
        if depths[0] == depths[1]:
            reason = f"both summands lie {depths[0]} layers behind their fork: neither is the shortcut"
            places.skipped.append(Skipped(_where(op), reason))
            continue
        place = _branch_end(first if depths[0] > depths[1] else second, layers)
        if place is None:
            places.skipped.append(Skipped(_where(op), "no layer that is called once ends the branch"))
        else:
            places.found.append(place)
    return places


def _depth(operations: list[Op], fork: Op, end: Op) -> int:
    """Return the largest number of weighted layers on a way from `fork` to `end`."""
    depths = {fork.index: 0}
    for op in operations[fork.index + 1 : end.index + 1]:
        ways = [depths[source.index] for source in op.inputs if source.index in depths]
        if ways:
            depths[op.index] = max(ways) + (op.kind in _WEIGHTED)
    return depths.get(end.index, 0)


def _branch_end(op: Op, layers: _Layers) -> Place | None:
    """Walk back from the addition over scaling, dropout and permutations to the layer that ends the branch."""
    while True:
        op = _before_dropout(op)
        place = layers.output_at(op) if op.is_map else None
        if place is not None or len(op.inputs) != 1 or op.kind in {"conv", "linear", "norm", "mixing"}:
            return place
        if sorted(op.inputs[0].shape) != sorted(op.shape):
            return None
        op = op.inputs[0]


def _stage_end(operations: list[Op], layers: _Layers) -> Places:
    trunk = _trunk(operations)
    places = Places()
    for end, following in zip(trunk, [*trunk[1:], None], strict=True):
        if following is not None and following.spatial_shape == end.spatial_shape:
            continue
        last = end if following is None else _before_reduction(trunk, end, operations)
        if (place := layers.output_at(last) or layers.input_at(last)) is None:
            places.skipped.append(Skipped(_where(last), "no layer that is called once ends the stage"))
        else:
            places.found.append(place)
    return places


def _trunk(operations: list[Op]) -> list[Op]:
    """Return the maps that every way from input to output passes."""
    trunk, furthest = [], 0
    for op in operations:
        if op.is_map and op.kind != "input" and furthest <= op.index:
            trunk.append(op)
        furthest = max([furthest, *(reader.index for reader in op.readers)])
    return trunk


def _before_reduction(trunk: list[Op], end: Op, operations: list[Op]) -> Op:
    """Return the trunk's last map before the block that leaves this resolution, which belongs to the next stage."""
    reduction = next(op for op in operations[end.index + 1 :] if op.is_map and op.spatial_shape != end.spatial_shape)
    for call in reduction.calls:  # outermost first
        inside = [op for op in operations if call in op.calls]
        resolutions = {m.spatial_shape for op in inside for m in (op, *op.inputs) if m.is_map}
        before = [op for op in trunk if op.index < inside[0].index and op.spatial_shape == end.spatial_shape]
        if len(resolutions) == 2 and before:
            return before[-1]
    return end


def _where(op: Op) -> str:
    """Name an operation for a report: the innermost layer that it ran in."""
    return next(reversed(op.calls.values()), "the network's own forward")
