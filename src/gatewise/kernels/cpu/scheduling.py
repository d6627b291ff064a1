"""How the samples of a map are shared among threads: whole, or in parts where there are too few of them."""

# pyright: basic

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba's intrinsics take their first argument from the compiler.

import functools
import math
from typing import NamedTuple

import numba
import torch
from numba import carray
from torch import Tensor, empty, float64, get_num_threads

from gatewise.kernels.cpu.openmp import MIN_PARALLEL_NUMEL, stored_at, thread_count, thread_number, wait_for_all

_CPU = torch.device("cpu")
_LANES = 128  # a loop over fewer numbers than this is mostly its beginning and end
BOTH, MEASURE, APPLY = 0, 1, 2  # what a kernel does with a block: both passes, or one of them


class Layout(NamedTuple):
    """A dense map as N samples of rows, and the parts that each sample is worked on in; kernels' first five arguments.

    Attributes:
        samples: N.
        channels: C.
        positions: of a channel.
        last_axis: 0, or channels are last: how many positions are in a row.
        parts: of a sample.
    """

    samples: int
    channels: int
    positions: int
    last_axis: int
    parts: int

    @classmethod
    def of(cls, x: Tensor, *, by_positions: bool = False) -> "Layout":
        """Read the layout of a dense map; `by_positions` says that parts are of positions in either layout."""
        threads = get_num_threads() if x.numel() >= MIN_PARALLEL_NUMEL else 1
        return _layout(x.shape, x.is_contiguous(), by_positions, threads)

    def totals(self, sums: int) -> Tensor:
        """Return room for the sums of each part of each sample: (N, parts, sums, C)."""
        return empty(self.samples, self.parts, sums, self.channels, dtype=float64, device=_CPU)


@functools.lru_cache(1024)  # a gate at inference is mostly what Python does before it runs
def _layout(shape: torch.Size, contiguous: bool, by_positions: bool, threads: int) -> Layout:
    samples, channels = shape[:2]
    positions = math.prod(shape[2:])
    last_axis = 0 if contiguous else _in_a_row(channels, positions)
    balanced = threads == 1 or samples % threads == 0 or samples >= 4 * threads
    rows = positions // last_axis if last_axis else positions if by_positions else channels
    return Layout(samples, channels, positions, last_axis, 1 if balanced else min(threads, rows))


def _in_a_row(channels: int, positions: int) -> int:
    """Return how many positions make a row of some vectors' length."""
    return next(count for count in range(max(1, _LANES // channels), 0, -1) if positions % count == 0)


def match_memory_format(grad_output: Tensor, x: Tensor) -> Tensor:
    """Return a gradient of the type and layout of the map that it belongs to."""
    if x.is_contiguous():
        return grad_output.to(x.dtype).contiguous()
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return grad_output.to(x.dtype).contiguous(memory_format=last)


def dense(x: Tensor) -> Tensor:
    """Return a map that is contiguous or channels last, itself if it is."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return x if last is not None and x.is_contiguous(memory_format=last) else x.contiguous()


@numba.njit(inline="always", error_model="numpy")
def phase_of(step, parts):
    """Return what to do with blocks in a step: both passes if samples are whole, else the second when all are there."""
    if parts == 1:
        return BOTH
    if step == 0:
        return MEASURE
    wait_for_all()
    return APPLY


@numba.njit(inline="always", error_model="numpy")
def my_blocks(samples, parts):
    """Return the first and last of the blocks (a sample's part each) that are this thread's."""
    blocks, number, count = samples * parts, thread_number(), thread_count()
    return blocks * number // count, blocks * (number + 1) // count


@numba.njit(inline="always", error_model="numpy")
def rows_of(block, parts, rows):
    """Return a block's sample, part, and first and last row."""
    sample, part = block // parts, block % parts
    return sample, part, rows * part // parts, rows * (part + 1) // parts


@numba.njit(inline="always", error_model="numpy")
def maps_at(arguments, address, layout):
    """Return the map at an address as (N, rows, columns); `layout` holds the numbers of a `Layout`."""
    samples, channels, positions, in_a_row = layout[0], layout[1], layout[2], layout[3]
    rows, columns = (positions // in_a_row, channels * in_a_row) if in_a_row else (channels, positions)
    return carray(stored_at(arguments, address), (samples, rows, columns))


@numba.njit(inline="always", error_model="numpy")
def lanes_of(layout):
    """Return how many numbers a loop over channels has: C, and in channels last those of all positions in a row."""
    return layout[1] * max(layout[3], 1)
