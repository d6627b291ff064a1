"""The kernels of the gated channel transformation for maps of which one program can hold a whole sample.

Reference implementation: `gates.gated_channel_transform.gated_channel_transform` and its gradients by autograd.
"""

# pyright: basic

import triton
import triton.language as tl

from gatewise.gates.kernels.triton.normalised_norms import factor_and_slope, gradients, normalise, sign


@triton.jit
def forward_on_chip_kernel(
    x_ptr,  # (N, C, M)
    alpha_ptr,  # (C,)
    gamma_ptr,  # (C,)
    beta_ptr,  # (C,)
    y_ptr,  # (N, C, M)
    norms_ptr,  # (N, C), contiguous
    channels,
    positions,
    x_stride_n,
    x_stride_c,
    x_stride_m,
    y_stride_n,
    y_stride_c,
    y_stride_m,
    EPS: tl.constexpr,
    MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Process one sample: read its map once and write it once."""
    n = tl.program_id(0).to(tl.int64)
    channel, position = tl.arange(0, BLOCK_C).to(tl.int64), tl.arange(0, BLOCK_M).to(tl.int64)
    given = channel < channels
    inside = given[:, None] & (position < positions)[None, :]
    dtype = norms_ptr.dtype.element_ty
    source = n * x_stride_n + channel[:, None] * x_stride_c + position[None, :] * x_stride_m
    x = tl.load(x_ptr + source, mask=inside, other=0.0).to(dtype)
    norm = tl.sqrt(tl.sum(x * x, 1) + EPS) if MODE == "l2" else tl.sum(tl.abs(x), 1)
    tl.store(norms_ptr + n * channels + channel, norm, mask=given)
    u, _ = normalise(norm, tl.load(alpha_ptr + channel, mask=given, other=0.0), channels, EPS, MODE)
    gamma = tl.load(gamma_ptr + channel, mask=given, other=0.0)
    beta = tl.load(beta_ptr + channel, mask=given, other=0.0)
    factor, _ = factor_and_slope(gamma * u + beta, ACTIVATION)
    target = n * y_stride_n + channel[:, None] * y_stride_c + position[None, :] * y_stride_m
    tl.store(y_ptr + target, (x * factor[:, None]).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_on_chip_kernel(
    grad_output_ptr,  # (N, C, M)
    x_ptr,  # (N, C, M)
    norms_ptr,  # (N, C), contiguous
    alpha_ptr,  # (C,)
    gamma_ptr,  # (C,)
    beta_ptr,  # (C,)
    dx_ptr,  # (N, C, M)
    dparams_ptr,  # (3, N, C), contiguous
    channels,
    positions,
    dparams_stride,  # from one parameter to the next
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_m,
    x_stride_n,
    x_stride_c,
    x_stride_m,
    dx_stride_n,
    dx_stride_c,
    dx_stride_m,
    EPS: tl.constexpr,
    MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEEDS_MAP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Process one sample: read map and grad_output once."""
    n = tl.program_id(0).to(tl.int64)
    channel, position = tl.arange(0, BLOCK_C).to(tl.int64), tl.arange(0, BLOCK_M).to(tl.int64)
    given = channel < channels
    inside = given[:, None] & (position < positions)[None, :]
    dtype = norms_ptr.dtype.element_ty
    source = n * x_stride_n + channel[:, None] * x_stride_c + position[None, :] * x_stride_m
    x = tl.load(x_ptr + source, mask=inside, other=0.0).to(dtype)
    source = (
        n * grad_output_stride_n + channel[:, None] * grad_output_stride_c + position[None, :] * grad_output_stride_m
    )
    grad_output = tl.load(grad_output_ptr + source, mask=inside, other=0.0).to(dtype)
    norm = tl.load(norms_ptr + n * channels + channel, mask=given, other=1.0)
    alpha = tl.load(alpha_ptr + channel, mask=given, other=0.0)
    gamma = tl.load(gamma_ptr + channel, mask=given, other=0.0)
    beta = tl.load(beta_ptr + channel, mask=given, other=0.0)
    dalpha, dgamma, dbeta, factor, grad_x = gradients(
        tl.sum(grad_output * x, 1), norm, alpha, gamma, beta, channels, EPS, MODE, ACTIVATION
    )
    dparams = dparams_ptr + n * channels + channel
    tl.store(dparams, dalpha, mask=given)
    tl.store(dparams + dparams_stride, dgamma, mask=given)
    tl.store(dparams + 2 * dparams_stride, dbeta, mask=given)
    if NEEDS_MAP:
        dx = grad_output * factor[:, None] + (x if MODE == "l2" else sign(x)) * grad_x[:, None]
        target = n * dx_stride_n + channel[:, None] * dx_stride_c + position[None, :] * dx_stride_m
        tl.store(dx_ptr + target, dx.to(dx_ptr.dtype.element_ty), mask=inside)
