"""Divide the samples of a map between threads: complete samples, or parts of them if there are few."""

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

from gatewise.gates.kernels.cpu.openmp import MIN_PARALLEL_NUMEL, stored_at, thread_count, thread_number, wait_for_all

_CPU = torch.device("cpu")
_LANES = 128  # shorter loops spend most of their time on start and remainder
BOTH, MEASURE, APPLY = 0, 1, 2  # passes that a kernel runs on a block


class Layout(NamedTuple):
    """Memory layout of a map and its division into parts, the units of work of threads; first arguments of a kernel.

    Attributes:
        samples: number of samples, N.
        channels: number of channels, C.
        positions: number of positions M of one channel.
        last_axis: 0 for channels first; for channels last, the number of positions in a row.
        parts: number of parts into which each sample is divided.
    """

    samples: int
    channels: int
    positions: int
    last_axis: int
    parts: int

    @classmethod
    def of(cls, x: Tensor, *, by_positions: bool = False) -> "Layout":
        """Return the layout of a map, and divide its samples if there are too few of them for the threads.

        Args:
            x: contiguous or channels-last map, (N, C, ...).
            by_positions: divide a contiguous sample by positions, and not by channels. A channels-last sample is
                always divided by positions.
        """
        threads = get_num_threads() if x.numel() >= MIN_PARALLEL_NUMEL else 1
        return _layout(x.shape, x.is_contiguous(), by_positions, threads)

    def totals(self, sums: int) -> Tensor:
        """Allocate the sums of each part of each sample: (N, parts, sums, C)."""
        return empty(self.samples, self.parts, sums, self.channels, dtype=float64, device=_CPU)


@functools.lru_cache(1024)  # Python's overhead dominates a gate at inference
def _layout(shape: torch.Size, contiguous: bool, by_positions: bool, threads: int) -> Layout:
    samples, channels = shape[:2]
    positions = math.prod(shape[2:])
    last_axis = 0 if contiguous else _in_a_row(channels, positions)
    balanced = threads == 1 or samples % threads == 0 or samples >= 4 * threads
    rows = positions // last_axis if last_axis else positions if by_positions else channels
    return Layout(samples, channels, positions, last_axis, 1 if balanced else min(threads, rows))


def _in_a_row(channels: int, positions: int) -> int:
    """Return how many positions form a row that is long enough for vector instructions."""
    return next(count for count in range(max(1, _LANES // channels), 0, -1) if positions % count == 0)


def match_memory_format(grad_output: Tensor, x: Tensor) -> Tensor:
    """Return a gradient in the dtype and memory format of its map x."""
    if x.is_contiguous():
        return grad_output.to(x.dtype).contiguous()
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return grad_output.to(x.dtype).contiguous(memory_format=last)


def dense(x: Tensor) -> Tensor:
    """Return a contiguous or channels-last map; x itself if it already is."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return x if last is not None and x.is_contiguous(memory_format=last) else x.contiguous()


@numba.njit(inline="always", error_model="numpy")
def phase_of(step, parts):
    """Return which passes to run in a step: both for complete samples; else one, with a barrier before the second."""
    if parts == 1:
        return BOTH
    if step == 0:
        return MEASURE
    wait_for_all()
    return APPLY


@numba.njit(inline="always", error_model="numpy")
def my_blocks(samples, parts):
    """Return the range of blocks (parts of samples) of this thread."""
    blocks, number, count = samples * parts, thread_number(), thread_count()
    return blocks * number // count, blocks * (number + 1) // count


@numba.njit(inline="always", error_model="numpy")
def rows_of(block, parts, rows):
    """Return a block's sample, part, and first and last row."""
    sample, part = block // parts, block % parts
    return sample, part, rows * part // parts, rows * (part + 1) // parts


@numba.njit(inline="always", error_model="numpy")
def maps_at(arguments, address, layout):
    """Return the map at an address as (N, rows, columns); `layout` holds the fields of a `Layout`."""
    samples, channels, positions, in_a_row = layout[0], layout[1], layout[2], layout[3]
    rows, columns = (positions // in_a_row, channels * in_a_row) if in_a_row else (channels, positions)
    return carray(stored_at(arguments, address), (samples, rows, columns))


@numba.njit(inline="always", error_model="numpy")
def lanes_of(layout):
    """Return the length of a loop over channels: C, times the positions in a row for channels last."""
    return layout[1] * max(layout[3], 1)
