"""The graph of a network: its operations, and the layers that execute them."""

import functools
from collections.abc import Iterator

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.types import Example
from gatewise.gates.registry import Gate
from gatewise.graph.boundary import why_out_of_reach
from gatewise.graph.place import Place, Spot
from gatewise.graph.trace import Op, Trace, trace


def own_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path and module of each layer, without gates and their submodules."""
    inside: set[int] = set()
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, Gate):
            inside |= {id(module) for module in layer.modules()}
        if id(layer) not in inside:
            yield name, layer


class Graph:
    """The operations of a network and the layers that execute them, traced when first read and then kept.

    It does not contain gates, so it remains valid while gates are inserted and removed. After any other change of the
    network make a new one.

    Args:
        model: the network; it is not changed.
        example: an input (or a tuple of inputs), for networks with an input size that cannot be guessed.
        by_type: whether the caller can select layers by their type instead, for the message if it cannot be read.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> [op.kind for op in Graph(net).operations]
    ['input', 'conv', 'other', 'output']
    """

    def __init__(self, model: nn.Module, example: Example = None, *, by_type: bool = False) -> None:
        self.model, self.example, self.by_type = model, example, by_type

    @classmethod
    def of(cls, caller: str, model: "nn.Module | Graph", example: Example = None) -> "Graph":
        """Return the graph of a network; a graph is returned as it is.

        Args:
            caller: the public function, for the message.
            model: the network or its graph.
            example: of the network; a graph has its own.

        Raises:
            TypeError: `model` is neither.
            ValueError: both a graph and an example are given.
        """
        if not isinstance(model, Graph):
            _validation.check_module(caller, model)
            return cls(model, example, by_type=True)
        if example is not None:
            raise errors.InvalidValueError(
                f"{caller}: a Graph has its own example; give example= to Graph(model, ...)."
            )
        return model

    @functools.cached_property
    def operations(self) -> list[Op]:
        """The operations in the order of execution.

        Raises:
            ValueError: the structure of the network cannot be read.
        """
        return self._trace.operations

    @functools.cached_property
    def _trace(self) -> Trace:
        return trace(self.model, self.example, by_type=self.by_type)

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """All modules by path."""
        return dict(self.model.named_modules())

    @functools.cached_property
    def calls_of(self) -> dict[str, list[str]]:
        """The identifiers of the calls of each module, by path, in the order of execution."""
        found: dict[str, list[str]] = {}
        for call, path in {call: path for op in self.operations for call, path in op.calls.items()}.items():
            found.setdefault(path, []).append(call)
        return found

    @functools.cached_property
    def calls(self) -> dict[str, int]:
        """Number of calls of each module, by path."""
        return {path: len(calls) for path, calls in self.calls_of.items()}

    def why_not_attachable(self, path: str) -> str | None:
        """Return why a gate cannot be a child of this layer, or None."""
        module = self.modules.get(path)
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return f"a {type(module).__name__} would also run the gate as one of its children; choose a layer inside it"
        return None

    def why_no_single_map(self, path: str, side: str, maps: list[Op]) -> str | None:
        """Return why one gate cannot process all these inputs or outputs of a layer, or None."""
        if not maps:
            return f"its {side} is not a feature map, or forward does not call it"
        if len(maps) > 1 and self.calls[path] == 1:
            return f"its {side} is {len(maps)} feature maps; choose a layer inside it"
        if reason := self._why_out_of_reach(path, side, maps[0]):
            return reason
        widths = sorted({op.channels for op in maps})
        return f"its calls have different numbers of channels: {widths}" if len(widths) > 1 else None

    def _why_out_of_reach(self, path: str, side: str, op: Op) -> str | None:
        """Return why a gate on one side of a layer would not get the result of `op`, or None."""
        return why_out_of_reach(self._trace.boundaries.get(path, ()), side, op.shape)

    def output_at(self, op: Op) -> list[Spot]:
        """Return the outputs of the layers that return the result of `op`, innermost first."""
        return [spot for call, path in op.ended_calls() for spot in self._spots(call, path, "output", op)]

    def input_at(self, op: Op) -> list[Spot]:
        """Return the inputs of the layers that contain the only consumer of `op`, but not `op`, innermost first."""
        if len(op.consumers) != 1:
            return []
        entered = [(call, path) for call, path in op.consumers[0].calls.items() if call not in op.calls]
        return [spot for call, path in reversed(entered) for spot in self._spots(call, path, "input", op)]

    def _spots(self, call: str, path: str, side: str, op: Op) -> list[Spot]:
        """Return the spot on one side of a layer in one call, or [] if a gate cannot be its child."""
        if self.why_not_attachable(path) is not None or self._why_out_of_reach(path, side, op) is not None:
            return []
        calls = self.calls[path]
        return [Spot(place_at(path, side, op), call, calls, self._origin(op) if calls > 1 else ())]

    def _origin(self, op: Op) -> tuple[str, ...]:
        """Return the layers that make the channels of a map."""
        makers, seen, unread = set[str](), {op}, [op]
        while unread:
            op = unread.pop()
            if op.is_weighted or op.ends_filters:
                makers.add(op.where)
            else:
                new = [source for source in op.inputs if source.is_map and source not in seen]
                seen.update(new)
                unread.extend(new)
        return tuple(sorted(makers))

    def maps_at(self, place: Place) -> list[Op]:
        """Return the operations whose results are the map at a place, one for each call of its layer."""
        maps: list[Op] = []
        for call in self.calls_of[place.layer]:
            inside = [op for op in self.operations if call in op.calls]
            ends = [op for op in inside if any(call not in consumer.calls for consumer in op.consumers)]
            read = [source for op in inside for source in op.inputs if call not in source.calls]
            boundary = ends if place.side == "output" else read
            maps.append(next(op for op in reversed(boundary) if op.is_map and op.channels == place.channels))
        return maps

    def reads(self, path: str) -> list[Op]:
        """Return the operations outside a layer whose results its calls use."""
        inside = self.inside(path)
        return [source for op in inside for source in op.inputs if source not in inside]

    def inside(self, path: str) -> list[Op]:
        """Return the operations inside the calls of a layer."""
        return [op for op in self.operations if path in op.calls.values()]

    def results(self, path: str) -> list[Op]:
        """Return the operations whose results a layer returns."""
        return [op for op in self.operations if path in [ended for _, ended in op.ended_calls()]]


def place_at(layer: str, side: str, op: Op) -> Place:
    """Return the place on one side of a layer where the map is the result of `op`."""
    return Place(layer, side, op.channels, len(op.shape) - 2, op.channel_axis)
