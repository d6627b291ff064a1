"""Types of networks: aliases that are necessarily `Any`, each with the reason, and the tensors in them."""

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

from torch import Tensor

Example: TypeAlias = Any  # input of a user's network: a tensor, or a tuple of arguments
Output: TypeAlias = Any  # output of a user's network: a tensor, a tuple, a dict, a dataclass


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of an input or output in order: a tensor, or nested lists, tuples and mappings of tensors.

    >>> import torch
    >>> tensors_of([torch.tensor(1), {"a": (torch.tensor(2), "b")}])
    [tensor(1), tensor(2)]
    """
    if isinstance(value, Tensor):
        return [value]
    parts: Any = cast(Any, value).values() if isinstance(value, Mapping) else value
    return (
        [tensor for part in parts for tensor in tensors_of(part)] if isinstance(value, Mapping | list | tuple) else []
    )
