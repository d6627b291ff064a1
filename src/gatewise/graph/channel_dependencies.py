"""Find the layers that must change when filters of a layer are removed."""

# pyright: basic

import dataclasses
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from gatewise.core.hooks import changes_on
from gatewise.core.layer_types import ANY_CONVOLUTIONS, BATCH_NORMS, CHANNEL_NORMS
from gatewise.gates.registry import Gate
from gatewise.graph.graph import Graph
from gatewise.graph.trace import Op

_WEIGHTED = (*ANY_CONVOLUTIONS, nn.Linear)
_PASSING = (*ANY_CONVOLUTIONS, *CHANNEL_NORMS, nn.PReLU)


@dataclass(frozen=True)
class ChannelDependency:
    """The layers that change when filters of one layer are removed.

    Attributes:
        producers: layers that lose these filters as outputs: the layer itself, and layers that compute factors for the
            same channels, such as the last layer of a squeeze-and-excite block between it and the gate.
        elementwise: layers with parameters for each channel, such as a batch norm, which lose those of the filters.
        consumers: layers that lose these channels as inputs.
        zero_fill: whether zeros replace the removed channels at the gate, because later layers need all channels; then
            there are no consumers.
        reason: why no filter can be removed, or why zeros are needed, or ''.
    """

    producers: tuple[str, ...] = ()
    elementwise: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    zero_fill: bool = False
    reason: str = ""

    @property
    def possible(self) -> bool:
        """Whether filters can be removed at all."""
        return bool(self.producers)


class _StopError(Exception):
    """The filters cannot be followed further."""


@dataclass
class _Walk:
    """A breadth-first walk along the operations that carry the channels of one layer."""

    graph: Graph
    producers: dict[str, Op] = field(default_factory=dict)
    elementwise: dict[str, Op] = field(default_factory=dict)
    consumers: dict[str, Op] = field(default_factory=dict)
    carrying: set[Op] = field(default_factory=set)  # operations with these channels in their results
    unread: deque[Op] = field(default_factory=deque)  # those of them with consumers still to follow

    def to(self, end: Op, producer: Op) -> "_Walk":
        """Follow the filters of `producer` to the gate; raise if an operation mixes channels before it."""
        self._make(producer)
        while self.unread:
            op = self.unread.popleft()
            for consumer in op.consumers if op is not end else []:
                if consumer.is_cross_channel:
                    raise _StopError(f"{consumer.layer!r} uses the map before the gate")
                self._follow(consumer, op)
        if end not in self.carrying:
            raise _StopError(f"the gate does not act on the output of {producer.layer!r}")
        return self

    def beyond(self, end: Op) -> "_Walk":
        """Follow the filters from the gate to their consumers."""
        self.unread.append(end)
        while self.unread:
            op = self.unread.popleft()
            for consumer in op.consumers:
                self._follow(consumer, op)
        return self

    def _make(self, op: Op) -> None:
        self.producers[self._layer(op, _WEIGHTED)] = op
        self._carry(op)

    def _carry(self, op: Op) -> None:
        if op in self.carrying:
            return
        for path in {op.layer, *(path for _, path in op.ended_calls())}:
            self._stop_at_gates(path, "output")
        self.carrying.add(op)
        self.unread.append(op)

    def _stop_at_gates(self, path: str, side: str) -> None:
        """Raise if a gate is inserted on this side of a layer; the graph does not contain it."""
        layer = self.graph.modules[path]
        for change in changes_on(layer, side):
            name = getattr(change, "gate", None)
            if isinstance(getattr(layer, str(name), None), Gate):
                raise _StopError(f"the gate {path}.{name} would receive fewer channels than it was built for")

    def _follow(self, op: Op, source: Op) -> None:
        if op.is_cross_channel:
            path = self._layer(op, _WEIGHTED)
            self._stop_at_gates(path, "input")
            self.consumers[path] = op
            return
        if op.kind in {"output", "cat", "mixing"}:
            what = {"output": "is returned", "cat": "is concatenated with other maps"}.get(
                op.kind, "has its channels mixed"
            )
            raise _StopError(f"the output of {source.layer!r} {what}")
        if op.channels != source.channels:
            raise _StopError(f"{op.layer or 'the forward'} rearranges the channels")
        for other in op.inputs:
            if other not in self.carrying and other.channels == op.channels:
                if op.kind != "mul":
                    raise _StopError(f"the output of {source.layer!r} is added to other maps")
                self._make_too(other)
        self._pass(op)

    def _pass(self, op: Op) -> None:
        module = self.graph.modules[op.layer]
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own or op.kind == "conv" or isinstance(module, CHANNEL_NORMS):
            self.elementwise[self._layer(op, _PASSING)] = op
        self._stop_at_gates(op.layer, "input")
        self._carry(op)

    def _make_too(self, op: Op) -> None:
        """Remove the same filters from the producers of another operand, if it has no other consumer."""
        if op.is_cross_channel:
            self._make(op)
            return
        if op.ends_filters or not op.inputs:
            raise _StopError(f"{op.layer or 'the forward'} combines it with other channels")
        for source in op.inputs:
            if source.channels == op.channels and source not in self.carrying:
                self._make_too(source)
        self._pass(op)

    def _layer(self, op: Op, kinds: tuple[type, ...]) -> str:
        path = op.layer
        module = self.graph.modules.get(path)
        if not isinstance(module, kinds) or len(op.inputs) > 1:
            raise _StopError(f"{path or 'the forward'} ({type(module).__name__}) has parameters for each channel")
        if self.graph.calls[path] > 1:
            raise _StopError(f"{path} is called several times")
        return path


def find_channel_dependencies(graph: Graph, sites: Iterable[tuple[str, str, str]]) -> list[ChannelDependency]:
    """Return the channel dependency of each site.

    Args:
        graph: the graph of the network.
        sites: (path of the layer with the filters, path of the layer where the gate acts, side of that layer).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> find_channel_dependencies(Graph(net), [("0", "2", "output")])
    [ChannelDependency(producers=('0',), elementwise=('1',), consumers=('3',), zero_fill=False, reason='')]
    """
    return [_dependency_of(graph, *site) for site in sites]


def _dependency_of(graph: Graph, producer: str, layer: str, side: str) -> ChannelDependency:
    first = next((op for op in graph.operations if op.layer == producer and op.is_cross_channel), None)
    if first is None:  # e.g. a grouped convolution that was pruned to one channel per group
        return ChannelDependency(reason=f"{producer!r} does not mix channels")
    boundary = graph.inside(layer) if side == "output" else graph.reads(layer)
    end = next((op for op in reversed(boundary) if op.is_map and op.channels == first.channels), None)
    if end is None:
        return ChannelDependency(reason=f"{layer!r} has no map of {first.channels} channels")
    try:
        walk = _Walk(graph).to(end, first)
    except _StopError as error:
        return ChannelDependency(reason=str(error))
    near = ChannelDependency(tuple(walk.producers), tuple(walk.elementwise), zero_fill=True)
    try:
        walk.beyond(end)
    except _StopError as error:
        return dataclasses.replace(near, reason=str(error))
    return ChannelDependency(tuple(walk.producers), tuple(walk.elementwise), tuple(walk.consumers))


def followed_by_norm(graph: Graph) -> dict[str, str]:
    """Return the batch norm after each convolution without other consumers, both called once, by path.

    >>> followed_by_norm(Graph(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))))
    {'0': '1'}
    """
    found = {}
    for op in graph.operations:
        if op.kind == "norm" and op.inputs[0].kind == "conv" and len(op.inputs[0].consumers) == 1:
            convolution, norm = op.inputs[0].layer, op.layer
            if isinstance(graph.modules[norm], BATCH_NORMS) and all(
                graph.calls[path] == 1 for path in (convolution, norm)
            ):
                found[convolution] = norm
    return found
