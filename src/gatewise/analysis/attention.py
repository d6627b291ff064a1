"""Attention maps of gates at chosen query positions, and how much they differ between positions."""

# pyright: basic

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.analysis.recording import Hook, hooks_on
from gatewise.core import _validation
from gatewise.gates.registry import Gate
from gatewise.graph import evaluation_mode
from gatewise.insertion.insert import gates_in

QUERIES = 64  # evenly spaced query positions whose maps are compared
_GOLDEN_RATIO = 0.61803398875  # its fractional part: golden-ratio sampling, a low-discrepancy sequence


@dataclass(frozen=True)
class QueryDistances:
    """Mean distances between query positions of one gate: (1 - cosine) / 2 over pairs, in [0, 1].

    Attributes:
        path: path of the gate.
        inputs: mean distance between the feature vectors at the positions.
        attention: mean distance between the attention maps of the positions.
        outputs: mean distance between the vectors that the gate adds at the positions.
    """

    path: str
    inputs: float
    attention: float
    outputs: float


def even_positions(count: int, positions: int) -> Tensor:
    """Return `count` evenly spaced integers in [0, positions), or all of them if there are at most `count`.

    >>> even_positions(3, 9), even_positions(5, 2)
    (tensor([1, 4, 7]), tensor([0, 1]))
    """
    if count >= positions:
        return torch.arange(positions)
    return ((torch.arange(count) + 0.5) * positions / count).long()


def scattered_positions(count: int, sides: Sequence[int]) -> Tensor:
    """Return `count` flat indices into a map: evenly spaced rows, columns by golden-ratio sampling.

    `even_positions` would put them all in one column if the map's width divides the step. It is used for maps without
    exactly two axes and for maps with at most `count` positions.

    >>> scattered_positions(3, (6, 10))  # rows 1, 3, 5, columns 3, 9, 5
    tensor([13, 39, 55])
    """
    positions = math.prod(sides)
    if len(sides) != 2 or count >= positions:
        return even_positions(count, positions)
    steps = torch.arange(count) + 0.5
    rows, columns = (steps / count * sides[0]).long(), (steps * _GOLDEN_RATIO % 1 * sides[1]).long()
    return rows * sides[1] + columns


def mean_distance(vectors: Tensor) -> Tensor:
    """Return the mean of (1 - cosine) / 2 over all pairs of different rows: (N, Q, F) -> (N,).

    Orthogonal vectors have distance 1/2, opposite vectors 1. A row of zeros counts as orthogonal to all others. With
    fewer than two rows the result is 0.

    >>> mean_distance(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [-1.0, 0.0]]]))
    tensor([0.5000, 1.0000])
    """
    rows = nn.functional.normalize(vectors.float(), dim=2)
    count = rows.shape[1]
    if count < 2:
        return rows.new_zeros(len(rows))
    cosines = rows.sum(1).square().sum(1) - rows.square().sum((1, 2))  # summed over ordered pairs of different rows
    return ((1 - cosines / (count * (count - 1))) / 2).clamp(min=0)  # rounding can make it negative


_Callback = Callable[[str, Tensor, Tensor, Tensor, Tensor], None]


@contextmanager
def _attention_hooks(
    model: nn.Module, choose: Callable[[Sequence[int]], Tensor], callback: _Callback
) -> Iterator[None]:
    """Call `callback(path, x, output, positions, maps)` for each gate with attention, in eval mode without gradients.

    `choose` returns the query positions for the spatial shape of a map. `callback` runs before a later layer can
    overwrite the output in place.
    """
    attending = {path: gate for path, gate in gates_in(model).items() if type(gate).attention != Gate.attention}

    def make_hook(path: str) -> Hook:
        def hook(gate: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            positions = choose(x.shape[2:]).to(x.device)
            maps = gate.attention(x, positions)
            if maps is not None:
                callback(path, x, output, positions, maps)

        return hook

    with hooks_on(attending, make_hook), evaluation_mode(model), torch.no_grad():
        yield


def attention_maps(model: nn.Module, images: Tensor, queries: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the attention maps of each gate with attention at some query positions.

    Args:
        model: any network, on the device of `images`.
        images: (N, C, H, W), normalised.
        queries: number of query positions, scattered over each gate's map.

    Returns:
        Gate path -> (maps (N, Q, *S), flat positions (Q,)); empty if no gate has attention. Gates that use one map for
        all positions (gc, snl) repeat it Q times.
    """
    _validation.check_integer_at_least(1, queries=queries)
    by_path = {}

    def record(path: str, _x: Tensor, _y: Tensor, positions: Tensor, maps: Tensor) -> None:
        by_path[path] = maps.cpu(), positions.cpu()

    with _attention_hooks(model, partial(scattered_positions, queries), record):
        model(images)
    return by_path


def query_distances(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[QueryDistances]:
    """Return, for each gate with attention, the mean distances of inputs, attention maps and outputs between positions.

    GCNet (Cao et al., ICCVW 2019, section 3) shows with this measure that the attention of a non-local block hardly
    depends on the query. At most 64 positions of each map are compared; distances are averaged over images.

    Args:
        model: any network.
        batches: images (N, C, H, W) and labels; the labels are not used.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    images_seen: dict[str, int] = {}

    def record(path: str, x: Tensor, y: Tensor, positions: Tensor, maps: Tensor) -> None:
        parts = (_rows(x, positions), maps.flatten(2), _rows(y - x, positions))
        distances = torch.stack([mean_distance(part).double().sum() for part in parts]).cpu()
        sums[path] = sums.get(path, torch.zeros(3, dtype=torch.float64)) + distances
        images_seen[path] = images_seen.get(path, 0) + len(x)

    with _attention_hooks(model, lambda sides: even_positions(QUERIES, math.prod(sides)), record):
        for images, _ in batches:
            model(images.to(device))
    return [QueryDistances(path, *(total / images_seen[path]).tolist()) for path, total in sums.items()]


def _rows(x: Tensor, positions: Tensor) -> Tensor:
    """Return the feature vectors of a map at some positions: (N, C, *S) -> (N, Q, C)."""
    return x.flatten(2)[:, :, positions].mT
