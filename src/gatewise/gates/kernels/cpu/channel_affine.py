"""Channel statistics and channel-wise scaling for the CPU, one pass over the map each.

torch's own operation is used where it needs one pass too: a mean, and a product without offsets, except for bfloat16
maps, for which torch would create a float32 copy.

Reference implementations: `gatewise.gates.functional.average_pool`, and x * factors + offsets.
"""

# pyright: basic

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import numpy as np
import torch
from numba import carray
from torch import Tensor

from gatewise.gates.kernels.cpu import numba_utils
from gatewise.gates.kernels.cpu.openmp import Kernel, address_of_float64, real_at, words
from gatewise.gates.kernels.cpu.scheduling import (
    Layout,
    dense,
    lanes_of,
    maps_at,
    match_memory_format,
    my_blocks,
    rows_of,
)


def _sums(arguments):
    """Write the sum of each channel over each part of each sample."""
    a = carray(words(arguments), 7)
    layout, parts = a[0:5], a[4]
    x = maps_at(arguments, a[5], layout)
    totals = carray(address_of_float64(a[6]), (layout[0], parts, layout[1]))
    lanes, real = lanes_of(layout), carray(real_at(arguments, a[5]), 1).dtype
    scratch, ones, zeros, lower_bound = (
        np.empty(lanes, real),
        np.ones(lanes, real),
        np.zeros(lanes, real),
        np.empty(1, real),
    )
    lower_bound[0] = -np.inf
    first_block, last_block = my_blocks(layout[0], parts)
    for block in range(first_block, last_block):
        n, part, first, last = rows_of(block, parts, x.shape[1])
        totals[n, part] = 0
        numba_utils.add_sums(
            x[n], layout[3], first, last, numba_utils.VALUES, ones, zeros, lower_bound[0], totals[n, part], scratch
        )


def _products(arguments):
    """Write two sums of each channel over each part of each sample: of grad_output * x, and of grad_output."""
    a = carray(words(arguments), 8)
    layout, parts = a[0:5], a[4]
    grad_output, x = maps_at(arguments, a[5], layout), maps_at(arguments, a[6], layout)
    totals = carray(address_of_float64(a[7]), (layout[0], parts, 2, layout[1]))
    scratch = np.empty((2, lanes_of(layout)), carray(real_at(arguments, a[5]), 1).dtype)
    first_block, last_block = my_blocks(layout[0], parts)
    for block in range(first_block, last_block):
        n, part, first, last = rows_of(block, parts, x.shape[1])
        totals[n, part] = 0
        numba_utils.add_products(grad_output[n], x[n], layout[3], first, last, totals[n, part], scratch)


def _scale(arguments):
    """Write x * factors + offsets."""
    a = carray(words(arguments), 9)
    layout, parts = a[0:5], a[4]
    x, out = maps_at(arguments, a[5], layout), maps_at(arguments, a[6], layout)
    channels, lanes = layout[1], lanes_of(layout)
    real = carray(real_at(arguments, a[5]), 1).dtype
    factors, offsets = np.ones(lanes, real), np.zeros(lanes, real)
    ones, zeros, lower_bound = np.ones(lanes, real), np.zeros(lanes, real), np.empty(1, real)
    lower_bound[0] = -np.inf
    first_block, last_block = my_blocks(layout[0], parts)
    for block in range(first_block, last_block):
        n, _, first, last = rows_of(block, parts, x.shape[1])
        if a[7]:
            factors[:channels] = carray(real_at(arguments, a[7]), (layout[0], channels))[n]
            numba_utils.repeat(factors, channels)
        if a[8]:
            offsets[:channels] = carray(real_at(arguments, a[8]), (layout[0], channels))[n]
            numba_utils.repeat(offsets, channels)
        numba_utils.scale(x[n], layout[3], first, last, ones, zeros, lower_bound[0], factors, offsets, out[n])


_sums_kernel, _products_kernel, _scale_kernel = Kernel(_sums), Kernel(_products), Kernel(_scale)


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel of a dense map: (N, C, *S) -> (N, C), at least float32."""
    if x.dtype != torch.bfloat16:
        return x.mean(tuple(range(2, x.dim())))
    layout = Layout.of(x)
    totals = layout.totals(1)
    _sums_kernel(x, *layout, x, totals)
    return (totals.sum((1, 2)) / layout.positions).to(_real(x))


def channel_products(grad_output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_j g_j x_j and sum_j g_j of each channel, (N, C) each, at least float32."""
    layout, grad_output = Layout.of(x), match_memory_format(grad_output, x)
    totals = layout.totals(2)
    _products_kernel(x, *layout, grad_output, x, totals)
    products, sums = totals.sum(1).to(_real(x)).unbind(1)
    return products, sums


def channel_affine(x: Tensor, factors: Tensor | None, offsets: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return x * factors + offsets, each (N, C) and contiguous or None, written into `out` (laid out as x) if given."""
    if offsets is None and factors is not None and x.dtype != torch.bfloat16:
        return torch.mul(x, factors.view(*x.shape[:2], *[1] * (x.dim() - 2)), out=out)
    x = dense(x)
    layout = Layout.of(x)
    out = torch.empty_like(x) if out is None else out
    _scale_kernel(x, *layout, x, out, factors, offsets)
    return out
