"""Attention pooling over positions in one pass over the map, with the running maximum of an online softmax.

Reference implementation: `functional.attention_pool(x, logits)` with logits_j = sum_c weight_c x_cj + bias, as in
`gates.global_context.GlobalContext`, and its gradients by autograd. Everything except maps is float32 (float64 for
float64 maps). Forward and backward read x once each.

Paper: Dao et al., FlashAttention, NeurIPS 2022, arXiv 2205.14135.
"""

# pyright: basic

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatewise.gates.kernels.triton.attention_gradients import gradient_sums_kernel, map_gradient_kernel
from gatewise.gates.kernels.triton.channel_affine import reduction_type
from gatewise.gates.kernels.triton.maps import constants_of, in_order_of, launch, locate, rounds_of, tile_of

# Elements of a tile that has all channels of some positions: 32 for each of 512 threads. 2,048 channels leave
# 8 positions, half a 32-byte sector of a contiguous map in bfloat16; the rest of it is in the cache for the next tile.
ALL_CHANNELS_TILE = 16384
COMBINED_CHANNELS = 16  # channels of one program, which sums up to 512 (maps.PROGRAMS) chunks


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
    """Finish one block of channels and one block of positions of a sample; either may be out of range."""
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
    context = tl.sum(scale[:, None] * contexts / total, 0)
    tl.store(context_ptr + n * channels + channel, context, mask=channel < channels)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    attention = attention_ptr + n * positions + position
    logit = tl.load(attention, mask=position < positions, other=0.0)
    tl.store(attention, tl.exp(logit - peak) / total, mask=position < positions)


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
    finished: dict[str, Any] = {
        "CHUNKS": triton.next_power_of_2(chunks),
        "BLOCK_C": COMBINED_CHANNELS,
        "BLOCK_M": min(1024, tile[1] * triton.next_power_of_2(rounds)),
    }
    blocks = max(triton.cdiv(channels, COMBINED_CHANNELS), triton.cdiv(positions, finished["BLOCK_M"]))
    launch(
        _pool_kernel,
        samples * chunks,
        *(flat, weight, weight if bias is None else bias, attention, peaks, totals, contexts),
        *(channels, positions, rounds, chunks),
        *flat.stride(),
        HAS_BIAS=bias is not None,
        **constants_of(tile),
    )
    launch(
        _combine_kernel,
        samples * blocks,
        *(attention, peaks, totals, contexts, context),
        channels,
        positions,
        chunks,
        blocks,
        **finished,
    )
    return context, attention


def backward(
    dcontext: Tensor,
    x: Tensor,
    attention: Tensor,
    weight: Tensor,
    grad_output: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, and each sample's of weight (N, C) and bias (N,), the last 0 up to rounding.

    Args:
        dcontext: the gradient of the context, (N, C).
        x: the map, (N, C, *S).
        attention: (N, M), as `forward` returns it.
        weight: (C,).
        grad_output: a second gradient of x, shaped like x, added to the result.
        factors: (N, C), multiplied with grad_output.
    """
    flat = x.flatten(2)
    samples, channels, positions = flat.shape
    dcontext = dcontext.to(attention.dtype).contiguous()
    factors = None if factors is None else factors.to(attention.dtype).contiguous()
    tile = _tile_of_all_channels(flat)
    rounds, chunks = rounds_of(flat, tile)
    pulls = torch.empty_like(attention)
    sums = attention.new_empty((samples, chunks, 2, channels + 2))
    dx = torch.empty_like(flat)
    given = dx if grad_output is None else in_order_of(flat, grad_output)
    launch(
        gradient_sums_kernel,
        samples * chunks,
        *(dcontext, flat, attention, pulls, sums),
        *(channels, positions, rounds, chunks),
        *flat.stride(),
        **constants_of(tile),
    )
    bases, dweight, dbias = _combined(sums)
    tile = tile_of(flat)
    m_blocks = triton.cdiv(positions, tile[1])
    launch(
        map_gradient_kernel,
        samples * triton.cdiv(channels, tile[0]) * m_blocks,
        *(given, dcontext if factors is None else factors, dcontext, attention, pulls, bases, weight, dx),
        *(channels, positions, m_blocks),
        *(*given.stride(), *dx.stride()),
        HAS_UPSTREAM=grad_output is not None,
        HAS_FACTORS=factors is not None,
        **constants_of(tile),
    )
    return dx.unflatten(2, x.shape[2:]), dweight, dbias


def _combined(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return base and T - base (N, 2), dweight (N, C) and dbias (N,) from sums of chunks, each with its own base."""
    (pulled, pull_sum, base), (pooled, mass, top) = (part.tensor_split([-2, -1], 2) for part in sums.unbind(2))
    common = base.gather(1, top.argmax(1, keepdim=True))
    off_common = base - common
    total = mass.sum(1, keepdim=True)
    shift = (pull_sum + off_common * mass).sum(1, keepdim=True) / total
    dweight = (pulled + (off_common - shift) * pooled).sum(1)
    dbias = (pull_sum + (off_common - shift) * mass).sum((1, 2))
    return torch.cat((common, shift), 2)[:, 0], dweight, dbias


def _tile_of_all_channels(x: Tensor) -> tuple[int, int]:
    channels, positions = (triton.next_power_of_2(max(1, size)) for size in x.shape[1:])
    return channels, min(positions, max(1, ALL_CHANNELS_TILE // channels))
