"""Pure tensor functions shared by several gates.

Shapes: N samples, C channels, and one to three spatial axes written (*S). Reductions of half-precision maps are
computed in float32, because a sum of squares over 112x112 positions overflows float16 for |x| = 2.3.
"""

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation


def spatial_axes(x: Tensor) -> tuple[int, ...]:
    """Return the indices of the spatial axes, those after (N, C).

    >>> spatial_axes(torch.zeros(2, 3, 4, 5))
    (2, 3)
    """
    if not isinstance(x, Tensor):
        raise errors.InvalidTypeError(f"spatial_axes expects a tensor, got {_validation.safe_repr(x)}.")
    if x.dim() < 3:  # torch's reductions treat an empty tuple of axes as all axes
        raise errors.InvalidValueError(f"expected a tensor of shape (N, C, *spatial), got shape {tuple(x.shape)}.")
    return tuple(range(2, x.dim()))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for reductions: float32 for half-precision types, `dtype` otherwise.

    >>> at_least_float32(torch.float16), at_least_float32(torch.float64)
    (torch.float32, torch.float64)
    """
    if not isinstance(dtype, torch.dtype):
        raise errors.InvalidTypeError(f"at_least_float32 expects a torch.dtype, got {_validation.safe_repr(dtype)}.")
    return torch.promote_types(dtype, torch.float32)


def average_pool(x: Tensor) -> Tensor:
    """Return the mean over all positions: (N, C, *S) -> (N, C, 1, ...).

    >>> average_pool(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[2.]]]])
    """
    _validation.check_floating_point("average_pool", x=x)
    return x.mean(spatial_axes(x), keepdim=True, dtype=at_least_float32(x.dtype)).to(x.dtype)


def attention_weights(logits: Tensor) -> Tensor:
    """Return softmax_j(logits) over positions j, in float32 for half types: (N, 1, *S) -> (N, 1, *S).

    >>> attention_weights(torch.zeros(1, 1, 2))
    tensor([[[0.5000, 0.5000]]])
    """
    _validation.check_floating_point("attention_weights", logits=logits)
    axes = spatial_axes(logits)
    if 0 in logits.shape[2:]:
        raise errors.InvalidValueError(
            f"attention_weights expects at least one position, got logits of shape {tuple(logits.shape)}."
        )
    logits = logits.to(at_least_float32(logits.dtype))
    weights = (logits - logits.amax(axes, keepdim=True)).exp()
    return weights / weights.sum(axes, keepdim=True)


def attention_pool(x: Tensor, logits: Tensor) -> Tensor:
    """Return sum_j softmax_j(logits) x_j over positions j: (N, C, *S), (N, 1, *S) -> (N, C, 1, ...).

    Computed as a product and a sum instead of a matrix product, because Torch-Pruning cannot trace channels through a
    matrix product.

    >>> attention_pool(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2))
    tensor([[[2.]]])
    """
    _validation.check_floating_point("attention_pool", x=x)
    if not isinstance(logits, Tensor) or logits.dim() != x.dim() or logits.shape[2:] != x.shape[2:]:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else _validation.safe_repr(logits)
        raise errors.InvalidValueError(
            f"attention_pool expects one logit per position of a map of shape {tuple(x.shape)}, got {given}."
        )
    return (x * attention_weights(logits)).sum(spatial_axes(x), keepdim=True).to(x.dtype)


def attention_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return `attention_pool(x, conv(x))` for a convolution of kernel size 1 as two matrix products and a softmax.

    Args:
        x: feature map, (N, C, *S).
        weight: of the convolution, (1, C, 1, ...); its bias does not change the softmax.

    >>> attention_product(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 1))
    tensor([[[2.]]])
    """
    rows = x.flatten(2)
    weights = (weight.flatten(1) @ rows).softmax(-1)  # (N, 1, positions)
    return (rows @ weights.transpose(1, 2)).reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def semhash(logits: Tensor, training: bool = True) -> Tensor:
    """Return gates by Improved SemHash: (N, c) logits -> (N, c) in [0, 1].

    Let e be standard normal noise and a = clamp(1.2 sigmoid(logits + e) - 0.1, 0, 1). Each sample gets, with
    probability 1/2, the soft gates a; otherwise the hard gates 1[a > 0.49999] with the gradient of a. The gradient is
    zero where |logits + e| > 2.398.

    Args:
        logits: (N, c).
        training: if False, all gates are hard and there is no noise.

    Paper: Kaiser and Bengio, 2018, arXiv 1801.09797; as used in GaterNet, CVPR 2019, arXiv 1811.11205.

    Differs from the paper: a gate with a logit of exactly 0 is open, as in GaterNet's released code.

    >>> semhash(torch.tensor([[-1.0, 0.0, 3.0]]), training=False)
    tensor([[0., 1., 1.]])
    """
    _validation.check_floating_point("semhash", logits=logits)
    if logits.dim() != 2:
        raise errors.InvalidValueError(f"semhash expects logits of shape (N, c), got {tuple(logits.shape)}.")
    logits = logits.to(at_least_float32(logits.dtype))
    if training:
        logits = logits + torch.randn_like(logits)
    soft = (1.2 * torch.sigmoid(logits) - 0.1).clamp(0, 1)
    hard = (soft > 0.49999).to(soft.dtype)
    if not training:
        return hard
    takes_hard = torch.rand(len(logits), 1, device=logits.device) < 0.5
    return torch.where(takes_hard, straight_through(hard, soft), soft)


def gumbel_sigmoid(logits: Tensor, training: bool = True) -> Tensor:
    """Return hard gates 1[logits + e >= 0], where e is logistic noise, with the gradient of sigmoid(logits + e).

    This is the binary form of straight-through Gumbel-softmax at temperature 1: (N, c) -> (N, c). With
    `training=False` there is no noise.

    >>> gumbel_sigmoid(torch.tensor([[-1.0, 0.0, 3.0]]), training=False)
    tensor([[0., 1., 1.]])
    """
    _validation.check_floating_point("gumbel_sigmoid", logits=logits)
    logits = logits.to(at_least_float32(logits.dtype))
    if not training:
        return (logits >= 0).to(logits.dtype)
    uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
    noisy = logits + uniform.log() - (-uniform).log1p()
    return straight_through((noisy >= 0).to(noisy.dtype), noisy.sigmoid())


def hard_sigmoid_gate(logits: Tensor, training: bool = True) -> Tensor:
    """Return hard gates 1[logits >= 0] with the gradient of sigmoid(logits), without noise: (N, c) -> (N, c).

    >>> hard_sigmoid_gate(torch.tensor([[-1.0, 0.0, 3.0]]))
    tensor([[0., 1., 1.]])
    """
    _validation.check_floating_point("hard_sigmoid_gate", logits=logits)
    logits = logits.to(at_least_float32(logits.dtype))
    hard = (logits >= 0).to(logits.dtype)
    return straight_through(hard, logits.sigmoid()) if training else hard


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """Return `value`, with the gradient of `gradient` (straight-through estimator).

    >>> straight_through(torch.tensor(1.0), torch.tensor(0.25, requires_grad=True)).item()
    1.0
    """
    _validation.check_floating_point("straight_through", value=value, gradient=gradient)
    if value.shape != gradient.shape:
        shapes = f"{tuple(value.shape)} and {tuple(gradient.shape)}"
        raise errors.InvalidValueError(f"straight_through expects two tensors of the same shape, got {shapes}.")
    return value.detach() + (gradient - gradient.detach())
