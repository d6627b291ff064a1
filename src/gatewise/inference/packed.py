"""Convolutions with weights packed in the layout of oneDNN, for float32 inference on the CPU.

With plain weights oneDNN reorders them at every call, which takes as long as the convolution for small maps; and for
one small image torch does not use oneDNN at all. torch.compile uses the same operators for frozen networks.
"""

# pyright: basic

from typing import Any

import torch
from torch import Tensor

from gatewise.core._torch_compat import count_flops_as_convolution, packed_operators

Options = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


_KNOWN = packed_operators()
if _KNOWN is not None:
    count_flops_as_convolution(_KNOWN[1])


def can_pack(x: Tensor, weight: Tensor, options: tuple[Any, ...]) -> bool:
    """Return whether a convolution of `x` can use packed weights."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return _KNOWN is not None and plain and x.dim() == 4 and not isinstance(options[1], str) and x.numel() > 0


def pack(weight: Tensor, shape: tuple[int, ...], options: Options) -> Tensor:
    """Return the weight, (outputs, inputs, height, width), in oneDNN's layout for inputs of this shape."""
    stride, padding, dilation, groups = options
    return _KNOWN[0](weight, padding, stride, dilation, groups, shape)  # type: ignore[index]


def packed_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """Return the convolution of `x` with a weight from `pack`."""
    stride, padding, dilation, groups = options
    return _KNOWN[1](x, weight, bias, padding, stride, dilation, groups, "none", [], "")  # type: ignore[index]
