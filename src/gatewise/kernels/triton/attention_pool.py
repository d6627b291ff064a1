"""Attention pooling over positions in one pass over the map, with the running maximum of an online softmax.

The definition it must match: `functional.attention_pool(x, logits)` with logits_j = sum_c weight_c x_cj + bias, as the
gate `gates.global_context.GlobalContext` pools, and its gradients by autograd, everything but maps in float32 (float64
for float64 maps). With a the attention, g the gradient of the context, t_j = sum_c g_c x_cj and T = sum_j a_j t_j:

    dl_j = a_j (t_j - T),   dx_cj = a_j g_c + weight_c dl_j,   dweight_c = sum_j dl_j x_cj

Each direction reads x once. Backward, T is known only then; until then sums are taken of a_j (t_j - m) x_cj, m being
the mean of t so far; the sums of a_j t_j x_cj and of a_j x_cj would do, but their difference cancels.

Paper: Dao et al., FlashAttention, NeurIPS 2022, arXiv 2205.14135.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatewise.kernels.triton.channel_affine import reduction_type
from gatewise.kernels.triton.maps import in_order_of, locate, rounds_of, tile_of, warps_of

# Elements of a tile that has all channels of some positions: 32 for each of 512 threads. 2,048 channels leave
# 8 positions, half a 32-byte sector of a contiguous map in bfloat16; the rest of it is in the cache for the next tile.
ALL_CHANNELS_TILE = 16384
COMBINED_CHANNELS = 16  # of one program that adds up to 512 (maps.PROGRAMS) chunks


@triton.jit
def _pool_kernel(
    x_ptr,  # (N, C, M)
    weight_ptr,  # (C,)
    bias_ptr,  # (1,)
    logits_ptr,  # (N, M), contiguous
    peaks_ptr,  # (N, chunks), contiguous: the largest logit of each chunk
    totals_ptr,  # (N, chunks), contiguous: sums of exp(logit - peak)
    contexts_ptr,  # (N, chunks, C), contiguous: sums of exp(logit - peak) * x
    channels,
    positions,
    rounds,
    chunks,
    x_stride_n,
    x_stride_c,
    x_stride_m,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Pool one chunk of positions of one sample, `rounds` tiles long."""
    n, channel, chunk = locate(channels, chunks, BLOCK_C)
    dtype = logits_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(dtype)
    peak = tl.full((), float("-inf"), dtype)
    total = tl.full((), 0.0, dtype)
    context = tl.zeros((BLOCK_C,), dtype)
    x_row = x_ptr + n * x_stride_n + channel[:, None] * x_stride_c
    for number in range(rounds):
        position = (chunk * rounds + number) * BLOCK_M + tl.arange(0, BLOCK_M)
        given = position < positions
        inside = (channel < channels)[:, None] & given[None, :]
        x = tl.load(x_row + position[None, :] * x_stride_m, mask=inside, other=0.0).to(dtype)
        logit = tl.sum(weight[:, None] * x, 0)
        if HAS_BIAS:
            logit += tl.load(bias_ptr).to(dtype)
        tl.store(logits_ptr + n * positions + position, logit, mask=given)
        logit = tl.where(given, logit, float("-inf"))
        higher = tl.maximum(peak, tl.max(logit, 0))
        share = tl.exp(logit - higher)
        shrink = tl.exp(peak - higher)
        total = total * shrink + tl.sum(share, 0)
        context = context * shrink + tl.sum(share[None, :] * x, 1)
        peak = higher
    tl.store(peaks_ptr + n * chunks + chunk, peak)
    tl.store(totals_ptr + n * chunks + chunk, total)
    tl.store(contexts_ptr + (n * chunks + chunk) * channels + channel, context, mask=channel < channels)


@triton.jit
def _combine_kernel(
    attention_ptr,  # (N, M), contiguous: holds the logits
    peaks_ptr,  # (N, chunks), contiguous
    totals_ptr,  # (N, chunks), contiguous
    contexts_ptr,  # (N, chunks, C), contiguous
    context_ptr,  # (N, C), contiguous
    channels,
    positions,
    chunks,
    blocks,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Finish one block of one sample's channels, and one of its positions; either may lie behind the last."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    row = n * chunks + chunk
    peaks = tl.load(peaks_ptr + row, mask=chunk < chunks, other=float("-inf"))
    peak = tl.max(peaks, 0)
    scale = tl.exp(peaks - peak)
    total = tl.sum(scale * tl.load(totals_ptr + row, mask=chunk < chunks, other=0.0), 0)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (chunk < chunks)[:, None] & (channel < channels)[None, :]
    contexts = tl.load(contexts_ptr + row[:, None] * channels + channel[None, :], mask=inside, other=0.0)
    context = tl.sum(scale[:, None] * contexts, 0) / total
    tl.store(context_ptr + n * channels + channel, context, mask=channel < channels)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    attention = attention_ptr + n * positions + position
    logit = tl.load(attention, mask=position < positions, other=0.0)
    tl.store(attention, tl.exp(logit - peak) / total, mask=position < positions)


@triton.jit
def _sums_kernel(
    dcontext_ptr,  # (N, C), contiguous
    x_ptr,  # (N, C, M)
    attention_ptr,  # (N, M), contiguous
    pulls_ptr,  # (N, M), contiguous: t of each position
    sums_ptr,  # (N, chunks, 2, C + 1), contiguous: of a * (t - mean) * x, then mean; of a * x, then of a
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
    """Add up what the gradients need over one chunk of positions of one sample, `rounds` tiles long."""
    n, channel, chunk = locate(channels, chunks, BLOCK_C)
    dtype = pulls_ptr.dtype.element_ty
    dcontext = tl.load(dcontext_ptr + n * channels + channel, mask=channel < channels, other=0.0)
    centred, pooled = tl.zeros((BLOCK_C,), dtype), tl.zeros((BLOCK_C,), dtype)
    mean, mass = tl.full((), 0.0, dtype), tl.full((), 0.0, dtype)
    x_row = x_ptr + n * x_stride_n + channel[:, None] * x_stride_c
    for number in range(rounds):
        position = (chunk * rounds + number) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (channel < channels)[:, None] & (position < positions)[None, :]
        x = tl.load(x_row + position[None, :] * x_stride_m, mask=inside, other=0.0).to(dtype)
        attention = tl.load(attention_ptr + n * positions + position, mask=position < positions, other=0.0)
        pull = tl.sum(dcontext[:, None] * x, 0)
        tl.store(pulls_ptr + n * positions + position, pull, mask=position < positions)
        mass += tl.sum(attention, 0)
        shift = tl.sum(attention * (pull - mean), 0) / tl.where(mass > 0, mass, 1.0)
        mean += shift
        centred += tl.sum((attention * (pull - mean))[None, :] * x, 1) - shift * pooled
        pooled += tl.sum(attention[None, :] * x, 1)
    sums = sums_ptr + (n * chunks + chunk) * 2 * (channels + 1)
    tl.store(sums + channel, centred, mask=channel < channels)
    tl.store(sums + channels, mean)
    tl.store(sums + channels + 1 + channel, pooled, mask=channel < channels)
    tl.store(sums + 2 * channels + 1, mass)


@triton.jit
def _map_gradient_kernel(
    upstream_ptr,  # (N, C, M)
    factors_ptr,  # (N, C), contiguous
    dcontext_ptr,  # (N, C), contiguous
    attention_ptr,  # (N, M), contiguous
    pulls_ptr,  # (N, M), contiguous
    mean_pulls_ptr,  # (N,), contiguous: T of each sample
    weight_ptr,  # (C,)
    dx_ptr,  # (N, C, M)
    channels,
    positions,
    m_blocks,
    upstream_stride_n,
    upstream_stride_c,
    upstream_stride_m,
    dx_stride_n,
    dx_stride_c,
    dx_stride_m,
    HAS_UPSTREAM: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One tile of the map's gradient, which needs no look at the map."""
    n, channel, block = locate(channels, m_blocks, BLOCK_C)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (channel < channels)[:, None] & (position < positions)[None, :]
    row, column = n * channels + channel, n * positions + position
    dcontext = tl.load(dcontext_ptr + row, mask=channel < channels, other=0.0)
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(dcontext.dtype)
    attention = tl.load(attention_ptr + column, mask=position < positions, other=0.0)
    pull = tl.load(pulls_ptr + column, mask=position < positions, other=0.0)
    dlogit = attention * (pull - tl.load(mean_pulls_ptr + n))
    dx = attention[None, :] * dcontext[:, None] + weight[:, None] * dlogit[None, :]
    if HAS_UPSTREAM:
        source = n * upstream_stride_n + channel[:, None] * upstream_stride_c + position[None, :] * upstream_stride_m
        upstream = tl.load(upstream_ptr + source, mask=inside, other=0.0).to(dcontext.dtype)
        if HAS_FACTORS:
            upstream *= tl.load(factors_ptr + row, mask=channel < channels, other=0.0)[:, None]
        dx += upstream
    target = n * dx_stride_n + channel[:, None] * dx_stride_c + position[None, :] * dx_stride_m
    tl.store(dx_ptr + target, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the context (N, C) and the attention (N, M) over x (N, C, *S), for weight (C,) and bias (1,) or None."""
    flat = x.flatten(2)
    samples, channels, positions = flat.shape
    tile = _tile_of_all_channels(flat)
    rounds, chunks = rounds_of(flat, tile)
    dtype = reduction_type(x)
    attention = torch.empty((samples, positions), dtype=dtype, device=x.device)
    peaks, totals = attention.new_empty((2, samples, chunks))
    contexts, context = attention.new_empty((samples, chunks, channels)), attention.new_empty((samples, channels))
    constants = _constants(tile)
    finished: dict[str, Any] = {
        "CHUNKS": triton.next_power_of_2(chunks),
        "BLOCK_C": COMBINED_CHANNELS,
        "BLOCK_M": min(1024, tile[1] * triton.next_power_of_2(rounds)),
    }
    blocks = max(triton.cdiv(channels, COMBINED_CHANNELS), triton.cdiv(positions, finished["BLOCK_M"]))
    sizes = (channels, positions, rounds, chunks)
    with torch.cuda.device_of(x):
        _pool_kernel[(samples * chunks,)](
            *(flat, weight, weight if bias is None else bias, attention, peaks, totals, contexts),
            *sizes,
            *flat.stride(),
            HAS_BIAS=bias is not None,
            **constants,
        )
        _combine_kernel[(samples * blocks,)](
            *(attention, peaks, totals, contexts, context), channels, positions, chunks, blocks, **finished
        )
    return context, attention


def backward(
    dcontext: Tensor,
    x: Tensor,
    attention: Tensor,
    weight: Tensor,
    upstream: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, and each sample's of weight (N, C) and bias (N,), the last 0 up to rounding.

    Args:
        dcontext: the gradient of the context, (N, C).
        x: the map, (N, C, *S).
        attention: (N, M), as `forward` returns it.
        weight: (C,).
        upstream: what else reaches x, like x, added to its gradient.
        factors: of upstream, (N, C).
    """
    flat = x.flatten(2)
    samples, channels, positions = flat.shape
    dcontext = dcontext.to(attention.dtype).contiguous()
    factors = None if factors is None else factors.to(attention.dtype).contiguous()
    tile = _tile_of_all_channels(flat)
    rounds, chunks = rounds_of(flat, tile)
    pulls = torch.empty_like(attention)
    sums = attention.new_empty((samples, chunks, 2, channels + 1))
    dx = torch.empty_like(flat)
    given = dx if upstream is None else in_order_of(flat, upstream)
    with torch.cuda.device_of(x):
        _sums_kernel[(samples * chunks,)](
            *(dcontext, flat, attention, pulls, sums),
            *(channels, positions, rounds, chunks),
            *flat.stride(),
            **_constants(tile),
        )
        mean_pulls, dweight, dbias = _combined(sums)
        tile = tile_of(flat)
        m_blocks = triton.cdiv(positions, tile[1])
        _map_gradient_kernel[(samples * triton.cdiv(channels, tile[0]) * m_blocks,)](
            *(given, dcontext if factors is None else factors, dcontext, attention, pulls, mean_pulls, weight, dx),
            *(channels, positions, m_blocks),
            *(*given.stride(), *dx.stride()),
            HAS_UPSTREAM=upstream is not None,
            HAS_FACTORS=factors is not None,
            **_constants(tile),
        )
    return dx.unflatten(2, x.shape[2:]), dweight, dbias


def _combined(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return T (N,), dweight (N, C) and dbias (N,) from the sums of chunks, each of which has a mean of its own."""
    centred, pooled = sums.unbind(2)
    means, masses = centred[..., -1:], pooled[..., -1:]
    mean = (means * masses).sum(1, keepdim=True) / masses.sum(1, keepdim=True)
    off_mean = means - mean
    dweight = (centred[..., :-1] + off_mean * pooled[..., :-1]).sum(1)
    return mean.flatten(), dweight, (off_mean * masses).sum((1, 2))


def _tile_of_all_channels(x: Tensor) -> tuple[int, int]:
    channels, positions = (triton.next_power_of_2(max(1, size)) for size in x.shape[1:])
    return channels, min(positions, max(1, ALL_CHANNELS_TILE // channels))


def _constants(tile: tuple[int, int]) -> dict[str, Any]:
    return {"BLOCK_C": tile[0], "BLOCK_M": tile[1], "num_warps": warps_of(tile[0] * tile[1])}
