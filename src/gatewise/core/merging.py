"""Merge the outputs of sub-batches, and split those of a batch."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatewise import errors
from gatewise.core.nesting import flatten

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)
_OTHERWISE = "Choose mode='mask'."


def merged(outputs: Sequence[Any], images: Sequence[np.ndarray], otherwise: str = _OTHERWISE) -> Any:
    """Concatenate the outputs of sub-batches in the order of the batch.

    Args:
        outputs: for each sub-batch a tensor, or any nesting of lists, tuples, dicts and dataclasses of tensors. A
            tensor may have several consecutive rows for each image. Other values must be equal constants.
        images: for each sub-batch the rows of its images in the batch.
        otherwise: what to do if they cannot be merged, the end of the error.

    Raises:
        ValueError: if the number of rows is not a multiple of the number of images, or another value is no constant.
    """
    if len(outputs) == 1:
        return outputs[0]
    order = torch.from_numpy(np.argsort(np.concatenate(images), kind="stable"))
    counts = [len(own) for own in images]
    leaves, around = zip(*map(flatten, outputs), strict=True)
    if len(set(map(len, leaves))) > 1:
        raise errors.InvalidValueError(
            f"cannot merge the outputs of sub-batches: they have {min(map(len, leaves))} to {max(map(len, leaves))} "
            f"values. {otherwise}"
        )
    return around[0]([_column(column, counts, order, otherwise) for column in zip(*leaves, strict=True)])


def run_twice(run: Callable[..., Any], *inputs: Tensor) -> Any:
    """Run a batch of one image twice, and return the output of one: batch norms reject one value per channel.

    >>> run_twice(lambda x: x - x.mean(0), torch.tensor([[1.0]]))
    tensor([[0.]])
    """
    return halves(run(*(torch.cat([own, own]) for own in inputs)))[0]


def halves(output: Any) -> tuple[Any, Any]:
    """Split the output of a batch into those of its first and its second half.

    Raises:
        ValueError: a tensor has no rows for each half, or another value is no constant.

    >>> halves({"logits": torch.tensor([1, 2, 3, 4])})
    ({'logits': tensor([1, 2])}, {'logits': tensor([3, 4])})
    """
    leaves, around = flatten(output)
    pairs = [_pair(leaf) for leaf in leaves]
    return around([first for first, _ in pairs]), around([second for _, second in pairs])


def _pair(leaf: Any) -> Sequence[Any]:
    if isinstance(leaf, _CONSTANTS):
        return leaf, leaf
    if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) % 2 == 0:
        return leaf.chunk(2) if len(leaf) else (leaf, leaf)
    raise errors.InvalidValueError(
        f"expected a network that returns a row for each image, got {_described(leaf)}. Compute losses and other "
        f"values of the whole batch outside the network."
    )


def _column(parts: Sequence[Any], counts: Sequence[int], order: Tensor, otherwise: str) -> Any:
    first = parts[0]
    if isinstance(first, _CONSTANTS) and all(type(part) is type(first) and part == first for part in parts):
        return first
    for part, count in zip(parts, counts, strict=True):
        if not isinstance(part, Tensor) or part.dim() == 0 or len(part) % count:
            raise errors.InvalidValueError(
                f"cannot merge the outputs of sub-batches: expected rows for {count} images, got {_described(part)}. "
                f"{otherwise}"
            )
    rows = [part.unflatten(0, (count, -1)) for part, count in zip(parts, counts, strict=True)]
    return torch.cat(rows)[order.to(parts[0].device)].flatten(0, 1)


def _described(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"shape {tuple(leaf.shape)}"
    return repr(leaf) if isinstance(leaf, _CONSTANTS) else f"a value of type {type(leaf).__name__}"
