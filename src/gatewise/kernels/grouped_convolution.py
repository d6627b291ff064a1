"""A convolution that computes, for each image, its open groups of filters from its open groups of inputs.

The definition it must match: `F.conv2d` on inputs whose closed groups are zero, times the gates of the outputs. Nothing
is copied: each program reads the lists of its image and walks over the weights in place. Runs on a GPU, and on a CPU in
Triton's interpreter (TRITON_INTERPRET=1).
"""

# pyright: basic

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST = 16  # rows and columns that a matrix product on the GPU takes
_POSITIONS = 64  # of the output map in one program


@dataclass(frozen=True)
class Groups:
    """The open groups of channels of each image.

    Attributes:
        size: channels in a group.
        order: all groups, those that are open first, (N, groups), int32.
        count: how many of them are open, (N,), int32.
    """

    size: int
    order: Tensor
    count: Tensor

    @classmethod
    def of(cls, gates: Tensor, size: int) -> "Groups":
        """Return the groups that gates (N, groups) open; the host is not waited for.

        >>> groups = Groups.of(torch.tensor([[0.0, 1, 1]]), 4)
        >>> groups.order.tolist(), groups.count.tolist()
        ([[1, 2, 0]], [2])
        """
        open_ = gates > 0
        order = open_.to(torch.int8).argsort(dim=1, descending=True, stable=True).int()
        return cls(size, order, open_.sum(1).int())

    @classmethod
    def all_of(cls, channels: int, images: int, device: torch.device) -> "Groups":
        """Return all channels of an ungated side, in the largest groups that divide them."""
        size = next(size for size in (64, 32, 16, 8, 4, 2, 1) if channels % size == 0)
        order = torch.arange(channels // size, dtype=torch.int32, device=device).expand(images, -1).contiguous()
        return cls(size, order, torch.full((images,), channels // size, dtype=torch.int32, device=device))


@triton.jit
def _kernel(
    x,
    weight,
    bias,
    out,
    in_order,
    in_count,
    out_order,
    out_count,
    height,
    width,
    out_height,
    out_width,
    inputs,
    outputs,
    in_groups,
    out_groups,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    IN_SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    IN_BLOCK: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """One block of positions of one open group of one image."""
    image = tl.program_id(2)
    slot = tl.program_id(1)
    if slot < tl.load(out_count + image):
        position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
        row, column = position // out_width, position % out_width
        inside = position < out_height * out_width
        in_lane, out_lane = tl.arange(0, IN_BLOCK), tl.arange(0, OUT_BLOCK)
        channel = tl.load(out_order + image * out_groups + slot) * OUT_SIZE + out_lane
        wanted = out_lane < OUT_SIZE
        total = tl.zeros((POSITIONS, OUT_BLOCK), tl.float32)
        for number in range(tl.load(in_count + image)):
            source = tl.load(in_order + image * in_groups + number) * IN_SIZE + in_lane
            given = in_lane < IN_SIZE
            for kh in range(KERNEL_H):
                for kw in range(KERNEL_W):
                    y = row * stride_h - pad_h + kh * dilation_h
                    z = column * stride_w - pad_w + kw * dilation_w
                    on_map = inside & (y >= 0) & (y < height) & (z >= 0) & (z < width)
                    pixel = (image.to(tl.int64) * height + y) * width + z
                    values = tl.load(
                        x + pixel[:, None] * inputs + source[None, :], mask=on_map[:, None] & given[None, :], other=0.0
                    )
                    tap = (kh * KERNEL_W + kw) * inputs + source
                    factors = tl.load(
                        weight + tap[:, None] * outputs + channel[None, :],
                        mask=given[:, None] & wanted[None, :],
                        other=0.0,
                    )
                    total += tl.dot(values, factors, input_precision="ieee")
        if HAS_BIAS:
            total += tl.load(bias + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
        pixel = image.to(tl.int64) * out_height * out_width + position
        tl.store(
            out + pixel[:, None] * outputs + channel[None, :],
            total.to(out.dtype.element_ty),
            mask=inside[:, None] & wanted[None, :],
        )


def grouped_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Groups | None,
    outputs: Groups | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return conv2d(x, weight) + bias in the open groups of each image, and zeros elsewhere.

    Args:
        x: maps (N, C, H, W), read as channels-last; what closed groups of it hold is not looked at.
        weight: (kernel height, kernel width, C, filters), contiguous.
        bias: (filters,).
        inputs: which groups of x are open; None for all.
        outputs: which groups of filters are open; None for all.
        stride: of the window.
        padding: with zeros.
        dilation: of the window.
    """
    images, channels, height, width = x.shape
    kernel_h, kernel_w, _, filters = weight.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out_height, out_width = (
        (size + 2 * pad - step * (kernel - 1) - 1) // by + 1
        for size, pad, step, kernel, by in zip(
            (height, width), padding, dilation, (kernel_h, kernel_w), stride, strict=True
        )
    )
    inputs = Groups.all_of(channels, images, x.device) if inputs is None else inputs
    outputs = Groups.all_of(filters, images, x.device) if outputs is None else outputs
    out = torch.zeros((images, out_height, out_width, filters), dtype=x.dtype, device=x.device)
    constants: dict[str, Any] = {
        "KERNEL_H": kernel_h,
        "KERNEL_W": kernel_w,
        "IN_SIZE": inputs.size,
        "OUT_SIZE": outputs.size,
        "IN_BLOCK": _block(inputs.size),
        "OUT_BLOCK": _block(outputs.size),
        "POSITIONS": _POSITIONS,
        "HAS_BIAS": bias is not None,
    }
    grid = (triton.cdiv(out_height * out_width, _POSITIONS), outputs.order.shape[1], images)
    _kernel[grid](
        x.permute(0, 2, 3, 1),
        weight,
        bias if bias is not None else weight,
        out,
        inputs.order,
        inputs.count,
        outputs.order,
        outputs.count,
        height,
        width,
        out_height,
        out_width,
        channels,
        filters,
        inputs.order.shape[1],
        outputs.order.shape[1],
        *stride,
        *padding,
        *dilation,
        **constants,
    )
    return out.permute(0, 3, 1, 2)


def _block(size: int) -> int:
    return max(_LEAST, triton.next_power_of_2(size))
