"""Convolutions whose weights lie in memory as oneDNN wants them: on the CPU, in float32, at inference.

Handed plain weights, oneDNN brings them into its own order at every call, which for small maps takes as long as the
convolution. And for one image and small maps torch does not ask oneDNN at all. These are the operations that
torch.compile uses when it freezes a network.
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
    """Whether a convolution of this map can run with packed weights."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return _KNOWN is not None and plain and x.dim() == 4 and not isinstance(options[1], str) and x.numel() > 0


def pack(weight: Tensor, shape: tuple[int, ...], options: Options) -> Tensor:
    """Return the weights, (outputs, inputs, height, width), in oneDNN's order for maps of this shape."""
    stride, padding, dilation, groups = options
    return _KNOWN[0](weight, padding, stride, dilation, groups, shape)  # type: ignore[index]


def packed_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """Convolve with weights of `pack`."""
    stride, padding, dilation, groups = options
    return _KNOWN[1](x, weight, bias, padding, stride, dilation, groups, "none", [], "")  # type: ignore[index]
