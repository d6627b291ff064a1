"""Before convolutions: the input of every convolution."""

from torch import nn

from gatewise.graph.graph import Graph, own_layers
from gatewise.graph.place import Place, Places
from gatewise.graph.places.registry import register_place


@register_place("before_conv", where="the input of every convolution", needs_graph=False)
def before_conv(graph: Graph) -> Places:
    """Return the input of every convolution of known width."""
    places = Places()
    for name, layer in own_layers(graph.model):
        if isinstance(layer, nn.modules.conv._LazyConvXdMixin):
            places.skip(name, "a lazy convolution: its channels are unknown before the first forward")
        elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
            places.skip(name, "a transposed convolution; select it with before= to gate it")
        elif isinstance(layer, nn.modules.conv._ConvNd):
            places.found.append(Place(name, "input", layer.in_channels, layer.weight.dim() - 2))
    return places
