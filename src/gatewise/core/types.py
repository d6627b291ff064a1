"""Types of networks: aliases that are necessarily `Any`, each with the reason, and the tensors in them."""

from typing import Any, TypeAlias

from torch import Tensor

from gatewise import errors
from gatewise.core.nesting import flatten

Example: TypeAlias = Any  # input of a user's network: a tensor, or a tuple of arguments
Output: TypeAlias = Any  # output of a user's network: a tensor, a tuple, a dict, a dataclass


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of an input or output in order: a tensor, or nested containers of tensors; see `flatten`.

    >>> import torch
    >>> tensors_of([torch.tensor(1), {"a": (torch.tensor(2), "b")}])
    [tensor(1), tensor(2)]
    """
    return [leaf for leaf in flatten(value)[0] if isinstance(leaf, Tensor)]


def main_output(output: Any) -> Tensor:
    """Return the first tensor of a network's output, such as the logits of (logits, features) or {"out": logits}.

    Raises:
        InvalidTypeError: the output has no tensor.

    >>> import torch
    >>> main_output({"logits": torch.tensor(1), "aux": torch.tensor(2)})
    tensor(1)
    """
    found = tensors_of(output)
    if not found:
        raise errors.InvalidTypeError(f"expected a network that returns a tensor, got {type(output).__name__}.")
    return found[0]
