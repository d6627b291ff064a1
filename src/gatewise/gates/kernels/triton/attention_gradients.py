"""The kernels of the gradients of attention pooling.

With a the attention, g the gradient of the context, t_j = sum_c g_c x_cj and T = sum_j a_j t_j:

    dl_j = a_j (t_j - T),   dx_cj = a_j g_c + weight_c dl_j,   dweight_c = sum_j dl_j x_cj

x is read once, but T is known only after that pass. The pass therefore sums a_j (t_j - base) x_cj, where base is t at
the largest a so far. Sums of a_j t_j x_cj would cancel: if one a is close to 1, rounding of t would lose all of dl.
"""

# pyright: basic

import triton
import triton.language as tl

from gatewise.gates.kernels.triton.maps import locate


@triton.jit
def gradient_sums_kernel(
    dcontext_ptr,  # (N, C), contiguous
    x_ptr,  # (N, C, M)
    attention_ptr,  # (N, M), contiguous
    pulls_ptr,  # (N, M), contiguous: t of each position
    sums_ptr,  # (N, chunks, 2, C + 2), contiguous: of a * (t - base) * x, of a * (t - base), base; of a * x, of a, top
    channels,
    positions,
    rounds,
    chunks,
    x_stride_n,
    x_stride_c,
    x_stride_m,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sum over one chunk of positions of one sample, `rounds` tiles long; base is t at the largest a so far (top)."""
    n, channel, chunk = locate(channels, chunks, BLOCK_C)
    dtype = pulls_ptr.dtype.element_ty
    dcontext = tl.load(dcontext_ptr + n * channels + channel, mask=channel < channels, other=0.0)
    pulled, pooled = tl.zeros((BLOCK_C,), dtype), tl.zeros((BLOCK_C,), dtype)
    pull_sum, mass = tl.full((), 0.0, dtype), tl.full((), 0.0, dtype)
    base, top = tl.full((), 0.0, dtype), tl.full((), -1.0, dtype)
    x_row = x_ptr + n * x_stride_n + channel[:, None] * x_stride_c
    for number in range(rounds):
        position = (chunk * rounds + number) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (channel < channels)[:, None] & (position < positions)[None, :]
        x = tl.load(x_row + position[None, :] * x_stride_m, mask=inside, other=0.0).to(dtype)
        attention = tl.load(attention_ptr + n * positions + position, mask=position < positions, other=0.0)
        grad_x = tl.sum(dcontext[:, None] * x, 0)
        tl.store(pulls_ptr + n * positions + position, grad_x, mask=position < positions)
        highest = tl.max(attention, 0)
        rebased = tl.where(highest > top, tl.max(tl.where(attention == highest, grad_x, float("-inf")), 0), base)
        weighted = attention * (grad_x - rebased)
        pulled += tl.sum(weighted[None, :] * x, 1) - (rebased - base) * pooled
        pull_sum += tl.sum(weighted, 0) - (rebased - base) * mass
        pooled += tl.sum(attention[None, :] * x, 1)
        mass += tl.sum(attention, 0)
        base, top = rebased, tl.maximum(top, highest)
    sums = sums_ptr + (n * chunks + chunk) * 2 * (channels + 2)
    tl.store(sums + channel, pulled, mask=channel < channels)
    tl.store(sums + channels, pull_sum)
    tl.store(sums + channels + 1, base)
    sums += channels + 2
    tl.store(sums + channel, pooled, mask=channel < channels)
    tl.store(sums + channels, mass)
    tl.store(sums + channels + 1, top)


@triton.jit
def map_gradient_kernel(
    grad_output_ptr,  # (N, C, M)
    factors_ptr,  # (N, C), contiguous
    dcontext_ptr,  # (N, C), contiguous
    attention_ptr,  # (N, M), contiguous
    pulls_ptr,  # (N, M), contiguous
    bases_ptr,  # (N, 2), contiguous: base and T - base
    weight_ptr,  # (C,)
    dx_ptr,  # (N, C, M)
    channels,
    positions,
    m_blocks,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_m,
    dx_stride_n,
    dx_stride_c,
    dx_stride_m,
    HAS_UPSTREAM: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute one tile of the map's gradient, which does not depend on the map itself."""
    n, channel, block = locate(channels, m_blocks, BLOCK_C)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (channel < channels)[:, None] & (position < positions)[None, :]
    row, column = n * channels + channel, n * positions + position
    dcontext = tl.load(dcontext_ptr + row, mask=channel < channels, other=0.0)
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(dcontext.dtype)
    attention = tl.load(attention_ptr + column, mask=position < positions, other=0.0)
    grad_x = tl.load(pulls_ptr + column, mask=position < positions, other=0.0)
    dlogit = attention * (grad_x - tl.load(bases_ptr + 2 * n) - tl.load(bases_ptr + 2 * n + 1))
    dx = attention[None, :] * dcontext[:, None] + weight[:, None] * dlogit[None, :]
    if HAS_UPSTREAM:
        source = (
            n * grad_output_stride_n
            + channel[:, None] * grad_output_stride_c
            + position[None, :] * grad_output_stride_m
        )
        grad_output = tl.load(grad_output_ptr + source, mask=inside, other=0.0).to(dcontext.dtype)
        if HAS_FACTORS:
            grad_output *= tl.load(factors_ptr + row, mask=channel < channels, other=0.0)[:, None]
        dx += grad_output
    target = n * dx_stride_n + channel[:, None] * dx_stride_c + position[None, :] * dx_stride_m
    tl.store(dx_ptr + target, dx.to(dx_ptr.dtype.element_ty), mask=inside)
