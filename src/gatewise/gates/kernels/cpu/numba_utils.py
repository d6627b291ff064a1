"""Passes over the map of one sample, from which the kernels are built, for both memory layouts.

A map (N, C, *S) with M positions is stored as N samples of two axes: channels first, (C, M), or channels last, (M, C).
In channels last, a row holds several positions if C is small, and per-channel values are repeated accordingly
(`lanes`). A pass covers rows `first` to `last` of a sample, so that a thread can take a complete sample or a part of
it. Per-channel values are float32 for every dtype of map (float64 for float64 maps). A sum uses its own dtype for
`_RUN` values and then float64, which is as exact as torch's pairwise sums.

A pass can apply a batch norm and a ReLU to the map while reading it: max(x_c * scale_c + shift_c, lower_bound).
Without them scale is 1, shift 0 and lower_bound -inf, which changes no value. The compiler splits loops that depend on
`kind`, so the branch is taken once.
"""

# pyright: basic

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from gatewise.gates.kernels.cpu.openmp import FASTMATH_FLAGS

SQUARES, MAGNITUDES, VALUES = 0, 1, 2  # what is summed for each channel: x^2, |x| or x
_RUN = 4096  # values of a channel
_PIXELS = 64  # positions of all channels

fast_njit = numba.njit(fastmath=FASTMATH_FLAGS, error_model="numpy", boundscheck=False)


@intrinsic
def _of_bfloat16(typing, bits):  # noqa: ARG001
    """Return the float32 whose upper half is `bits`."""

    def generate(context, builder, signature, args):  # noqa: ARG001
        whole = builder.shl(builder.zext(args[0], _WORD), _WORD(16))
        return builder.bitcast(whole, ir.FloatType())

    return types.float32(bits), generate


@intrinsic
def _to_bfloat16(typing, number):  # noqa: ARG001
    """Return the upper half of a float32, rounded to the nearest, ties to even."""

    def generate(context, builder, signature, args):  # noqa: ARG001
        bits = builder.bitcast(args[0], _WORD)
        odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _WORD(0x7FFF)), odd), _WORD(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, _WORD(0x7FC0), rounded), ir.IntType(16))

    return types.uint16(types.float32), generate


_WORD = ir.IntType(32)


def wide(stored):
    """Return a stored element as a number: bfloat16, stored as 16 bits because numba lacks it, becomes float32."""
    raise NotImplementedError


def narrow(number, like):
    """Convert a number to the storage type of `like`."""
    raise NotImplementedError


@overload(wide, inline="always")
def _wide(stored):
    if stored == types.uint16:
        return lambda stored: _of_bfloat16(stored)  # noqa: PLW0108  # numba takes functions of Python only
    return lambda stored: stored


@overload(narrow, inline="always")
def _narrow(number, like):  # noqa: ARG001  # numba compares the names
    if like == types.uint16:
        return lambda number, like: _to_bfloat16(number)  # noqa: ARG005
    return lambda number, like: number  # noqa: ARG005


@numba.njit(inline="always", error_model="numpy")
def affine_relu(x, scale_c, shift, lower_bound):
    """Return max(x * scale_c + shift, lower_bound); NaN stays NaN."""
    value = x * scale_c + shift
    return lower_bound if value < lower_bound else value


@numba.njit(inline="always", error_model="numpy")
def _term(value, kind):
    if kind == SQUARES:
        return value * value
    return abs(value) if kind == MAGNITUDES else value


@numba.njit(inline="always", error_model="numpy")
def _slope(value, kind):
    """Return half the derivative of x^2, or the derivative of |x| or x."""
    if kind == SQUARES:
        return value
    one = value * 0 + 1
    return (one if value > 0 else 0) - (one if value < 0 else 0) if kind == MAGNITUDES else one


@fast_njit
def _sum_run(values, kind, scale_c, shift, lower_bound):
    total = scale_c * 0
    for j in range(values.size):
        total += _term(affine_relu(wide(values[j]), scale_c, shift, lower_bound), kind)
    return total


@fast_njit
def _sum_pixels(pixels, kind, scale_c, shift, lower_bound, sums):
    for m in range(pixels.shape[0]):
        for c in range(sums.size):
            sums[c] += _term(affine_relu(wide(pixels[m, c]), scale_c[c], shift[c], lower_bound), kind)


@fast_njit
def add_sums(sample, last_axis, first, last, kind, scale_c, shift, lower_bound, totals, scratch):
    """Add the rows' part of each channel's statistic to `totals`, float64 (C,)."""
    if last_axis:
        for m in range(first, last, _PIXELS):
            scratch[:] = 0
            _sum_pixels(sample[m : min(m + _PIXELS, last)], kind, scale_c, shift, lower_bound, scratch)
            for lane in range(scratch.size):
                totals[lane % totals.size] += scratch[lane]
        return
    for c in range(first, last):
        for start in range(0, sample.shape[1], _RUN):
            totals[c] += _sum_run(sample[c, start : start + _RUN], kind, scale_c[c], shift[c], lower_bound)


@fast_njit
def _dot_run(grad_output, values):
    """Return the sums of grad_output * x and of grad_output over one run of one channel."""
    products = wide(values[0]) * 0
    plain = products
    for j in range(values.size):
        g = wide(grad_output[j])
        products += g * wide(values[j])
        plain += g
    return products, plain


@fast_njit
def _dot_pixels(grad_output, pixels, products, plain):
    for m in range(pixels.shape[0]):
        for c in range(products.size):
            g = wide(grad_output[m, c])
            products[c] += g * wide(pixels[m, c])
            plain[c] += g


@fast_njit
def add_products(grad_output, sample, last_axis, first, last, totals, scratch):
    """Add the rows' part of sum_j g_j x_j and sum_j g_j of each channel to `totals`, float64 (2, C)."""
    if last_axis:
        for m in range(first, last, _PIXELS):
            end = min(m + _PIXELS, last)
            scratch[:] = 0
            _dot_pixels(grad_output[m:end], sample[m:end], scratch[0], scratch[1])
            for lane in range(scratch.shape[1]):
                totals[0, lane % totals.shape[1]] += scratch[0, lane]
                totals[1, lane % totals.shape[1]] += scratch[1, lane]
        return
    for c in range(first, last):
        for start in range(0, sample.shape[1], _RUN):
            products, plain = _dot_run(grad_output[c, start : start + _RUN], sample[c, start : start + _RUN])
            totals[0, c] += products
            totals[1, c] += plain


@fast_njit
def repeat(values, channels):
    """Repeat the first `channels` values over the rest of the array."""
    for lane in range(channels, values.size):
        values[lane] = values[lane - channels]


@fast_njit
def _scale_run(values, scale_c, shift, lower_bound, factor, offset, out):
    for j in range(values.size):
        out[j] = narrow(affine_relu(wide(values[j]), scale_c, shift, lower_bound) * factor + offset, out[j])


@fast_njit
def _scale_pixel(values, scale_c, shift, lower_bound, factors, offsets, out):
    for c in range(values.size):
        value = affine_relu(wide(values[c]), scale_c[c], shift[c], lower_bound)
        out[c] = narrow(value * factors[c] + offsets[c], out[c])


@fast_njit
def scale(sample, last_axis, first, last, scale_c, shift, lower_bound, factors, offsets, out):
    """Write affine_relu(x) * factors_c + offsets_c into the rows of `out`, which may be `sample` itself.

    Rows run forwards, although the pass before has left the last rows in the cache: backwards took twice as long,
    because the hardware prefetches forwards.
    """
    if last_axis:
        for m in range(first, last):
            _scale_pixel(sample[m], scale_c, shift, lower_bound, factors, offsets, out[m])
    else:
        for c in range(first, last):
            _scale_run(sample[c], scale_c[c], shift[c], lower_bound, factors[c], offsets[c], out[c])


@fast_njit
def _add_gradients_run(grad_output, values, kind, factor, slope, out):
    for j in range(values.size):
        out[j] = narrow(wide(grad_output[j]) * factor + _slope(wide(values[j]), kind) * slope, out[j])


@fast_njit
def _add_gradients_pixel(grad_output, values, kind, factors, slopes, out):
    for c in range(values.size):
        out[c] = narrow(wide(grad_output[c]) * factors[c] + _slope(wide(values[c]), kind) * slopes[c], out[c])


@fast_njit
def add_gradients(grad_output, sample, last_axis, first, last, kind, factors, slopes, out):
    """Write the map's gradient, g factors_c + slopes_c times x, sign(x) or 1, as the statistic is of `kind`."""
    if last_axis:
        for m in range(first, last):
            _add_gradients_pixel(grad_output[m], sample[m], kind, factors, slopes, out[m])
    else:
        for c in range(first, last):
            _add_gradients_run(grad_output[c], sample[c], kind, factors[c], slopes[c], out[c])
