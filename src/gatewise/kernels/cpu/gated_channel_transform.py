"""`gct` for the CPU: forward and backward in two passes over each sample, the second while it is in the cache.

The definition to match: `gatewise.gates.gated_channel_transform`.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from gatewise.kernels.cpu.loops import (
    MAGNITUDES,
    SQUARES,
    VALUES,
    a_pass,
    add_products,
    add_sums,
    pull_back,
    repeat,
    scale,
)
from gatewise.kernels.cpu.samples import (
    APPLY,
    MEASURE,
    Layout,
    beside,
    lanes_of,
    maps_at,
    my_blocks,
    phase_of,
    rows_of,
)
from gatewise.kernels.cpu.threads import Kernel, address_of_float64, as_float64, real_at, words

ACTIVATIONS = {"tanh": 0, "sigmoid": 1, "relu": 2, "elu": 3}
STATISTICS = {"l2": SQUARES, "l1": MAGNITUDES, "sum": VALUES}


@numba.njit(inline="always", error_model="numpy")
def _factor(z, activation):
    """Return the factor of a gate's logit and its derivative."""
    if activation == 0:
        t = math.tanh(z)
        return 1 + t, 1 - t * t
    if activation == 1:
        s = 1 / (1 + math.exp(-z))
        return s, s * (1 - s)
    if activation == 2:
        return 1 + (z * 0 if z < 0 else z), z * 0 + (0 if z < 0 else 1)
    return (1 + z, z * 0 + 1) if z > 0 else (1 + math.expm1(z), math.exp(z))


@a_pass
def _reciprocal(norms, alpha, kind, eps):
    """Return 1 / the divisor that all channels of a sample share."""
    total = 0.0
    for c in range(norms.size):
        s = np.float64(norms[c] * alpha[c])
        total += s * s if kind == SQUARES else abs(s)
    mean = total / norms.size + eps
    return 1 / math.sqrt(mean) if kind == SQUARES else 1 / mean


@a_pass
def _put_together(totals, kind, eps, norms):
    """Write a sample's norms from the sums of its parts."""
    for c in range(norms.size):
        total = 0.0
        for part in range(totals.shape[0]):
            total += totals[part, c]
        norms[c] = math.sqrt(total + eps) if kind == SQUARES else total


@numba.njit(inline="always", error_model="numpy")
def _numbers_at(arguments, addresses, samples, channels):
    """Return alpha, gamma, beta and the norms."""
    alpha = carray(real_at(arguments, addresses[0]), channels)
    gamma = carray(real_at(arguments, addresses[1]), channels)
    beta = carray(real_at(arguments, addresses[2]), channels)
    return alpha, gamma, beta, carray(real_at(arguments, addresses[3]), (samples, channels))


def _forward(arguments):
    """Write y, the norms and the factors: see `forward`."""
    a = carray(words(arguments), 18)
    layout, parts = a[0:5], a[4]
    samples, channels, last_axis, lanes = layout[0], layout[1], layout[3], lanes_of(layout)
    x = maps_at(arguments, a[5], layout)
    alpha, gamma, beta, norms = _numbers_at(arguments, a[7:11], samples, channels)
    totals = carray(address_of_float64(a[11]), (samples, parts, channels))
    kind, activation, eps = a[12], a[13], as_float64(a[16])
    scratch, factors, offsets = np.empty(lanes, alpha.dtype), np.empty(lanes, alpha.dtype), np.zeros(lanes, alpha.dtype)
    stretch, shift = np.ones(lanes, alpha.dtype), np.zeros(lanes, alpha.dtype)
    if a[14]:
        stretch[:channels] = carray(real_at(arguments, a[14]), (2, channels))[0]
        shift[:channels] = carray(real_at(arguments, a[14]), (2, channels))[1]
        repeat(stretch, channels)
        repeat(shift, channels)
    floor = np.empty(1, alpha.dtype)
    floor[0] = as_float64(a[17])
    for step in range(min(parts, 2)):
        phase = phase_of(step, parts)
        first_block, last_block = my_blocks(samples, parts)
        for block in range(first_block, last_block):
            n, part, first, last = rows_of(block, parts, x.shape[1])
            if phase != APPLY:
                totals[n, part] = 0
                add_sums(x[n], last_axis, first, last, kind, stretch, shift, floor[0], totals[n, part], scratch)
            if phase != MEASURE:
                _put_together(totals[n], kind, eps, norms[n])
                reciprocal = _reciprocal(norms[n], alpha, kind, eps)
                begin, end = (0, channels) if last_axis or a[15] else (first, last)  # the channels that are needed here
                for c in range(begin, end):
                    factors[c] = norms[n, c] * alpha[c] * (gamma[c] * reciprocal) + beta[c]  # in the channels' own type
                    factors[c] = _factor(factors[c], activation)[0]
                if a[15]:
                    carray(real_at(arguments, a[15]), (samples, channels))[n] = factors[:channels]
                    factors[:] = 1
                repeat(factors, channels)
                if a[6]:
                    y = maps_at(arguments, a[6], layout)
                    scale(x[n], last_axis, first, last, stretch, shift, floor[0], factors, offsets, y[n])


def _backward(arguments):
    """Write the gradients of x, alpha, gamma and beta: see `backward`."""
    a = carray(words(arguments), 17)
    layout, parts = a[0:5], a[4]
    samples, channels, last_axis, lanes = layout[0], layout[1], layout[3], lanes_of(layout)
    x, upstream = maps_at(arguments, a[5], layout), maps_at(arguments, a[6], layout)
    alpha, gamma, beta, norms = _numbers_at(arguments, a[7:11], samples, channels)
    totals = carray(address_of_float64(a[11]), (samples, parts, 2, channels))
    kind, activation, eps = a[12], a[13], as_float64(a[16])
    parameters = carray(real_at(arguments, a[14]), (3, samples, channels))
    scratch = np.empty((2, lanes), alpha.dtype)
    factors, slopes, products = np.empty(lanes, alpha.dtype), np.empty(lanes, alpha.dtype), np.empty(channels)
    for step in range(min(parts, 2)):
        phase = phase_of(step, parts)
        first_block, last_block = my_blocks(samples, parts)
        for block in range(first_block, last_block):
            n, part, first, last = rows_of(block, parts, x.shape[1])
            if phase != APPLY:
                totals[n, part] = 0
                add_products(upstream[n], x[n], last_axis, first, last, totals[n, part], scratch)
            if phase != MEASURE:
                _add_parts(totals[n], products)
                _gradients(
                    products, norms[n], alpha, gamma, beta, kind, activation, eps, factors, slopes, parameters[:, n]
                )
                if a[15]:
                    repeat(factors, channels)
                    repeat(slopes, channels)
                    out = maps_at(arguments, a[15], layout)
                    pull_back(upstream[n], x[n], last_axis, first, last, kind, factors, slopes, out[n])


@a_pass
def _add_parts(totals, products):
    """Write sum_j g_j x_j of each channel from the sums of a sample's parts, (parts, 2, C)."""
    for c in range(products.size):
        products[c] = 0
        for part in range(totals.shape[0]):
            products[c] += totals[part, 0, c]


@a_pass
def _gradients(products, norms, alpha, gamma, beta, kind, activation, eps, factors, slopes, parameters):
    """Turn each channel's sum_j g_j x_j into its factor, the slope of the map and the gradients of parameters (3, C).

    In float64, since what the shared divisor takes back nearly cancels the rest.
    """
    reciprocal = _reciprocal(norms, alpha, kind, eps)
    shared = 0.0
    for c in range(norms.size):
        s = np.float64(norms[c]) * alpha[c]
        factor, derivative = _factor(s * (gamma[c] * reciprocal) + beta[c], activation)
        factors[c] = factor
        products[c] *= derivative
        parameters[2, c] = products[c]
        parameters[1, c] = products[c] * s * reciprocal
        shared += products[c] * gamma[c] * s
    shared *= reciprocal * reciprocal / norms.size
    for c in range(norms.size):
        s = np.float64(norms[c]) * alpha[c]
        back = s * reciprocal if kind == SQUARES else (1.0 if s > 0 else 0.0) - (1.0 if s < 0 else 0.0)
        of_s = products[c] * gamma[c] * reciprocal - shared * back
        parameters[0, c] = of_s * norms[c]
        slopes[c] = of_s * alpha[c] / norms[c] if kind == SQUARES else of_s * alpha[c]


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


@dataclass(frozen=True)
class Reading:
    """Values read as max(x_c * stretch_c + shift_c, floor).

    Attributes:
        affine: stretch and shift, (2, C), of a batch norm in eval mode; None for 1 and 0.
        floor: 0 for a ReLU.
    """

    affine: Tensor | None = None
    floor: float = -math.inf


_AS_IT_IS = Reading()


def forward(
    x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, *, mode: str, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Return the gated map and the norms (N, C) of the channels of x.

    Args:
        x: (N, C, *S), dense.
        alpha: (C,), as gamma and beta float32 (float64 for a map of float64).
        gamma: (C,).
        beta: (C,).
        mode: "l2", "l1", or "sum", which is l1 for maps that are known not to be negative.
        eps: of both roots.
        activation: which factor.
    """
    y = torch.empty_like(x)
    return y, _run_forward(x, y, (alpha, gamma, beta), mode, eps, activation, _AS_IT_IS, None)


def infer(
    x: Tensor,
    y: Tensor | None,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str,
    eps: float,
    activation: str,
    reading: Reading,
    factors: Tensor | None = None,
) -> None:
    """Gate a map that is read through a norm and a ReLU which nobody has run.

    Args:
        x: (N, C, *S), dense.
        y: takes the result, may be x; None writes none.
        alpha: as the following options those of `forward`.
        gamma: (C,).
        beta: (C,).
        mode: of the gate.
        eps: of the gate.
        activation: of the gate.
        reading: what x is read through.
        factors: (N, C), takes the factors; y is then what was read, not multiplied by them.
    """
    _run_forward(x, y, (alpha, gamma, beta), mode, eps, activation, reading, factors)


def _run_forward(
    x: Tensor,
    y: Tensor | None,
    parameters: tuple[Tensor, Tensor, Tensor],
    mode: str,
    eps: float,
    activation: str,
    reading: Reading,
    factors: Tensor | None,
) -> Tensor:
    layout = Layout.of(x)
    norms = parameters[0].new_empty(layout.samples, layout.channels)
    totals = layout.totals(1)
    maps = x, y, *parameters, norms, totals
    options = STATISTICS[mode], ACTIVATIONS[activation], reading.affine, factors
    _forward_kernel(x, *layout, *maps, *options, reals=(eps, reading.floor))
    return norms


def backward(
    upstream: Tensor,
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
    """Return the gradients of x (None unless asked for) and of the parameters for each sample, (3, N, C)."""
    layout = Layout.of(x)
    upstream = beside(upstream, x)
    gradient = torch.empty_like(x) if needs_map else None
    parameters = alpha.new_empty(3, layout.samples, layout.channels)
    totals = layout.totals(2)
    maps = x, upstream, alpha, gamma, beta, norms, totals
    options = STATISTICS[mode], ACTIVATIONS[activation], parameters, gradient
    _backward_kernel(x, *layout, *maps, *options, reals=(eps,))
    return gradient, parameters
