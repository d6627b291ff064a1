"""Pure tensor primitives that several gates share.

Shapes: N samples, C channels, and one to three spatial axes written (*S). Reductions of half-precision maps
are computed in float32, because a sum of squares over 112x112 leaves float16 at |x| = 2.3 already.
"""

import torch
from torch import Tensor


def spatial_axes(x: Tensor) -> tuple[int, ...]:
    """Return the axes behind (N, C).

    >>> spatial_axes(torch.zeros(2, 3, 4, 5))
    (2, 3)
    """
    return tuple(range(2, x.dim()))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type to reduce in: float32 for half types, the type itself otherwise.

    >>> at_least_float32(torch.float16), at_least_float32(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def average_pool(x: Tensor) -> Tensor:
    """Return the mean over all positions: (N, C, *S) -> (N, C, 1, ...).

    >>> average_pool(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[2.]]]])
    """
    return x.mean(spatial_axes(x), keepdim=True, dtype=at_least_float32(x.dtype)).to(x.dtype)


def attention_pool(x: Tensor, logits: Tensor) -> Tensor:
    """Return sum_j softmax_j(logits) x_j over positions j: (N, C, *S), (N, 1, *S) -> (N, C, 1, ...).

    Written as product and sum rather than as a matrix product, which tools that follow channels through a
    network (Torch-Pruning) cannot follow.

    >>> attention_pool(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2))
    tensor([[[2.]]])
    """
    axes = spatial_axes(x)
    logits = logits.to(at_least_float32(logits.dtype))
    weights = (logits - logits.amax(axes, keepdim=True)).exp()  # (N, 1, *S)
    weights = weights / weights.sum(axes, keepdim=True)
    return (x * weights).sum(axes, keepdim=True).to(x.dtype)
