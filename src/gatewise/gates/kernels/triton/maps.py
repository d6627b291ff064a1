"""Layout of maps (N, C, *S) in kernels: (N, C, M) with three strides, in tiles, several tiles per program."""

# pyright: basic

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements: 32 for each of 128 threads, so that every thread loads 64 or 128 bytes
LONGEST_RUN = 1024  # positions of one channel in a tile; the rest of TILE is used for more channels
WIDEST_RUN = 128  # channels of one position in a channels-last tile: 256 bytes of bfloat16
PROGRAMS = 512  # programs per reduction, if possible: about four for each multiprocessor of a large GPU


def in_order_of(x: Tensor, grad_output: Tensor) -> Tensor:
    """Return `grad_output` (N, C, *S) as (N, C, M), copied only if its memory order differs from that of x (N, C, M).

    An expanded tensor is read in place, through its strides of 0.

    >>> in_order_of(torch.zeros(1, 2, 6), torch.zeros(()).expand(1, 2, 2, 3)).stride()
    (0, 0, 0)
    """
    given = grad_output.flatten(2)
    if given.stride(1) == given.stride(2) == 0 or _channels_last(given) == _channels_last(x):
        return given
    return torch.empty_like(x, dtype=grad_output.dtype).copy_(given)


def tile_of(x: Tensor) -> tuple[int, int]:
    """Return the channels and positions per tile of x (N, C, M): powers of two, longer along the contiguous axis.

    >>> tile_of(torch.zeros(1, 100, 49)), tile_of(torch.zeros(1, 49, 100).mT)
    ((64, 64), (128, 32))
    >>> tile_of(torch.zeros(1, 3, 5000))
    (4, 1024)
    """
    channels, positions = (triton.next_power_of_2(max(1, size)) for size in x.shape[1:])
    if _channels_last(x):
        channels = min(channels, WIDEST_RUN)
        return channels, min(positions, max(1, TILE // channels))
    positions = min(positions, LONGEST_RUN)
    return min(channels, max(1, TILE // positions)), positions


def rounds_of(x: Tensor, tile: tuple[int, int]) -> tuple[int, int]:
    """Return (tiles, programs) for a reduction over positions.

    `tiles` is the number of tiles of positions that one program loops over. `programs` is the number of programs that
    share the positions of one block of channels of one image.

    >>> rounds_of(torch.zeros(1, 3, 5000), (4, 1024)), rounds_of(torch.zeros(512, 3, 5000), (4, 1024))
    ((1, 5), (5, 1))
    """
    tiles = triton.cdiv(x.shape[2], tile[1])
    others = len(x) * triton.cdiv(x.shape[1], tile[0])
    rounds = max(1, triton.cdiv(tiles, max(1, PROGRAMS // max(1, others))))
    return rounds, max(1, triton.cdiv(tiles, rounds))


def warps_of(elements: int) -> int:
    """Return how many warps hold `elements` values in registers, 32 per thread, at most 16 warps.

    >>> warps_of(64), warps_of(4096), warps_of(65536)
    (1, 4, 16)
    """
    return max(1, min(16, elements // 1024))


def constants_of(tile: tuple[int, int]) -> dict[str, Any]:
    """Return the launch constants of a tile: its sizes and number of warps.

    >>> constants_of((4, 1024))
    {'BLOCK_C': 4, 'BLOCK_M': 1024, 'num_warps': 4}
    """
    return {"BLOCK_C": tile[0], "BLOCK_M": tile[1], "num_warps": warps_of(tile[0] * tile[1])}


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run `programs` programs of a kernel on the device of its first argument, current or not."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) < x.stride(2)


@triton.jit
def locate(channels, m_blocks, BLOCK_C: tl.constexpr):
    """Return this program's sample, channels, and block of positions out of `m_blocks`, as 64-bit integers."""
    program = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BLOCK_C)
    rest = program // m_blocks
    channel = (rest % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (rest // c_blocks).to(tl.int64), channel.to(tl.int64), (program % m_blocks).to(tl.int64)
