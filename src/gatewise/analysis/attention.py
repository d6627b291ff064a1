"""Where gates look: attention maps of chosen positions, and how much they differ from position to position."""

# pyright: basic

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import _validation
from gatewise.analysis.recording import Hook, hooks_on
from gatewise.insertion import gates_in
from gatewise.places import evaluation_mode
from gatewise.registry import Gate

QUERIES = 64  # positions whose maps are compared, spread evenly
_GOLDEN = 0.61803398875  # of which no few multiples come close, whole numbers apart


@dataclass(frozen=True)
class QueryDistances:
    """How much one gate's parts differ between query positions: means of (1 - cosine) / 2 over pairs, in [0, 1].

    Attributes:
        path: of the gate.
        inputs: between the feature vectors at the positions.
        attention: between the positions' attention maps.
        outputs: between what is added at the positions.
    """

    path: str
    inputs: float
    attention: float
    outputs: float


def even_positions(count: int, positions: int) -> Tensor:
    """Return `count` of `positions` numbers, spread evenly; all of them if there are no more.

    >>> even_positions(3, 9), even_positions(5, 2)
    (tensor([1, 4, 7]), tensor([0, 1]))
    """
    if count >= positions:
        return torch.arange(positions)
    return ((torch.arange(count) + 0.5) * positions / count).long()


def scattered_positions(count: int, sides: Sequence[int]) -> Tensor:
    """Return `count` positions of a map, numbered along it flattened: rows at equal distances, columns by golden steps.

    So a few of them do not lie below each other, as `even_positions` would in a map whose width divides its step. Maps
    that do not have two axes, or too few positions, get those.

    >>> scattered_positions(3, (6, 10))  # rows 1, 3, 5, columns 3, 9, 5
    tensor([13, 39, 55])
    """
    positions = math.prod(sides)
    if len(sides) != 2 or count >= positions:
        return even_positions(count, positions)
    steps = torch.arange(count) + 0.5
    rows, columns = (steps / count * sides[0]).long(), (steps * _GOLDEN % 1 * sides[1]).long()
    return rows * sides[1] + columns


def mean_distance(vectors: Tensor) -> Tensor:
    """Return the mean of (1 - cosine) / 2 over all pairs of different rows: (N, Q, F) -> (N,).

    Two vectors at a right angle are 1/2 apart, opposite ones 1. A row of zeros is at a right angle to all.

    >>> mean_distance(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [-1.0, 0.0]]]))
    tensor([0.5000, 1.0000])
    """
    rows = nn.functional.normalize(vectors.float(), dim=2)
    count = rows.shape[1]
    if count < 2:
        return rows.new_zeros(len(rows))
    cosines = rows.sum(1).square().sum(1) - rows.square().sum((1, 2))  # over all ordered pairs of different rows
    return ((1 - cosines / (count * (count - 1))) / 2).clamp(min=0)  # rounding may leave less


Seen = Callable[[str, Tensor, Tensor, Tensor, Tensor], None]


@contextmanager
def _watching(model: nn.Module, choose: Callable[[Sequence[int]], Tensor], see: Seen) -> Iterator[None]:
    """Let `see` have path, input, output, positions and maps of each gate that attends, in eval mode without gradients.

    `choose` gives the positions in a map of some sides. `see` is called before a later layer can overwrite the output.
    """
    attending = {path: gate for path, gate in gates_in(model).items() if type(gate).attention != Gate.attention}

    def watch(path: str) -> Hook:
        def hook(gate: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            positions = choose(x.shape[2:]).to(x.device)
            maps = gate.attention(x, positions)
            if maps is not None:
                see(path, x, output, positions, maps)

        return hook

    with hooks_on(attending, watch), evaluation_mode(model), torch.no_grad():
        yield


def attention_maps(model: nn.Module, images: Tensor, queries: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each gate that attends the maps of some positions, and the positions.

    Args:
        model: any network, on the device of `images`.
        images: (N, C, H, W), normalised.
        queries: how many positions, scattered over each gate's map.

    Returns: path -> (maps (N, Q, *S), positions (Q,)), empty if no gate attends. Gates whose map is the same for all
    positions (gc, snl) give it Q times.
    """
    _validation.check_integer_at_least(1, queries=queries)
    found = {}

    def see(path: str, _x: Tensor, _y: Tensor, positions: Tensor, maps: Tensor) -> None:
        found[path] = maps.cpu(), positions.cpu()

    with _watching(model, partial(scattered_positions, queries), see):
        model(images)
    return found


def query_distances(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[QueryDistances]:
    """Return for each gate that attends how much inputs, attention and outputs differ between positions.

    GCNet (Cao et al., ICCVW 2019, section 3) found by this that the non-local block's attention hardly depends on the
    query. Up to 64 positions of each map are compared; the mean is over images.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    images_seen: dict[str, int] = {}

    def see(path: str, x: Tensor, y: Tensor, positions: Tensor, maps: Tensor) -> None:
        parts = (_rows(x, positions), maps.flatten(2), _rows(y - x, positions))
        distances = torch.stack([mean_distance(part).double().sum() for part in parts]).cpu()
        sums[path] = sums.get(path, torch.zeros(3, dtype=torch.float64)) + distances
        images_seen[path] = images_seen.get(path, 0) + len(x)

    with _watching(model, lambda sides: even_positions(QUERIES, math.prod(sides)), see):
        for images, _ in batches:
            model(images.to(device))
    return [QueryDistances(path, *(total / images_seen[path]).tolist()) for path, total in sums.items()]


def _rows(x: Tensor, positions: Tensor) -> Tensor:
    """Return the vectors of a map at some positions: (N, C, *S) -> (N, Q, C)."""
    return x.flatten(2)[:, :, positions].mT
