"""The outputs of images that ran apart, put together again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gatewise import errors


def merged(outputs: Sequence[Any], images: Sequence[np.ndarray]) -> Any:
    """Put the outputs of parts of a batch together in the order of the batch, whatever their nesting.

    A tensor may have several rows for each image, one image's behind the other's. Refused with ValueError: one whose
    rows are not those of images.
    """
    if len(outputs) == 1:
        return outputs[0]
    order = torch.from_numpy(np.argsort(np.concatenate(images), kind="stable"))
    leaves, forms = zip(*map(tree_flatten, outputs), strict=True)
    whole = [_column(column, images, order) for column in zip(*leaves, strict=True)]
    return tree_unflatten(whole, forms[0])


def _column(parts: Sequence[Any], images: Sequence[np.ndarray], order: Tensor) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    counts = [len(own) for own in images]
    if any(part.dim() == 0 or len(part) % count for part, count in zip(parts, counts, strict=True)):
        raise errors.InvalidValueError(
            f"images of this batch run apart, and an output of shape {tuple(parts[0].shape)} for {counts[0]} of them "
            f"cannot be put together. Choose mode='mask'."
        )
    rows = [part.unflatten(0, (count, -1)) for part, count in zip(parts, counts, strict=True)]
    return torch.cat(rows)[order.to(parts[0].device)].flatten(0, 1)
