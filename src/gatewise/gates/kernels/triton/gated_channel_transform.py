"""The gated channel transformation: one pass over memory if a sample's map fits on chip, else two.

Reference implementation: `gates.gated_channel_transform.gated_channel_transform` and its gradients by autograd,
with everything but the map in float32 (float64 for float64 maps).
"""

# pyright: basic

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatewise.gates.kernels.triton.channel_affine import channel_affine, channel_sums, reduction_type
from gatewise.gates.kernels.triton.gated_channel_on_chip import backward_on_chip_kernel, forward_on_chip_kernel
from gatewise.gates.kernels.triton.maps import constants_of, in_order_of, launch, locate, tile_of, warps_of
from gatewise.gates.kernels.triton.normalised_norms import factor_and_slope, gradients, normalise, sign

# Elements of a map (channels and positions rounded up to powers of two) that one program holds: 32 for each of 512
# threads. The backward pass holds two such maps, 64 registers of the 128 that so many threads can have.
ON_CHIP = 16384


@triton.jit
def _factors_kernel(
    sums_ptr,  # (N, C), contiguous: of squares (l2), of sizes (l1)
    alpha_ptr,  # (C,)
    gamma_ptr,  # (C,)
    beta_ptr,  # (C,)
    norms_ptr,  # (N, C), contiguous
    factors_ptr,  # (N, C), contiguous
    channels,
    EPS: tl.constexpr,
    MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute norms and factors of one sample."""
    channel = tl.arange(0, BLOCK_C)
    given = channel < channels
    row = tl.program_id(0).to(tl.int64) * channels + channel
    total = tl.load(sums_ptr + row, mask=given, other=0.0)
    norm = tl.sqrt(total + EPS) if MODE == "l2" else total
    tl.store(norms_ptr + row, norm, mask=given)
    u, _ = normalise(norm, tl.load(alpha_ptr + channel, mask=given, other=0.0), channels, EPS, MODE)
    gamma = tl.load(gamma_ptr + channel, mask=given, other=0.0)
    beta = tl.load(beta_ptr + channel, mask=given, other=0.0)
    factor, _ = factor_and_slope(gamma * u + beta, ACTIVATION)
    tl.store(factors_ptr + row, factor, mask=given)


@triton.jit
def _gradients_kernel(
    products_ptr,  # (N, C), contiguous
    norms_ptr,  # (N, C), contiguous
    alpha_ptr,  # (C,)
    gamma_ptr,  # (C,)
    beta_ptr,  # (C,)
    dparams_ptr,  # (3, N, C), contiguous
    factors_ptr,  # (N, C), contiguous
    pulls_ptr,  # (N, C), contiguous
    channels,
    dparams_stride,  # from one parameter to the next
    EPS: tl.constexpr,
    MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the parameters' gradients from one sample, and the coefficients of its map's gradient."""
    channel = tl.arange(0, BLOCK_C)
    given = channel < channels
    row = tl.program_id(0).to(tl.int64) * channels + channel
    dalpha, dgamma, dbeta, factor, grad_x = gradients(
        tl.load(products_ptr + row, mask=given, other=0.0),
        tl.load(norms_ptr + row, mask=given, other=1.0),
        tl.load(alpha_ptr + channel, mask=given, other=0.0),
        tl.load(gamma_ptr + channel, mask=given, other=0.0),
        tl.load(beta_ptr + channel, mask=given, other=0.0),
        channels,
        EPS,
        MODE,
        ACTIVATION,
    )
    tl.store(dparams_ptr + row, dalpha, mask=given)
    tl.store(dparams_ptr + dparams_stride + row, dgamma, mask=given)
    tl.store(dparams_ptr + 2 * dparams_stride + row, dbeta, mask=given)
    tl.store(factors_ptr + row, factor, mask=given)
    tl.store(pulls_ptr + row, grad_x, mask=given)


@triton.jit
def _map_gradient_kernel(
    grad_output_ptr,  # (N, C, M)
    x_ptr,  # (N, C, M)
    factors_ptr,  # (N, C), contiguous
    pulls_ptr,  # (N, C), contiguous
    dx_ptr,  # (N, C, M)
    channels,
    positions,
    m_blocks,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_m,
    x_stride_n,
    x_stride_c,
    x_stride_m,
    dx_stride_n,
    dx_stride_c,
    dx_stride_m,
    MODE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute one tile of the map's gradient."""
    n, channel, block = locate(channels, m_blocks, BLOCK_C)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (channel < channels)[:, None] & (position < positions)[None, :]
    factor = tl.load(factors_ptr + n * channels + channel, mask=channel < channels, other=0.0)
    grad_x = tl.load(pulls_ptr + n * channels + channel, mask=channel < channels, other=0.0)
    source = n * x_stride_n + channel[:, None] * x_stride_c + position[None, :] * x_stride_m
    x = tl.load(x_ptr + source, mask=inside, other=0.0).to(factor.dtype)
    source = (
        n * grad_output_stride_n + channel[:, None] * grad_output_stride_c + position[None, :] * grad_output_stride_m
    )
    grad_output = tl.load(grad_output_ptr + source, mask=inside, other=0.0).to(factor.dtype)
    dx = grad_output * factor[:, None] + (x if MODE == "l2" else sign(x)) * grad_x[:, None]
    target = n * dx_stride_n + channel[:, None] * dx_stride_c + position[None, :] * dx_stride_m
    tl.store(dx_ptr + target, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def forward(
    x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, *, mode: str, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Return x times its factors, in the dtype and layout of x, and the norms (N, C) for `backward`.

    Args:
        x: the map, (N, C, *S), contiguous or channels-last.
        alpha: (C,), contiguous and in the dtype of the norms, like gamma and beta.
        gamma: (C,).
        beta: (C,).
        mode: "l2" or "l1".
        eps: added in both roots.
        activation: "tanh" or "sigmoid".
    """
    flat = x.flatten(2)
    samples, channels, positions = flat.shape
    norms = torch.empty((samples, channels), dtype=reduction_type(x), device=x.device)
    constants: dict[str, Any] = {"EPS": eps, "MODE": mode, "ACTIVATION": activation, **_on_chip(flat)}
    if constants["BLOCK_C"] * constants["BLOCK_M"] <= ON_CHIP:
        y = torch.empty_like(flat)
        launch(
            forward_on_chip_kernel,
            samples,
            *(flat, alpha, gamma, beta, y, norms),
            *(channels, positions),
            *flat.stride(),
            *y.stride(),
            **constants,
        )
        return y.unflatten(2, x.shape[2:]), norms
    sums = channel_sums("squares" if mode == "l2" else "sizes", flat)
    factors = torch.empty_like(norms)
    del constants["BLOCK_M"], constants["num_warps"]
    launch(_factors_kernel, samples, sums, alpha, gamma, beta, norms, factors, channels, **constants)
    return channel_affine(x, factors, None), norms


def backward(
    grad_output: Tensor,
    x: Tensor,
    norms: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str,
    eps: float,
    activation: str,
    needs_map: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradient of x, if it is needed, and each sample's gradients of alpha, gamma and beta, (3, N, C)."""
    flat = x.flatten(2)
    grad_output = in_order_of(flat, grad_output)
    samples, channels, positions = flat.shape
    dparams = norms.new_empty((3, samples, channels))
    dx = torch.empty_like(flat) if needs_map else None
    strides = (*grad_output.stride(), *flat.stride(), *(flat if dx is None else dx).stride())
    constants: dict[str, Any] = {"EPS": eps, "MODE": mode, "ACTIVATION": activation, **_on_chip(flat)}
    parameters = (alpha, gamma, beta)
    if constants["BLOCK_C"] * constants["BLOCK_M"] <= ON_CHIP:
        target = flat if dx is None else dx
        tensors = (grad_output, flat, norms, *parameters, target, dparams)
        constants["NEEDS_MAP"] = needs_map
        launch(
            backward_on_chip_kernel, samples, *tensors, channels, positions, dparams.stride(0), *strides, **constants
        )
    else:
        del constants["BLOCK_M"], constants["num_warps"]
        products = channel_sums("products", flat, grad_output)
        factors, pulls = torch.empty_like(norms), torch.empty_like(norms)
        tensors = (products, norms, *parameters, dparams, factors, pulls)
        launch(_gradients_kernel, samples, *tensors, channels, dparams.stride(0), **constants)
        if dx is not None:
            _map_gradient(grad_output, flat, factors, pulls, dx, mode)
    return None if dx is None else dx.unflatten(2, x.shape[2:]), dparams


def _map_gradient(grad_output: Tensor, x: Tensor, factors: Tensor, pulls: Tensor, dx: Tensor, mode: str) -> None:
    samples, channels, positions = x.shape
    tile = tile_of(x)
    m_blocks = triton.cdiv(positions, tile[1])
    strides = (*grad_output.stride(), *x.stride(), *dx.stride())
    launch(
        _map_gradient_kernel,
        samples * triton.cdiv(channels, tile[0]) * m_blocks,
        *(grad_output, x, factors, pulls, dx),
        *(channels, positions, m_blocks),
        *strides,
        MODE=mode,
        **constants_of(tile),
    )


def _on_chip(x: Tensor) -> dict[str, int]:
    """Return the block sizes of a program that holds a sample of x (N, C, M), or None if it exceeds ON_CHIP."""
    block_c, block_m = (triton.next_power_of_2(max(1, size)) for size in x.shape[1:])
    return {"BLOCK_C": block_c, "BLOCK_M": block_m, "num_warps": warps_of(min(block_c * block_m, ON_CHIP))}
