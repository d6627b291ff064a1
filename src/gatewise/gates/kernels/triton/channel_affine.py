"""Scale and shift each channel of each sample, and compute the sums for their gradients.

Reference implementation: x * factors[n, c] + offsets[n, c], computed in float32 (float64 for float64 maps) and
rounded once; `channel_products` are its gradients by autograd. Maps are (N, C, *S), contiguous or channels-last, also
slices of channels; they are read through their strides.
"""

# pyright: basic

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatewise.gates.kernels.triton.maps import constants_of, in_order_of, launch, locate, rounds_of, tile_of


@triton.jit
def _affine_kernel(
    x_ptr,  # (N, C, M)
    factors_ptr,  # (N, C), contiguous
    offsets_ptr,  # (N, C), contiguous
    y_ptr,  # (N, C, M)
    channels,
    positions,
    m_blocks,
    x_stride_n,
    x_stride_c,
    x_stride_m,
    y_stride_n,
    y_stride_c,
    y_stride_m,
    HAS_FACTORS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute one tile of y = x * factor + offset."""
    n, channel, block = locate(channels, m_blocks, BLOCK_C)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (channel < channels)[:, None] & (position < positions)[None, :]
    source = n * x_stride_n + channel[:, None] * x_stride_c + position[None, :] * x_stride_m
    value = tl.load(x_ptr + source, mask=inside, other=0.0).to(factors_ptr.dtype.element_ty)
    if HAS_FACTORS:
        value *= tl.load(factors_ptr + n * channels + channel, mask=channel < channels, other=0.0)[:, None]
    if HAS_OFFSETS:
        value += tl.load(offsets_ptr + n * channels + channel, mask=channel < channels, other=0.0)[:, None]
    target = n * y_stride_n + channel[:, None] * y_stride_c + position[None, :] * y_stride_m
    tl.store(y_ptr + target, value.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    x_ptr,  # (N, C, M)
    grad_output_ptr,  # (N, C, M)
    sums_ptr,  # (1 or 2, N, chunks, C), contiguous
    channels,
    positions,
    rounds,
    chunks,
    sums_stride,  # from one kind of sum to the next
    x_stride_n,
    x_stride_c,
    x_stride_m,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_m,
    OF: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sum over one chunk of positions, `rounds` tiles long, of one block of channels."""
    n, channel, chunk = locate(channels, chunks, BLOCK_C)
    dtype = sums_ptr.dtype.element_ty
    total = tl.zeros((BLOCK_C, BLOCK_M), dtype)
    plain = tl.zeros((BLOCK_C, BLOCK_M), dtype)
    x_row = x_ptr + n * x_stride_n + channel[:, None] * x_stride_c
    grad_output_row = grad_output_ptr + n * grad_output_stride_n + channel[:, None] * grad_output_stride_c
    for number in range(rounds):
        position = (chunk * rounds + number) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (channel < channels)[:, None] & (position < positions)[None, :]
        x = tl.load(x_row + position[None, :] * x_stride_m, mask=inside, other=0.0).to(dtype)
        if OF == "squares":
            total += x * x
        elif OF == "sizes":
            total += tl.abs(x)
        elif OF == "values":
            total += x
        else:
            grad_output = tl.load(
                grad_output_row + position[None, :] * grad_output_stride_m, mask=inside, other=0.0
            ).to(dtype)
            total += grad_output * x
            if OF == "products and grad_output":
                plain += grad_output
    target = sums_ptr + (n * chunks + chunk) * channels + channel
    tl.store(target, tl.sum(total, 1), mask=channel < channels)
    if OF == "products and grad_output":
        tl.store(target + sums_stride, tl.sum(plain, 1), mask=channel < channels)


def channel_affine(x: Tensor, factors: Tensor | None, offsets: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return x * factors + offsets, each (N, C) or None, in the dtype and layout of x, or written into `out`."""
    flat = x.flatten(2)
    y = torch.empty_like(flat) if out is None else out.flatten(2)
    factors, offsets = (None if each is None else _for_maps(each, x) for each in (factors, offsets))
    tile = tile_of(flat)
    m_blocks = triton.cdiv(flat.shape[2], tile[1])
    stand_in = torch.empty(0, dtype=reduction_type(x), device=x.device)
    launch(
        _affine_kernel,
        len(x) * triton.cdiv(x.shape[1], tile[0]) * m_blocks,
        flat,
        stand_in if factors is None else factors,
        stand_in if offsets is None else offsets,
        y,
        x.shape[1],
        flat.shape[2],
        m_blocks,
        *flat.stride(),
        *y.stride(),
        HAS_FACTORS=factors is not None,
        HAS_OFFSETS=offsets is not None,
        **constants_of(tile),
    )
    return y.unflatten(2, x.shape[2:])


def channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel over positions, (N, C) in float32 (float64 for float64)."""
    flat = x.flatten(2)
    return channel_sums("values", flat)[0] / flat.shape[2]


def channel_products(grad_output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over positions of grad_output * x and of grad_output, each (N, C), at least float32."""
    products, plain = channel_sums("products and grad_output", x.flatten(2), in_order_of(x.flatten(2), grad_output))
    return products, plain


def channel_sums(of: str, x: Tensor, grad_output: Tensor | None = None) -> Tensor:
    """Return sums over positions of x (N, C, M): (1, N, C), or (2, N, C) of "products and grad_output".

    Args:
        of: "squares" x^2, "sizes" |x|, "values" x, "products" grad_output * x, or "products and grad_output".
        x: the map.
        grad_output: a second map, if `of` needs it.
    """
    samples, channels, positions = x.shape
    tile = tile_of(x)
    rounds, chunks = rounds_of(x, tile)
    count = 2 if of == "products and grad_output" else 1
    sums = torch.empty((count, samples, chunks, channels), dtype=reduction_type(x), device=x.device)
    grad_output = x if grad_output is None else grad_output
    launch(
        _sums_kernel,
        samples * triton.cdiv(channels, tile[0]) * chunks,
        x,
        grad_output,
        sums,
        channels,
        positions,
        rounds,
        chunks,
        sums.stride(0),
        *x.stride(),
        *grad_output.stride(),
        OF=of,
        **constants_of(tile),
    )
    return sums[:, :, 0] if chunks == 1 else sums.sum(2)


def reduction_type(x: Tensor) -> torch.dtype:
    """Return the dtype for reductions of x: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _for_maps(values: Tensor, x: Tensor) -> Tensor:
    return values.to(reduction_type(x)).contiguous()
