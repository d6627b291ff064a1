"""The layers of a network as hosts of gates: which layer a gate can be attached to at a given operation."""

from collections.abc import Iterator

from torch import nn

from gatewise.places.place import Place
from gatewise.places.trace import Op
from gatewise.registry import Gate


def own_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return the network's modules by path, without its gates and what is inside them."""
    inside: set[int] = set()
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, Gate):
            inside |= {id(module) for module in layer.modules()}
        if id(layer) not in inside:
            yield name, layer


def place_at(layer: str, side: str, op: Op) -> Place:
    """Return the place on one side of a layer whose map there is the result of `op`."""
    return Place(layer, side, op.channels, len(op.shape) - 2, op.channel_axis)


def innermost(op: Op) -> str:
    """Return the path of the innermost layer that an operation ran in, or ''."""
    return next(reversed(op.calls.values()), "")


class Layers:
    """Which layer a gate can be attached to at a given operation."""

    def __init__(self, model: nn.Module, operations: list[Op]) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
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
                return place_at(path, "output", op)
        return None

    def input_at(self, op: Op) -> Place | None:
        """Return the innermost layer, called once, that is the only reader of `op`."""
        for reader in op.consumers[:1] if len(op.consumers) == 1 else []:
            entered = [path for call, path in reader.calls.items() if call not in op.calls]
            for path in reversed(entered):
                if self.attachable(path):
                    return place_at(path, "input", op)
        return None

    def reads(self, path: str) -> list[Op]:
        inside = self.inside(path)
        return [source for op in inside for source in op.inputs if source not in inside]

    def inside(self, path: str) -> list[Op]:
        """Return the operations that run in the calls of a layer."""
        return [op for op in self.operations if path in op.calls.values()]

    def results(self, path: str) -> list[Op]:
        return [op for op in self.operations if path in [ended for _, ended in op.ended_calls()]]
