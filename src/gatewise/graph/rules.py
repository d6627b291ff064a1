"""Find the places of each kind in a network, one rule (a function) for each kind."""

from collections import deque
from collections.abc import Callable

from torch import nn

from gatewise.core import _validation
from gatewise.core.layer_types import CONVOLUTIONS, LAZY_CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from gatewise.core.types import Example
from gatewise.gates.registry import MARKED_PLACES, PLACES
from gatewise.graph.layers import Layers, own_layers, place_at
from gatewise.graph.place import ContextPlace, Place, Places
from gatewise.graph.trace import Op, trace

_WEIGHTED = {"conv", "linear"}


def find_places(model: nn.Module, place: str, example: Example = None) -> Places:
    """Return the places of one kind in `model`, without changing it.

    Args:
        model: the network to read.
        place: a kind of place, as listed in `gatewise.graph`.
        example: an input (or a tuple of inputs), for networks with an input size that cannot be guessed.

    Raises:
        TypeError: if `model` is not a module.
        ValueError: if `place` is unknown or the structure of `model` cannot be read.

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
    """Return the inputs or outputs (`side`) of all layers with `chosen(name, layer)` true."""
    operations = trace(model, example)
    layers = Layers(model, operations)
    places = Places()
    for name, layer in own_layers(model):
        if name and chosen(name, layer):
            boundary = layers.reads(name) if side == "input" else layers.results(name)
            maps = [op for op in dict.fromkeys(boundary) if op.is_map]
            reason = layers.why_not_attachable(name) or layers.why_no_single_map(name, side, maps)
            if reason is None:
                places.found.append(place_at(name, side, maps[0]))
            else:
                places.skip(name, reason)
    return places


def _before_conv(model: nn.Module) -> Places:
    places = Places()
    for name, layer in own_layers(model):
        if isinstance(layer, LAZY_CONVOLUTIONS):
            places.skip(name, "a lazy convolution: its channels are unknown before the first forward")
        elif isinstance(layer, TRANSPOSED_CONVOLUTIONS):
            places.skip(name, "a transposed convolution; select it with before= to gate it")
        elif isinstance(layer, CONVOLUTIONS):
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
            places.skip(_where(op), "its channels are also used by another layer, or are not produced by a convolution")
            continue
        spot = _before_own_gate(_before_dropout(op))
        place = layers.output_at(spot) or layers.input_at(spot)
        places.take(place, _where(op), "no module that is called exactly once starts or ends here")
    return places


def _is_weighted(op: Op) -> bool:
    return op.kind in _WEIGHTED


def is_cross_channel(op: Op) -> bool:
    """Return whether `op` mixes channels: a convolution or linear layer that is not depthwise."""
    return _is_weighted(op) and not (op.groups > 1 and op.groups == op.inputs[0].channels)


def ends_filters(op: Op) -> bool:
    """Return whether the output channels of `op` no longer belong to one filter each."""
    return op.kind in {"cat", "mixing", "input"} or (op.kind == "add" and len(op.inputs) > 1)  # a bias is not an input


def _private_filters(op: Op) -> bool:
    """Return whether only `op` uses the filters that produce its channels, through per-channel operations."""
    if is_cross_channel(op):
        return True
    if ends_filters(op):
        return False
    sources = [source for source in op.inputs if source.is_map and source.channels == op.channels]
    return bool(sources) and all(_leads_only_to(op, source) and _private_filters(source) for source in sources)


def _leads_only_to(end: Op, source: Op) -> bool:
    """Return whether every path from `source` leads to `end`; an SE block uses its input twice."""
    seen, unread = {source, end}, deque([source])
    while unread:
        op = unread.popleft()
        if op.index > end.index:
            return False
        new = [consumer for consumer in dict.fromkeys(op.consumers) if consumer not in seen]
        seen.update(new)
        unread.extend(new)
    return True


def _before_dropout(op: Op) -> Op:
    """Return the operation before any dropout, so that a gate reads maps without dropped values."""
    while op.kind == "dropout" and len(op.inputs[0].consumers) == 1:
        op = op.inputs[0]
    return op


def _before_own_gate(op: Op) -> Op:
    """Return the map before a gate of the network, such as SE: closed filters must be zero in its squeeze, too."""
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
        between = operations[common.bit_length() - 1 : op.index]  # starts where the branches fork
        shallow, deep = sorted(op.inputs, key=lambda branch: _depth(between, branch, _is_weighted))
        if reason := _why_no_shortcut(between, shallow, deep):
            places.skip(_where(op), reason)
            continue
        place = _branch_end(deep, layers)
        places.take(place, _where(op), "no module that is called exactly once ends the branch")
    return places


def _why_no_shortcut(between: list[Op], shallow: Op, deep: Op) -> str | None:
    """Return why the shallow branch is not a shortcut around the deep branch, or None."""
    if not between[0].shape:
        return "the branches of the addition start from different chunks of a split map"
    depth = _depth(between, shallow, _is_weighted)
    if depth == _depth(between, deep, _is_weighted):
        return f"both branches of the addition have depth {depth}: neither of them is a shortcut"
    if _depth(between, shallow, is_cross_channel) > 1:  # a shortcut has at most a projection, and depthwise layers
        return f"the shallow branch of the addition has depth {depth}: it is not a shortcut"
    if depth == 0 and _depth(between, shallow, lambda op: op.kind == "norm"):
        return "one branch of the addition has only a normalisation: both branches are parts of one layer"
    return None


def _depth(between: list[Op], end: Op, counts: Callable[[Op], bool]) -> int:
    """Return the length of the longest path from `between[0]` (excluded) to `end`, in operations with `counts(op)`."""
    depths = {between[0].index: 0}
    for op in between[1:]:
        lengths = [depths[source.index] for source in op.inputs if source.index in depths]
        if lengths:
            depths[op.index] = max(lengths) + counts(op)
    return depths.get(end.index, 0)


def _branch_end(op: Op, layers: Layers) -> Place | None:
    """Return the output of the last layer of a branch, before any scaling, dropout or permutation."""
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
        places.take(place, _where(last), "no module that is called exactly once ends the stage")
    return places


def _trunk(operations: list[Op]) -> list[Op]:
    """Return the maps on every path from the input to the last result; additional outputs are ignored.

    Only maps with the rank of the convolutions count: the five axes of a channel shuffle are not a new resolution.
    """
    trunk, furthest = list[Op](), 0
    rank = next((len(op.shape) for op in operations if op.is_map and _is_weighted(op)), 4)
    for op in operations:
        if op.is_map and len(op.shape) == rank and op.kind != "input" and furthest <= op.index:
            trunk.append(op)
        furthest = max([furthest, *(consumer.index for consumer in op.consumers if consumer.kind != "output")])
    return trunk


def _before_reduction(trunk: list[Op], end: Op, operations: list[Op]) -> Op:
    """Return the last map of the trunk before the block that changes the resolution (it belongs to the next stage)."""
    later = (op for op in operations[end.index + 1 :] if op.is_map and len(op.shape) == len(end.shape))
    reduction = next(op for op in later if op.spatial_shape != end.spatial_shape)
    for call in reduction.calls:  # outermost first
        inside = [op for op in operations if call in op.calls]
        resolutions = {m.spatial_shape for op in inside for m in (op, *op.inputs) if m.is_map}
        earlier = [op for op in trunk if op.index < inside[0].index and op.spatial_shape == end.spatial_shape]
        if len(resolutions) == 2 and earlier:
            return earlier[-1]
    return end


def _where(op: Op) -> str:
    """Return the name of an operation for a report: the path of its innermost module."""
    return next(reversed(op.calls.values()), "the network's own forward")


# Rules by kind of place; the first two need no graph.
_WITHOUT_GRAPH: dict[str, Callable[[nn.Module], Places]] = {"before_conv": _before_conv, "context": _context}
RULES: dict[str, Callable[[list[Op], Layers], Places]] = {
    "inner": _inner,
    "residual_end": _residual_end,
    "stage_end": _stage_end,
    "context_stages": _context_stages,
}
