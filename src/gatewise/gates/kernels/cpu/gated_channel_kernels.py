"""The kernels of `gct` for the CPU: two passes over each sample, the second from the cache.

Reference implementation: `gatewise.gates.gated_channel_transform`.
"""

# pyright: basic

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import math

import numba
import numpy as np
from numba import carray

from gatewise.gates.kernels.cpu.numba_utils import (
    MAGNITUDES,
    SQUARES,
    VALUES,
    add_gradients,
    add_products,
    add_sums,
    fast_njit,
    repeat,
    scale,
)
from gatewise.gates.kernels.cpu.openmp import Kernel, address_of_float64, as_float64, real_at, words
from gatewise.gates.kernels.cpu.scheduling import (
    APPLY,
    MEASURE,
    lanes_of,
    maps_at,
    my_blocks,
    phase_of,
    rows_of,
)

ACTIVATIONS = {"tanh": 0, "sigmoid": 1, "relu": 2, "elu": 3}
STATISTICS = {"l2": SQUARES, "l1": MAGNITUDES, "sum": VALUES}


@numba.njit(inline="always", error_model="numpy")
def _factor(z, activation):
    """Return activation(logit) as the gate's factor, and its derivative."""
    if activation == 0:
        t = math.tanh(z)
        return 1 + t, 1 - t * t
    if activation == 1:
        s = 1 / (1 + math.exp(-z))
        return s, s * (1 - s)
    if activation == 2:
        return 1 + (z * 0 if z < 0 else z), z * 0 + (0 if z < 0 else 1)
    return (1 + z, z * 0 + 1) if z > 0 else (1 + math.expm1(z), math.exp(z))


@fast_njit
def _reciprocal(norms, alpha, kind, eps):
    """Return 1 / the divisor that all channels of a sample share."""
    total = 0.0
    for c in range(norms.size):
        s = np.float64(norms[c] * alpha[c])
        total += s * s if kind == SQUARES else abs(s)
    mean = total / norms.size + eps
    return 1 / math.sqrt(mean) if kind == SQUARES else 1 / mean


@fast_njit
def _put_together(totals, kind, eps, norms):
    """Combine the sums of a sample's parts into its norms."""
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
    """Write y, the norms and the factors: see `gated_channel_transform.forward`."""
    a = carray(words(arguments), 18)
    layout, parts = a[0:5], a[4]
    samples, channels, last_axis, lanes = layout[0], layout[1], layout[3], lanes_of(layout)
    x = maps_at(arguments, a[5], layout)
    alpha, gamma, beta, norms = _numbers_at(arguments, a[7:11], samples, channels)
    totals = carray(address_of_float64(a[11]), (samples, parts, channels))
    kind, activation, eps = a[12], a[13], as_float64(a[16])
    scratch, factors, offsets = np.empty(lanes, alpha.dtype), np.empty(lanes, alpha.dtype), np.zeros(lanes, alpha.dtype)
    scale_c, shift = np.ones(lanes, alpha.dtype), np.zeros(lanes, alpha.dtype)
    if a[14]:
        scale_c[:channels] = carray(real_at(arguments, a[14]), (2, channels))[0]
        shift[:channels] = carray(real_at(arguments, a[14]), (2, channels))[1]
        repeat(scale_c, channels)
        repeat(shift, channels)
    lower_bound = np.empty(1, alpha.dtype)
    lower_bound[0] = as_float64(a[17])
    for step in range(min(parts, 2)):
        phase = phase_of(step, parts)
        first_block, last_block = my_blocks(samples, parts)
        for block in range(first_block, last_block):
            n, part, first, last = rows_of(block, parts, x.shape[1])
            if phase != APPLY:
                totals[n, part] = 0
                add_sums(x[n], last_axis, first, last, kind, scale_c, shift, lower_bound[0], totals[n, part], scratch)
            if phase != MEASURE:
                _put_together(totals[n], kind, eps, norms[n])
                reciprocal = _reciprocal(norms[n], alpha, kind, eps)
                begin, end = (0, channels) if last_axis or a[15] else (first, last)  # channels of this thread
                for c in range(begin, end):
                    factors[c] = norms[n, c] * alpha[c] * (gamma[c] * reciprocal) + beta[c]  # in the parameters' dtype
                    factors[c] = _factor(factors[c], activation)[0]
                if a[15]:
                    carray(real_at(arguments, a[15]), (samples, channels))[n] = factors[:channels]
                    factors[:] = 1
                repeat(factors, channels)
                if a[6]:
                    y = maps_at(arguments, a[6], layout)
                    scale(x[n], last_axis, first, last, scale_c, shift, lower_bound[0], factors, offsets, y[n])


def _backward(arguments):
    """Write the gradients of x, alpha, gamma and beta: see `gated_channel_transform.backward`."""
    a = carray(words(arguments), 17)
    layout, parts = a[0:5], a[4]
    samples, channels, last_axis, lanes = layout[0], layout[1], layout[3], lanes_of(layout)
    x, grad_output = maps_at(arguments, a[5], layout), maps_at(arguments, a[6], layout)
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
                add_products(grad_output[n], x[n], last_axis, first, last, totals[n, part], scratch)
            if phase != MEASURE:
                _add_parts(totals[n], products)
                _gradients(
                    products, norms[n], alpha, gamma, beta, kind, activation, eps, factors, slopes, parameters[:, n]
                )
                if a[15]:
                    repeat(factors, channels)
                    repeat(slopes, channels)
                    out = maps_at(arguments, a[15], layout)
                    add_gradients(grad_output[n], x[n], last_axis, first, last, kind, factors, slopes, out[n])


@fast_njit
def _add_parts(totals, products):
    """Combine the sums of a sample's parts, (parts, 2, C), into sum_j g_j x_j per channel."""
    for c in range(products.size):
        products[c] = 0
        for part in range(totals.shape[0]):
            products[c] += totals[part, 0, c]


@fast_njit
def _gradients(products, norms, alpha, gamma, beta, kind, activation, eps, factors, slopes, parameters):
    """Compute from sum_j g_j x_j of each channel its factor, the slope of the map and the parameters' gradients (3, C).

    In float64, because the term of the shared divisor nearly cancels the rest.
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


forward_kernel, backward_kernel = Kernel(_forward), Kernel(_backward)
