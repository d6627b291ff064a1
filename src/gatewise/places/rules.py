"""The rules that find places, each a function from the network's operations to places."""

from collections import deque
from collections.abc import Callable

from torch import nn

from gatewise import _validation
from gatewise._types import Example
from gatewise.places.layers import Layers, own_layers, place_at
from gatewise.places.place import ContextPlace, Place, Places
from gatewise.places.trace import Op, trace
from gatewise.registry import MARKED_PLACES, PLACES

_WEIGHTED = {"conv", "linear"}


def find_places(model: nn.Module, place: str, example: Example = None) -> Places:
    """Return the places of one kind in `model`, which is only read.

    `example` is an input (or a tuple of inputs) for networks whose input size cannot be guessed.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> [(p.layer, p.side, p.channels) for p in find_places(net, "inner").found]
    [('1', 'output', 8)]
    """
    _validation.check_module("find_places", model)
    _validation.check_one_of("place", place, PLACES + MARKED_PLACES)
    if place in _WITHOUT_GRAPH:
        return _WITHOUT_GRAPH[place](model)
    operations = trace(model, example)
    return RULES[place](operations, Layers(model, operations))


def boundary_places(
    model: nn.Module, side: str, chosen: Callable[[str, nn.Module], bool], example: Example = None
) -> Places:
    """Return the inputs or outputs of the layers for which `chosen(name, layer)` holds."""
    operations = trace(model, example)
    layers = Layers(model, operations)
    places = Places()
    for name, layer in own_layers(model):
        if name and chosen(name, layer):
            boundary = layers.reads(name) if side == "input" else layers.results(name)
            maps = [op for op in dict.fromkeys(boundary) if op.is_map]
            reason = layers.why_not(name) or layers.why_no_single_map(name, side, maps)
            places.take(None if reason else place_at(name, side, maps[0]), name, reason)
    return places


def _before_conv(model: nn.Module) -> Places:
    places = Places()
    for name, layer in own_layers(model):
        if isinstance(layer, nn.modules.conv._LazyConvXdMixin):
            places.skip(name, "its channels are not known before the first forward")
        elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
            places.skip(name, "a transposed convolution; choose it with before= if it is meant")
        elif isinstance(layer, nn.modules.conv._ConvNd):
            places.found.append(Place(name, "input", layer.in_channels, layer.weight.dim() - 2))
    return places


def _context(model: nn.Module) -> Places:
    marked = [(name, layer) for name, layer in own_layers(model) if isinstance(layer, ContextPlace)]
    return Places([Place(name, "output", layer.channels, 2) for name, layer in marked])


def _context_stages(operations: list[Op], layers: Layers) -> Places:
    marked = {path for layer in layers.modules.values() if isinstance(layer, ContextPlace) for path in layer.stages}
    places = _residual_end(operations, layers)
    places.found = [place for place in places.found if place.layer in marked]
    return places


def _inner(operations: list[Op], layers: Layers) -> Places:
    places = Places()
    for op in operations:
        if not (op.is_map and len(op.consumers) == 1 and is_cross_channel(op.consumers[0])):
            continue
        if not _private_filters(op):
            places.skip(_where(op), "its channels are read elsewhere too, or are no filters")
            continue
        spot = _before_own_gate(_before_dropout(op))
        place = layers.output_at(spot) or layers.input_at(spot)
        places.take(place, _where(op), "no layer that is called once ends or begins there")
    return places


def _layer_cost(op: Op) -> bool:
    return op.kind in _WEIGHTED


def is_cross_channel(op: Op) -> bool:
    """Whether every output channel of `op` reads every input channel of its group (a depthwise one does not)."""
    return _layer_cost(op) and not (op.groups > 1 and op.groups == op.inputs[0].channels)


def ends_filters(op: Op) -> bool:
    """Whether behind `op` a channel is no longer one filter's alone."""
    return op.kind in {"cat", "mixing", "input"} or (op.kind == "add" and len(op.inputs) > 1)  # a bias is no summand


def _private_filters(op: Op) -> bool:
    """Whether these channels are a convolution's filters, per-channel operations later, that nothing else reads."""
    if is_cross_channel(op):
        return True
    if ends_filters(op):
        return False
    sources = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return bool(sources) and all(_leads_only_to(op, source) and _private_filters(source) for source in sources)


def _leads_only_to(end: Op, source: Op) -> bool:
    """Whether all that is made of `source` goes into `end`; a gate of the network's own reads its map twice."""
    seen, unread = {source, end}, deque([source])
    while unread:
        op = unread.popleft()
        if op.index > end.index:
            return False
        new = [reader for reader in dict.fromkeys(op.consumers) if reader not in seen]
        seen.update(new)
        unread.extend(new)
    return True


def _before_dropout(op: Op) -> Op:
    """Step back over dropout, so that a gate sees whole maps."""
    while op.kind == "dropout" and len(op.inputs[0].consumers) == 1:
        op = op.inputs[0]
    return op


def _before_own_gate(op: Op) -> Op:
    """Step back over a gate of the network's own, such as SE: a closed filter must be closed for its squeeze too."""
    maps = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return maps[0] if op.kind == "mul" and len(maps) == 1 and len(op.inputs) > 1 else op


def _residual_end(operations: list[Op], layers: Layers) -> Places:
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
        between = operations[common.bit_length() - 1 : op.index]  # begins with the fork of both
        flatter, deeper = sorted(op.inputs, key=lambda summand: _depth(between, summand, _layer_cost))
        if reason := _why_no_shortcut(between, flatter, deeper):
            places.skip(_where(op), reason)
            continue
        place = _branch_end(deeper, layers)
        places.take(place, _where(op), "no layer that is called once ends the branch")
    return places


def _why_no_shortcut(between: list[Op], flatter: Op, deeper: Op) -> str:
    """Return why the flatter summand is no shortcut around the deeper one, or ''."""
    if not between[0].shape:
        return "the summands come from different parts of a map that was split"
    depth = _depth(between, flatter, _layer_cost)
    if depth == _depth(between, deeper, _layer_cost):
        return f"both summands lie {depth} layers behind their fork: neither is the shortcut"
    if _depth(between, flatter, is_cross_channel) > 1:  # a shortcut is a projection at most, depthwise layers apart
        return f"the flatter summand lies {depth} layers behind their fork: it is no shortcut"
    if depth == 0 and _depth(between, flatter, lambda op: op.kind == "norm"):
        return "one summand is normalised and no more: both are parts of one layer"
    return ""


def _depth(between: list[Op], end: Op, counts: Callable[[Op], bool]) -> int:
    """Return the largest number of operations that count on a way from the first of `between`, excluded, to `end`."""
    depths = {between[0].index: 0}
    for op in between[1:]:
        ways = [depths[source.index] for source in op.inputs if source.index in depths]
        if ways:
            depths[op.index] = max(ways) + counts(op)
    return depths.get(end.index, 0)


def _branch_end(op: Op, layers: Layers) -> Place | None:
    """Walk back from the addition over scaling, dropout and permutations to the layer that ends the branch."""
    while True:
        op = _before_dropout(op)
        place = layers.output_at(op) if op.is_map else None
        if place is not None or len(op.inputs) != 1 or op.kind in {"conv", "linear", "norm", "mixing"}:
            return place
        if sorted(op.inputs[0].shape) != sorted(op.shape):
            return None
        op = op.inputs[0]


def _stage_end(operations: list[Op], layers: Layers) -> Places:
    trunk = _trunk(operations)
    places = Places()
    for end, following in zip(trunk, [*trunk[1:], None], strict=True):
        if following is not None and following.spatial_shape == end.spatial_shape:
            continue
        last = end if following is None else _before_reduction(trunk, end, operations)
        place = layers.output_at(last) or layers.input_at(last)
        places.take(place, _where(last), "no layer that is called once ends the stage")
    return places


def _trunk(operations: list[Op]) -> list[Op]:
    """Return the maps that every way from input to the last result passes, whatever else is returned on the way.

    Of the rank that convolutions work on: a channel shuffle's five axes are no other resolution.
    """
    trunk, furthest = list[Op](), 0
    rank = next((len(op.shape) for op in operations if op.is_map and _layer_cost(op)), 4)
    for op in operations:
        if op.is_map and len(op.shape) == rank and op.kind != "input" and furthest <= op.index:
            trunk.append(op)
        furthest = max([furthest, *(reader.index for reader in op.consumers if reader.kind != "output")])
    return trunk


def _before_reduction(trunk: list[Op], end: Op, operations: list[Op]) -> Op:
    """Return the trunk's last map before the block that leaves this resolution, which belongs to the next stage."""
    later = (op for op in operations[end.index + 1 :] if op.is_map and len(op.shape) == len(end.shape))
    reduction = next(op for op in later if op.spatial_shape != end.spatial_shape)
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


# By the kind of place.
_WITHOUT_GRAPH: dict[str, Callable[[nn.Module], Places]] = {"before_conv": _before_conv, "context": _context}
RULES: dict[str, Callable[[list[Op], Layers], Places]] = {
    "inner": _inner,
    "residual_end": _residual_end,
    "stage_end": _stage_end,
    "context_stages": _context_stages,
}
