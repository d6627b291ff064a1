"""The same questions to a GaterNet and to any other network."""

from torch import Tensor, nn

from gatewise.core.types import Output
from gatewise.gaternet.network import GaterNet


def plain_network(model: nn.Module) -> nn.Module:
    """Return the backbone of a GaterNet, and any other network itself."""
    return model.backbone if isinstance(model, GaterNet) else model


def run_with_gates(model: nn.Module, images: Tensor) -> tuple[Output, Tensor | None]:
    """Return a network's output and the gates of each image, (N, gates), or None for a network without a gater."""
    if isinstance(model, GaterNet):
        return model.forward_with_gates(images)
    return model(images), None
