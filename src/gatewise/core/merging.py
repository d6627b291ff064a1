"""Merge the outputs of sub-batches, and split those of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatewise import errors
from gatewise.core._torch_compat import tree_flatten, tree_unflatten


def merged(outputs: Sequence[Any], images: Sequence[np.ndarray]) -> Any:
    """Concatenate the outputs of sub-batches in the order of the batch.

    Args:
        outputs: for each sub-batch a tensor, or any nesting of lists, tuples and dicts of tensors. A tensor may have
            several consecutive rows for each image.
        images: for each sub-batch the rows of its images in the batch.

    Raises:
        ValueError: if the number of rows is not a multiple of the number of images.
    """
    if len(outputs) == 1:
        return outputs[0]
    order = torch.from_numpy(np.argsort(np.concatenate(images), kind="stable"))
    leaves, forms = zip(*map(tree_flatten, outputs), strict=True)
    whole = [_column(column, images, order) for column in zip(*leaves, strict=True)]
    return tree_unflatten(whole, forms[0])


def halves(output: Any) -> tuple[Any, Any]:
    """Split the output of a batch into those of its first and its second half.

    >>> halves({"logits": torch.tensor([1, 2, 3, 4])})
    ({'logits': tensor([1, 2])}, {'logits': tensor([3, 4])})
    """
    leaves, form = tree_flatten(output)
    pairs = [leaf.chunk(2) if isinstance(leaf, Tensor) and leaf.dim() else (leaf, leaf) for leaf in leaves]
    return tree_unflatten([first for first, _ in pairs], form), tree_unflatten([second for _, second in pairs], form)


def _column(parts: Sequence[Any], images: Sequence[np.ndarray], order: Tensor) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    counts = [len(own) for own in images]
    if any(part.dim() == 0 or len(part) % count for part, count in zip(parts, counts, strict=True)):
        raise errors.InvalidValueError(
            f"cannot merge the outputs of sub-batches: expected rows for {counts[0]} images, got shape "
            f"{tuple(parts[0].shape)}. Choose mode='mask'."
        )
    rows = [part.unflatten(0, (count, -1)) for part, count in zip(parts, counts, strict=True)]
    return torch.cat(rows)[order.to(parts[0].device)].flatten(0, 1)
