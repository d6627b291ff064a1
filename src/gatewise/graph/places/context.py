"""Context: where a network accepts global context blocks."""

from torch import Tensor, nn

from gatewise.graph.graph import Graph, own_layers
from gatewise.graph.place import Place, Places
from gatewise.graph.places.registry import register_place
from gatewise.graph.places.residual_end import residual_end


class ContextPlace(nn.Module):
    """Identity that marks where a network accepts a global context block: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: number of channels, C.
        stages: paths of the stages that accept such blocks in their residual branches instead.
    """

    def __init__(self, channels: int, stages: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.channels, self.stages = channels, stages

    def forward(self, x: Tensor) -> Tensor:
        return x


@register_place(
    "context", where="each `ContextPlace`, as a segmenter has after its last stage", needs_graph=False, marked=True
)
def context(graph: Graph) -> Places:
    """Return the output of each `ContextPlace`."""
    marked = [(name, layer) for name, layer in own_layers(graph.model) if isinstance(layer, ContextPlace)]
    return Places([Place(name, "output", layer.channels, 2) for name, layer in marked])


@register_place("context_stages", where="the residual ends of the stages that a `ContextPlace` names", marked=True)
def context_stages(graph: Graph) -> Places:
    """Return the residual ends of the stages that a `ContextPlace` names."""
    marked = {path for layer in graph.modules.values() if isinstance(layer, ContextPlace) for path in layer.stages}
    places = residual_end(graph).settled()
    places.found = [place for place in places.found if place.layer in marked]
    return places
