"""Batch norms in eval mode as a scale and a shift of each channel, and folded into the convolutions before them."""

# pyright: basic

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatewise.core.hooks import count_hooks
from gatewise.core.layer_types import ANY_CONVOLUTIONS, CONVOLUTIONS, NORMS, TRANSPOSED_CONVOLUTIONS
from gatewise.insertion.mixins import is_batch_norm_act, own_class

_CONVOLVE: dict[type, Any] = dict(zip(CONVOLUTIONS, (F.conv1d, F.conv2d, F.conv3d), strict=True))
_TRANSPOSED: dict[type, Any] = dict(
    zip(TRANSPOSED_CONVOLUTIONS, (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), strict=True)
)


def is_plain_convolution(layer: Any) -> bool:
    """Return whether `convolve` computes what a layer does: a convolution, also transposed, that pads with zeros."""
    return (
        own_class(layer) in ANY_CONVOLUTIONS
        and layer.padding_mode == "zeros"
        and "weight" in dict(layer.named_parameters(recurse=False))
    )


def convolve(
    layer: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    groups: int | None = None,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Run a plain convolution with other weights and, if given, with another number of groups.

    Args:
        layer: the convolution, for its stride, padding and dilation.
        x: its input.
        weight: (outputs, inputs per group, ...), or (inputs, outputs per group, ...) if it is transposed.
        bias: (outputs,) or None.
        groups: number of groups; None is that of the layer.
        output_size: of a transposed convolution that is called with it, the size of the result.

    >>> layer = torch.nn.ConvTranspose1d(1, 1, 1, stride=2, bias=False)
    >>> convolve(layer, torch.ones(1, 1, 2), torch.full((1, 1, 1), 3.0), None, output_size=[4])
    tensor([[[3., 0., 3., 0.]]])
    """
    groups = layer.groups if groups is None else groups
    kind = own_class(layer)
    if kind in _CONVOLVE:
        return _CONVOLVE[kind](x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)
    more = layer.output_padding if output_size is None else _output_padding(layer, x, output_size)
    return _TRANSPOSED[kind](x, weight, bias, layer.stride, layer.padding, more, groups, layer.dilation)


def _output_padding(layer: Any, x: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
    """Return how many positions a transposed convolution adds on one side for a result of this size."""
    axes = len(layer.stride)
    least = [
        (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        for side, stride, padding, dilation, kernel in zip(
            x.shape[-axes:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    return tuple(side - own for side, own in zip(output_size[-axes:], least, strict=True))


def has_scale_and_shift(norm: Any) -> bool:
    """Return whether a norm is a plain batch norm, or timm's with an activation, and no hook reads its input."""
    known = own_class(norm) in NORMS or is_batch_norm_act(norm)
    return known and norm.running_mean is not None and not count_hooks(norm, "input")


def can_fold(convolution: Any, norm: Any) -> bool:
    """Return whether a convolution can absorb the norm after it: no hook reads the map between them."""
    return is_plain_convolution(convolution) and not count_hooks(convolution, "output") and has_scale_and_shift(norm)


def folded_weights(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias, (outputs,), of a convolution with the batch norm after it folded in.

    Args:
        convolution: the convolution, also transposed.
        norm: an object with running_mean, running_var, eps, weight and bias.

    >>> norm = torch.nn.BatchNorm2d(1, eps=0).eval()
    >>> _ = norm.running_mean.fill_(3), norm.running_var.fill_(4)
    >>> convolution = torch.nn.Conv2d(1, 1, 1)
    >>> _ = convolution.weight.data.fill_(1), convolution.bias.data.fill_(1)
    >>> weight, bias = folded_weights(convolution, norm)
    >>> weight.item(), bias.item()  # 1 / sqrt(4) and (1 - 3) / sqrt(4)
    (0.5, -1.0)
    """
    weight, bias = convolution.weight.detach(), convolution.bias
    scale, shift = scale_and_shift(norm)
    if bias is not None:
        shift = shift + bias.detach() * scale
    of_outputs = per_output(convolution, scale)
    return (weight * of_outputs).to(weight.dtype), shift.to(weight.dtype)


def per_output(convolution: Any, values: Tensor) -> Tensor:
    """Return one value for each output, (outputs,), in a shape that multiplies the weight of a convolution."""
    axes = [1] * (convolution.weight.dim() - 2)
    if own_class(convolution) not in TRANSPOSED_CONVOLUTIONS:
        return values.view(-1, 1, *axes)
    groups = convolution.groups
    rows = convolution.weight.shape[0] // groups  # inputs of a group
    return values.view(groups, 1, -1).expand(-1, rows, -1).reshape(groups * rows, -1, *axes)


def per_input(convolution: Any, values: Tensor) -> Tensor:
    """Return one value for each input, (inputs,), in a shape that multiplies the weight; not for several groups."""
    axes = [1] * (convolution.weight.dim() - 2)
    first = own_class(convolution) in TRANSPOSED_CONVOLUTIONS
    return values.view(-1, 1, *axes) if first else values.view(1, -1, *axes)


def scale_and_shift(norm: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel of a batch norm in eval mode, (C,), computed in `dtype` or its own.

    >>> norm = torch.nn.BatchNorm2d(1, eps=0).eval()
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


class WithoutNorm:
    """The forward of a folded norm: nothing, or the dropout and activation of timm's BatchNormAct2d."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, input: Tensor) -> Tensor:
        return input if own_class(self.norm) in NORMS else self.norm.act(self.norm.drop(input))
