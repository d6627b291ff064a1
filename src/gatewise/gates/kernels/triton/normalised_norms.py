"""Compute one sample's factors and their gradients from its norms, for all kernels of the gated channel transformation.

Reference implementation: `gates.gated_channel_transform.gated_channel_transform` between its norms and its factors.
With u = s * r, the normalised norms, and z = gamma * u + beta:

    l2: r = 1 / sqrt(mean_c s^2 + eps),  ds = r * (dz * gamma - u * mean_c(dz * gamma * u))
    l1: r = 1 / (mean_c |s| + eps),      ds = r * (dz * gamma - sign(u) * mean_c(dz * gamma * u))

Vectors are (BLOCK_C,), and alpha, gamma and beta are zero after the last channel.
"""

# pyright: basic

import triton
import triton.language as tl


@triton.jit
def factor_and_slope(z, ACTIVATION: tl.constexpr):
    """Return activation(z) and its derivative; tanh as 1 + tanh(z) = 2 sigmoid(2z), which is exactly 1 at 0."""
    if ACTIVATION == "relu":
        factor = 1 + tl.where(z < 0, 0.0, z)
        slope = tl.where(z < 0, 0.0, 1.0).to(z.dtype)
    elif ACTIVATION == "elu":
        decay = tl.exp(tl.minimum(z, 0.0))
        factor = tl.where(z > 0, 1 + z, decay)
        slope = decay
    else:
        scale = 2 if ACTIVATION == "tanh" else 1
        small = tl.exp(-scale * tl.abs(z))  # the one of the two exponentials that cannot overflow
        factor = scale * tl.where(z < 0, small, 1.0) / (1 + small)
        slope = scale * scale * small / ((1 + small) * (1 + small))
    return factor, slope


@triton.jit
def normalise(norm, alpha, channels, EPS: tl.constexpr, MODE: tl.constexpr):
    """Return u = s * r and r of one sample; alpha is zero after the last channel."""
    s = alpha * norm
    r = 1 / tl.sqrt(tl.sum(s * s, 0) / channels + EPS) if MODE == "l2" else 1 / (tl.sum(tl.abs(s), 0) / channels + EPS)
    return s * r, r


@triton.jit
def sign(x):
    """Return 1, 0 or -1, like the gradient of torch.abs."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def gradients(
    product, norm, alpha, gamma, beta, channels, EPS: tl.constexpr, MODE: tl.constexpr, ACTIVATION: tl.constexpr
):
    """Return the gradients of alpha, gamma and beta, the factor, and what x (l2) or sign(x) (l1) is multiplied by."""
    u, r = normalise(norm, alpha, channels, EPS, MODE)
    factor, slope = factor_and_slope(gamma * u + beta, ACTIVATION)
    dz = product * slope
    shared = tl.sum(dz * gamma * u, 0) / channels
    ds = r * (dz * gamma - (u if MODE == "l2" else sign(u)) * shared)
    grad_x = ds * alpha / norm if MODE == "l2" else ds * alpha
    return ds * norm, dz * u, dz, factor, grad_x
