"""Pure tensor primitives that several gates share.

Shapes: N samples, C channels, and one to three spatial axes written (*S). Reductions of half-precision maps
are computed in float32, because a sum of squares over 112x112 leaves float16 at |x| = 2.3 already.
"""

import torch
from torch import Tensor

from gatewise import _validation, errors


def spatial_axes(x: Tensor) -> tuple[int, ...]:
    """Return the axes behind (N, C).

    >>> spatial_axes(torch.zeros(2, 3, 4, 5))
    (2, 3)
    """
    if not isinstance(x, Tensor):
        raise errors.InvalidTypeError(f"spatial_axes takes a tensor, got {_validation.safe_repr(x)}.")
    if x.dim() < 3:  # no axes mean all axes to torch's reductions
        raise errors.InvalidValueError(f"a map has axes behind (N, C), got a tensor of shape {tuple(x.shape)}.")
    return tuple(range(2, x.dim()))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type to reduce in: float32 for half types, the type itself otherwise.

    >>> at_least_float32(torch.float16), at_least_float32(torch.float64)
    (torch.float32, torch.float64)
    """
    if not isinstance(dtype, torch.dtype):
        raise errors.InvalidTypeError(f"at_least_float32 takes a type of numbers, got {_validation.safe_repr(dtype)}.")
    return torch.promote_types(dtype, torch.float32)


def average_pool(x: Tensor) -> Tensor:
    """Return the mean over all positions: (N, C, *S) -> (N, C, 1, ...).

    >>> average_pool(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[2.]]]])
    """
    _validation.check_floating_point("average_pool", x=x)
    return x.mean(spatial_axes(x), keepdim=True, dtype=at_least_float32(x.dtype)).to(x.dtype)


def attention_weights(logits: Tensor) -> Tensor:
    """Return softmax_j(logits) over positions j, at least in float32: (N, 1, *S) -> (N, 1, *S).

    >>> attention_weights(torch.zeros(1, 1, 2))
    tensor([[[0.5000, 0.5000]]])
    """
    _validation.check_floating_point("attention_weights", logits=logits)
    axes = spatial_axes(logits)
    if 0 in logits.shape[2:]:
        raise errors.InvalidValueError(f"attention_weights needs positions, got a map {tuple(logits.shape)}.")
    logits = logits.to(at_least_float32(logits.dtype))
    weights = (logits - logits.amax(axes, keepdim=True)).exp()
    return weights / weights.sum(axes, keepdim=True)


def attention_pool(x: Tensor, logits: Tensor) -> Tensor:
    """Return sum_j softmax_j(logits) x_j over positions j: (N, C, *S), (N, 1, *S) -> (N, C, 1, ...).

    Written as product and sum rather than as a matrix product, which tools that follow channels through a
    network (Torch-Pruning) cannot follow.

    >>> attention_pool(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2))
    tensor([[[2.]]])
    """
    _validation.check_floating_point("attention_pool", x=x)
    if not isinstance(logits, Tensor) or logits.dim() != x.dim() or logits.shape[2:] != x.shape[2:]:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else _validation.safe_repr(logits)
        raise errors.InvalidValueError(
            f"attention_pool takes logits for each position of {tuple(x.shape)}, got {came}."
        )
    return (x * attention_weights(logits)).sum(spatial_axes(x), keepdim=True).to(x.dtype)


def semhash(logits: Tensor, training: bool = True) -> Tensor:
    """Return gates by Improved SemHash: (N, c) real numbers -> (N, c) in [0, 1].

    With e unit normal noise and a = clamp(1.2 sigmoid(logits + e) - 0.1, 0, 1), one half of the samples (a coin for
    each) gets the soft gates a, the other the hard ones 1[a > 0.49999], whose gradient is that of a. Without
    `training` there is no noise and all gates are hard. Where |logits + e| > 2.398 the gradient is zero.

    Paper: Kaiser and Bengio, 2018, arXiv 1801.09797; as used in GaterNet, CVPR 2019, arXiv 1811.11205.

    Differs from the paper: as in GaterNet's released code a gate at exactly 0 is open.

    >>> semhash(torch.tensor([[-1.0, 0.0, 3.0]]), training=False)
    tensor([[0., 1., 1.]])
    """
    _validation.check_floating_point("semhash", logits=logits)
    if logits.dim() != 2:
        raise errors.InvalidValueError(f"semhash takes logits of shape (N, c), got {tuple(logits.shape)}.")
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
    """Return hard gates 1[logits + e > 0], e the difference of two Gumbel variables, with the gradient of the sigmoid.

    The binary form of straight-through Gumbel-softmax at temperature 1, (N, c) -> (N, c). Without `training` there is
    no noise.

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
    """Return hard gates 1[logits >= 0], without noise, with the gradient of the sigmoid: (N, c) -> (N, c).

    >>> hard_sigmoid_gate(torch.tensor([[-1.0, 0.0, 3.0]]))
    tensor([[0., 1., 1.]])
    """
    _validation.check_floating_point("hard_sigmoid_gate", logits=logits)
    logits = logits.to(at_least_float32(logits.dtype))
    hard = (logits >= 0).to(logits.dtype)
    return straight_through(hard, logits.sigmoid()) if training else hard


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """Return `value` exactly, with the gradient of `gradient`.

    >>> straight_through(torch.tensor(1.0), torch.tensor(0.25, requires_grad=True)).item()
    1.0
    """
    _validation.check_floating_point("straight_through", value=value, gradient=gradient)
    if value.shape != gradient.shape:
        shapes = f"{tuple(value.shape)} and {tuple(gradient.shape)}"
        raise errors.InvalidValueError(f"straight_through takes two tensors of one shape, got {shapes}.")
    return value.detach() + (gradient - gradient.detach())
