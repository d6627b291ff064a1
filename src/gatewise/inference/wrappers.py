"""The network inside the wrappers of torch."""

# pyright: basic

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import compiled_network
from gatewise.inference.routed import RoutedNet
from gatewise.inference.skip import SkippingNet


def unwrapped(owner: str, model: Any) -> nn.Module:
    """Return the network inside the wrappers of torch.compile and of data parallelism.

    Args:
        owner: name of the caller, for the error messages.
        model: a network.

    Raises:
        InvalidTypeError: `model` is no module, or a network of `skip_closed_filters`, which is for inference alone.

    >>> unwrapped("bench", nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    _validation.check_module(owner, model)
    network: Any = None
    inner: Any = model
    while inner is not None:
        network = inner
        parallel = isinstance(network, nn.DataParallel | DistributedDataParallel)
        inner = network.module if parallel else compiled_network(network)
    if isinstance(network, SkippingNet | RoutedNet):
        raise errors.InvalidTypeError(
            f"{owner} expects the GaterNet that skip_closed_filters was called on, got the skipping network. Both have "
            f"the same gates and outputs: give the GaterNet."
        )
    return network
