"""The passes over one sample's map that kernels are made of, in either layout.

A map (N, C, *S) of M positions lies in memory as N samples of two axes: channels first, (C, M), or channels last,
(M, C). There a row holds several positions if C is small, and what belongs to channels is repeated as often (`lanes`).
A pass covers rows `first` to `last` of a sample, so that a thread may take a whole sample or a part of it. Numbers of
channels are float32 whatever the map's type (float64 for maps of float64). A sum runs in its own type over `_RUN`
values and goes on in float64, so it is as exact as torch's, whose sums are pairwise.

A pass may read the map through a batch norm and a ReLU that nobody has run: `bent` values, max(x_c * stretch_c +
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

from gatewise.kernels.cpu.openmp import REASSOCIATED

SQUARES, MAGNITUDES, VALUES = 0, 1, 2  # what is summed for each channel: x^2, |x| or x
_RUN = 4096  # values of a channel
_PIXELS = 64  # positions of all channels

a_pass = numba.njit(fastmath=REASSOCIATED, error_model="numpy", boundscheck=False)


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
def bent(x, stretch, shift, floor):
    """Return x as what reads it sees it; NaN stays NaN."""
    value = x * stretch + shift
    return floor if value < floor else value


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


@a_pass
def _sum_run(values, kind, stretch, shift, floor):
    total = stretch * 0
    for j in range(values.size):
        total += _term(bent(wide(values[j]), stretch, shift, floor), kind)
    return total


@a_pass
def _sum_pixels(pixels, kind, stretch, shift, floor, sums):
    for m in range(pixels.shape[0]):
        for c in range(sums.size):
            sums[c] += _term(bent(wide(pixels[m, c]), stretch[c], shift[c], floor), kind)


@a_pass
def add_sums(sample, last_axis, first, last, kind, stretch, shift, floor, totals, scratch):
    """Add the rows' part of each channel's statistic to `totals`, float64 (C,)."""
    if last_axis:
        for m in range(first, last, _PIXELS):
            scratch[:] = 0
            _sum_pixels(sample[m : min(m + _PIXELS, last)], kind, stretch, shift, floor, scratch)
            for lane in range(scratch.size):
                totals[lane % totals.size] += scratch[lane]
        return
    for c in range(first, last):
        for start in range(0, sample.shape[1], _RUN):
            totals[c] += _sum_run(sample[c, start : start + _RUN], kind, stretch[c], shift[c], floor)


@a_pass
def _dot_run(upstream, values):
    """Return the sums of products and of the upstream gradient over one run of one channel."""
    products = wide(values[0]) * 0
    plain = products
    for j in range(values.size):
        g = wide(upstream[j])
        products += g * wide(values[j])
        plain += g
    return products, plain


@a_pass
def _dot_pixels(upstream, pixels, products, plain):
    for m in range(pixels.shape[0]):
        for c in range(products.size):
            g = wide(upstream[m, c])
            products[c] += g * wide(pixels[m, c])
            plain[c] += g


@a_pass
def add_products(upstream, sample, last_axis, first, last, totals, scratch):
    """Add the rows' part of sum_j g_j x_j and sum_j g_j of each channel to `totals`, float64 (2, C)."""
    if last_axis:
        for m in range(first, last, _PIXELS):
            end = min(m + _PIXELS, last)
            scratch[:] = 0
            _dot_pixels(upstream[m:end], sample[m:end], scratch[0], scratch[1])
            for lane in range(scratch.shape[1]):
                totals[0, lane % totals.shape[1]] += scratch[0, lane]
                totals[1, lane % totals.shape[1]] += scratch[1, lane]
        return
    for c in range(first, last):
        for start in range(0, sample.shape[1], _RUN):
            products, plain = _dot_run(upstream[c, start : start + _RUN], sample[c, start : start + _RUN])
            totals[0, c] += products
            totals[1, c] += plain


@a_pass
def repeat(values, channels):
    """Repeat the first `channels` of the values in all that follow."""
    for lane in range(channels, values.size):
        values[lane] = values[lane - channels]


@a_pass
def _scale_run(values, stretch, shift, floor, factor, offset, out):
    for j in range(values.size):
        out[j] = narrow(bent(wide(values[j]), stretch, shift, floor) * factor + offset, out[j])


@a_pass
def _scale_pixel(values, stretch, shift, floor, factors, offsets, out):
    for c in range(values.size):
        value = bent(wide(values[c]), stretch[c], shift[c], floor)
        out[c] = narrow(value * factors[c] + offsets[c], out[c])


@a_pass
def scale(sample, last_axis, first, last, stretch, shift, floor, factors, offsets, out):
    """Write bent x * factors_c + offsets_c into the rows of `out`, which may be `sample` itself.

    From the first row to the last, though the pass before has left the last rows in the cache: backwards takes twice as
    long, since memory is fetched ahead only forwards.
    """
    if last_axis:
        for m in range(first, last):
            _scale_pixel(sample[m], stretch, shift, floor, factors, offsets, out[m])
    else:
        for c in range(first, last):
            _scale_run(sample[c], stretch[c], shift[c], floor, factors[c], offsets[c], out[c])


@a_pass
def _pull_run(upstream, values, kind, factor, slope, out):
    for j in range(values.size):
        out[j] = narrow(wide(upstream[j]) * factor + _slope(wide(values[j]), kind) * slope, out[j])


@a_pass
def _pull_pixel(upstream, values, kind, factors, slopes, out):
    for c in range(values.size):
        out[c] = narrow(wide(upstream[c]) * factors[c] + _slope(wide(values[c]), kind) * slopes[c], out[c])


@a_pass
def pull_back(upstream, sample, last_axis, first, last, kind, factors, slopes, out):
    """Write the map's gradient, g factors_c + slopes_c times x, sign(x) or 1, as the statistic is of `kind`."""
    if last_axis:
        for m in range(first, last):
            _pull_pixel(upstream[m], sample[m], kind, factors, slopes, out[m])
    else:
        for c in range(first, last):
            _pull_run(upstream[c], sample[c], kind, factors[c], slopes[c], out[c])
