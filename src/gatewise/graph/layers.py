"""Find the layer that a gate can be attached to at a given operation."""

from collections.abc import Iterator

from torch import nn

from gatewise.gates.registry import Gate
from gatewise.graph.place import Place
from gatewise.graph.trace import Op


def own_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path and module of each layer, without gates and their submodules."""
    inside: set[int] = set()
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, Gate):
            inside |= {id(module) for module in layer.modules()}
        if id(layer) not in inside:
            yield name, layer


def place_at(layer: str, side: str, op: Op) -> Place:
    """Return the place on one side of a layer where the map is the result of `op`."""
    return Place(layer, side, op.channels, len(op.shape) - 2, op.channel_axis)


def innermost(op: Op) -> str:
    """Return the path of the innermost module that executed `op`, or ''."""
    return next(reversed(op.calls.values()), "")


class Layers:
    """The modules of a traced network, with their operations and numbers of calls."""

    def __init__(self, model: nn.Module, operations: list[Op]) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.operations = operations
        calls = {call: path for op in operations for call, path in op.calls.items()}
        paths = list(calls.values())
        self.calls = {path: paths.count(path) for path in set(paths)}

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
        widths = sorted({op.channels for op in maps})
        return f"its calls have different numbers of channels: {widths}" if len(widths) > 1 else None

    def attachable(self, path: str) -> bool:
        return self.calls.get(path) == 1 and self.why_not_attachable(path) is None

    def output_at(self, op: Op) -> Place | None:
        """Return the output of the innermost layer that returns the result of `op` and is called once, or None."""
        for _, path in op.ended_calls():
            if self.attachable(path):
                return place_at(path, "output", op)
        return None

    def input_at(self, op: Op) -> Place | None:
        """Return the input of the innermost layer that is the only consumer of `op` and is called once, or None."""
        for consumer in op.consumers[:1] if len(op.consumers) == 1 else []:
            entered = [path for call, path in consumer.calls.items() if call not in op.calls]
            for path in reversed(entered):
                if self.attachable(path):
                    return place_at(path, "input", op)
        return None

    def reads(self, path: str) -> list[Op]:
        inside = self.inside(path)
        return [source for op in inside for source in op.inputs if source not in inside]

    def inside(self, path: str) -> list[Op]:
        """Return the operations inside the calls of a layer."""
        return [op for op in self.operations if path in op.calls.values()]

    def results(self, path: str) -> list[Op]:
        return [op for op in self.operations if path in [ended for _, ended in op.ended_calls()]]
