"""The network inside the wrappers of torch."""

# pyright: basic

from typing import Any

from torch import nn

from gatewise import errors
from gatewise.core import _validation
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
    network: Any = model
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        network = getattr(network, "_orig_mod", None) or network.module  # the first of torch.compile
    if isinstance(network, SkippingNet):
        raise errors.InvalidTypeError(
            f"{owner} expects the GaterNet that skip_closed_filters was called on, got the skipping network. Both have "
            f"the same gates and outputs: give the GaterNet."
        )
    return network
