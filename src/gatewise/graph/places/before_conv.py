"""Before convolutions: the input of every convolution."""

from gatewise.core.layer_types import CONVOLUTIONS, LAZY_CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, spatial_axes
from gatewise.graph.graph import Graph, own_layers
from gatewise.graph.place import Place, Places
from gatewise.graph.places.registry import register_place


@register_place("before_conv", where="the input of every convolution", needs_graph=False)
def before_conv(graph: Graph) -> Places:
    """Return the input of every convolution of known width."""
    places = Places()
    for name, layer in own_layers(graph.model):
        if isinstance(layer, LAZY_CONVOLUTIONS):
            places.skip(name, "a lazy convolution: its channels are unknown before the first forward")
        elif isinstance(layer, TRANSPOSED_CONVOLUTIONS):
            places.skip(name, "a transposed convolution; select it with before= to gate it")
        elif isinstance(layer, CONVOLUTIONS):
            places.found.append(Place(name, "input", layer.in_channels, spatial_axes(layer)))
    return places
