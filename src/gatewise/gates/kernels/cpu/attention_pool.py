"""CPU implementation of the attention pooling in the `gc` (global context) gate.

Forward computes an online softmax in one pass over the map; backward also takes one pass.

Reference implementation: `gatewise.gates.functional.attention_pool` with logits w x_j + b.
"""

# pyright: basic

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import math

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from gatewise.gates.kernels.cpu.numba_utils import fast_njit, narrow, wide
from gatewise.gates.kernels.cpu.openmp import Kernel, address_of_float64, as_float64, real_at, words
from gatewise.gates.kernels.cpu.scheduling import Layout, maps_at, match_memory_format, my_blocks, rows_of

_BLOCK = 65536  # elements of a block of positions, which fit into the cache of one core
_RUN = 256  # positions per block at most: this many values are summed in the map's precision, then in float64
_HIGHEST, _TOTAL = 0, 1  # offsets in a part's state: highest logit, sum of exponentials, then the context


@numba.njit(inline="always", error_model="numpy")
def _positions(layout):
    """Return how many positions a block has."""
    return min(_RUN, max(16, _BLOCK // layout[1]))


@fast_njit
def _project_row(values, weight, out):
    for j in range(values.size):
        out[j] += weight * wide(values[j])


@fast_njit
def _project_pixel(values, weights):
    total = 0.0
    for c in range(values.size):
        total += weights[c] * wide(values[c])
    return total


@fast_njit
def _project(sample, last_axis, first, last, weights, out):
    """Write sum_c weights[c] x[c, j] for the positions first <= j < last, in float64 because large terms cancel."""
    if last_axis:
        for m in range(first, last):
            out[m - first] = _project_pixel(sample[m], weights)
    else:
        out[: last - first] = 0
        for c in range(weights.size):
            _project_row(sample[c, first:last], weights[c], out[: last - first])


@fast_njit
def _dot_row(values, shares):
    total = shares[0] * 0
    for j in range(values.size):
        total += wide(values[j]) * shares[j]
    return total


@fast_njit
def _add_pixel(values, share, out):
    for c in range(values.size):
        out[c] += wide(values[c]) * share


@fast_njit
def _add_shares(sample, last_axis, first, last, shares, totals, scratch):
    """Add sum_j shares[j - first] x[c, j], over first <= j < last, to the float64 total of each channel c."""
    if last_axis:
        scratch[:] = 0
        for m in range(first, last):
            _add_pixel(sample[m], shares[m - first], scratch)
        for c in range(totals.size):
            totals[c] += scratch[c]
    else:
        for c in range(totals.size):
            totals[c] += _dot_row(sample[c, first:last], shares[: last - first])


@fast_njit
def _raise_highest(logits, state):
    """Turn logits into exp(logit - running maximum); rescale the sums if the maximum has grown."""
    highest = max(state[_HIGHEST], np.float64(logits.max()))
    shrink = math.exp(state[_HIGHEST] - highest)
    for i in range(_TOTAL, state.size):
        state[i] *= shrink
    state[_HIGHEST] = highest
    for j in range(logits.size):
        logits[j] = math.exp(logits[j] - highest)
        state[_TOTAL] += logits[j]


def _forward(arguments):
    """Write the logits, and each part's highest logit, sum of exponentials and sum of values: see `forward`."""
    a = carray(words(arguments), 10)
    layout, parts, channels, positions = a[0:5], a[4], a[1], a[2]
    x = maps_at(arguments, a[5], (a[0], a[1], a[2], min(a[3], 1), a[4]))
    weight = carray(real_at(arguments, a[6]), channels)
    logits = carray(real_at(arguments, a[7]), (a[0], positions))
    states = carray(address_of_float64(a[8]), (a[0], parts, 2 + channels))
    bias = as_float64(a[9])
    step = _positions(layout)
    shares, scratch, projected = np.empty(step, weight.dtype), np.empty_like(weight), np.empty(step)
    first_block, last_block = my_blocks(a[0], parts)
    for block in range(first_block, last_block):
        n, part, first, last = rows_of(block, parts, positions)
        state = states[n, part]
        state[:] = 0
        state[_HIGHEST] = -np.inf
        for start in range(first, last, step):
            end = min(start + step, last)
            _project(x[n], a[3], start, end, weight, projected)
            for j in range(end - start):
                shares[j] = projected[j] + bias
                logits[n, start + j] = shares[j]
            _raise_highest(shares[: end - start], state)
            _add_shares(x[n], a[3], start, end, shares, state[2:], scratch)


@fast_njit
def _grad_x_row(grad_output, factor, attention, context, weight, of_logits, out):
    for j in range(out.size):
        out[j] = narrow(wide(grad_output[j]) * factor + attention[j] * context + weight * of_logits[j], out[j])


@fast_njit
def _add_gradients_pixel(grad_output, factors, attention, contexts, weights, of_logit, out):
    for c in range(out.size):
        out[c] = narrow(wide(grad_output[c]) * factors[c] + attention * contexts[c] + weights[c] * of_logit, out[c])


@fast_njit
def _grad_x(grad_output, last_axis, first, last, factors, attention, contexts, weights, of_logits, out):
    if last_axis:
        for m in range(first, last):
            j = m - first
            _add_gradients_pixel(grad_output[m], factors, attention[j], contexts, weights, of_logits[j], out[m])
    else:
        for c in range(factors.size):
            row = grad_output[c, first:last]
            _grad_x_row(row, factors[c], attention, contexts[c], weights[c], of_logits, out[c, first:last])


def _backward(arguments):
    """Write the gradient of x, and each part's gradient of the weight: see `backward`."""
    a = carray(words(arguments), 14)
    layout, parts, channels, positions = a[0:5], a[4], a[1], a[2]
    one_each = (a[0], a[1], a[2], min(a[3], 1), a[4])
    x, grad_output = maps_at(arguments, a[5], one_each), maps_at(arguments, a[6], one_each)
    out = maps_at(arguments, a[7], one_each)
    weight = carray(real_at(arguments, a[8]), channels)
    attention = carray(real_at(arguments, a[9]), (a[0], positions))
    of_context = carray(real_at(arguments, a[10]), (a[0], channels))
    of_weight = carray(address_of_float64(a[11]), (a[0], parts, channels))
    factors = carray(real_at(arguments, a[12]), (a[0], channels))
    step = _positions(layout)
    expected = carray(address_of_float64(a[13]), a[0])
    of_logits, scratch, projected = np.empty(step, weight.dtype), np.empty_like(weight), np.empty(step)
    first_block, last_block = my_blocks(a[0], parts)
    for block in range(first_block, last_block):
        n, part, first, last = rows_of(block, parts, positions)
        of_weight[n, part] = 0
        for start in range(first, last, step):
            end = min(start + step, last)
            shares = attention[n, start:end]
            _project(x[n], a[3], start, end, of_context[n], projected)
            for j in range(end - start):
                of_logits[j] = shares[j] * (projected[j] - expected[n])
            _add_shares(x[n], a[3], start, end, of_logits, of_weight[n, part], scratch)
            _grad_x(grad_output[n], a[3], start, end, factors[n], shares, of_context[n], weight, of_logits, out[n])


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the context (N, C), the attention (N, M) of a dense map of M positions, and the context in float64.

    Args:
        x: (N, C, *S).
        weight: (C,), float32 like the bias (float64 for a float64 map).
        bias: (1,) or None.
    """
    layout = Layout.of(x, by_positions=True)
    logits = weight.new_empty(layout.samples, layout.positions)
    states = torch.empty(layout.samples, layout.parts, 2 + layout.channels, dtype=torch.float64, device="cpu")
    offset = 0.0 if bias is None else float(bias)
    _forward_kernel(x, *layout, x, weight, logits, states, reals=(offset,))
    highest = states[..., :1].amax(1, keepdim=True)
    states = (states[..., 1:] * (states[..., :1] - highest).exp()).sum(1)  # (N, 1 + C)
    total = states[:, :1]
    attention = (logits - highest[:, 0].to(logits.dtype)).exp() / total.to(logits.dtype)
    context = states[:, 1:] / total
    return context.to(weight.dtype), attention, context


def backward(
    of_context: Tensor,
    x: Tensor,
    attention: Tensor,
    context: Tensor,
    weight: Tensor,
    grad_output: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, plus grad_output * factors, and the gradient of the weight per sample, (N, C).

    The gradient of the bias is zero, because softmax is invariant to it.
    """
    layout = Layout.of(x, by_positions=True)
    factors = torch.ones_like(of_context) if factors is None else factors
    grad_output = torch.zeros_like(x) if grad_output is None else match_memory_format(grad_output, x)
    expected = (of_context.double() * context).sum(1)  # sum_k attention_k of_context x_k
    gradient, of_weight = torch.empty_like(x), layout.totals(1)
    arguments = x, grad_output, gradient, weight, attention, of_context, of_weight, factors, expected
    _backward_kernel(x, *layout, *arguments)
    return gradient, of_weight.sum((1, 2)).to(weight.dtype)
