"""Convolutions with weights packed in the layout of oneDNN, for float32 inference on the CPU.

With plain weights oneDNN reorders them at every call, which takes as long as the convolution for small maps; and for
one small image torch does not use oneDNN at all. torch.compile uses the same operators for frozen networks.
"""

# pyright: basic

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

Options = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


def _operations() -> tuple[Any, Any] | None:
    operations: Any = torch.ops.mkldnn
    try:
        return operations._reorder_convolution_weight, operations._convolution_pointwise
    except AttributeError:  # torch was built without oneDNN
        return None


_KNOWN = _operations() if torch.backends.mkldnn.is_available() else None
if _KNOWN is not None:

    @register_flop_formula(_KNOWN[1])
    def _flops(x_shape: Any, w_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return conv_flop_count(x_shape, w_shape, out_shape)


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
