"""Batch norms in eval mode as a scale and a shift of each channel, and folded into the convolutions before them."""

# pyright: basic

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_weights

from gatewise.core.hooks import count_hooks
from gatewise.core.layer_types import CONVOLUTIONS, NORMS
from gatewise.insertion.mixins import is_batch_norm_act, own_class

CONVOLVE: dict[type, Any] = dict(zip(CONVOLUTIONS, (F.conv1d, F.conv2d, F.conv3d), strict=True))


def is_plain_convolution(layer: Any) -> bool:
    """Return whether a layer can be computed from its weight, bias and options by a function of `CONVOLVE`."""
    return (
        own_class(layer) in CONVOLUTIONS
        and layer.padding_mode == "zeros"
        and "weight" in dict(layer.named_parameters(recurse=False))
    )


def has_scale_and_shift(norm: Any) -> bool:
    """Return whether a norm is a plain batch norm, or timm's with an activation, and no hook reads its input."""
    known = own_class(norm) in NORMS or is_batch_norm_act(norm)
    return known and norm.running_mean is not None and not count_hooks(norm, "input")


def can_fold(convolution: Any, norm: Any) -> bool:
    """Return whether a convolution can absorb the norm after it: no hook reads the map between them."""
    return is_plain_convolution(convolution) and not count_hooks(convolution, "output") and has_scale_and_shift(norm)


def folded_weights(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution, (outputs, ...) and (outputs,), with the batch norm after it folded in.

    Args:
        weight: of the convolution.
        bias: of the convolution.
        norm: an object with running_mean, running_var, eps, weight and bias.

    >>> norm = nn.BatchNorm2d(1, eps=0).eval()
    >>> _ = norm.running_mean.fill_(3), norm.running_var.fill_(4)
    >>> weight, bias = folded_weights(torch.ones(1, 1, 1, 1), torch.ones(1), norm)
    >>> weight.item(), bias.item()  # 1 / sqrt(4) and (1 - 3) / sqrt(4)
    (0.5, -1.0)
    """
    return fuse_conv_bn_weights(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def scale_and_shift(norm: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel of a batch norm in eval mode, (C,), computed in `dtype` or its own.

    >>> norm = nn.BatchNorm2d(1, eps=0).eval()
    >>> _ = norm.running_mean.fill_(3), norm.running_var.fill_(4)
    >>> scale_and_shift(norm)
    (tensor([0.5000]), tensor([-1.5000]))
    """
    dtype = norm.running_var.dtype if dtype is None else dtype
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().to(dtype)
    shift = -norm.running_mean.to(dtype) * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().to(dtype)


def without_norm(norm: Any) -> nn.Module:
    """Return what remains of a folded norm: an identity, or the dropout and activation of timm's BatchNormAct2d."""
    return nn.Identity() if own_class(norm) in NORMS else nn.Sequential(norm.drop, norm.act)
