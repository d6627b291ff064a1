"""The passes over one sample's map that kernels are made of, in either layout.

A map (N, C, *S) of M positions lies in memory as N samples of two axes: channels first, (C, M), or channels last,
(M, C). There a row holds several positions if C is small, and what belongs to channels is repeated as often (`lanes`).
A pass covers rows `first` to `last` of a sample, so that a thread may take a whole sample or a part of it. Numbers of
channels are float32 whatever the map's type (float64 for maps of float64). A sum runs in its own type over `_RUN`
values and goes on in float64, so it is as exact as torch's, whose sums are pairwise.

A pass may read the map through a batch norm and a ReLU that nobody has run: `affine_relu` values, max(x_c * stretch_c +
shift_c, floor). Without them stretch is 1, shift 0 and floor -inf, which changes no value. Loops that ask for `kind`
are split by the compiler, so the question is asked once.
"""

# pyright: basic

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from gatewise.kernels.cpu.openmp import FASTMATH_FLAGS

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
    """Return a stored element as a number to reckon with: bfloat16, which numba knows as its 16 bits, as float32."""
    raise NotImplementedError


def narrow(number, like):
    """Return a number as an element to store beside `like`."""
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
    """Return x as what reads it sees it; NaN stays NaN."""
    value = x * scale_c + shift
    return lower_bound if value < lower_bound else value


@numba.njit(inline="always", error_model="numpy")
def _term(value, kind):
    if kind == SQUARES:
        return value * value
    return abs(value) if kind == MAGNITUDES else value


@numba.njit(inline="always", error_model="numpy")
def _slope(value, kind):
    """Return half the derivative of x^2, or that of |x| or x."""
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
    """Return the sums of products and of the upstream gradient over one run of one channel."""
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
    """Repeat the first `channels` of the values in all that follow."""
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
    """Write bent x * factors_c + offsets_c into the rows of `out`, which may be `sample` itself.

    From the first row to the last, though the pass before has left the last rows in the cache: backwards takes twice as
    long, since memory is fetched ahead only forwards.
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
