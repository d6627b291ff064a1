"""Which filters are open just now, and the weights that were picked for them."""

# pyright: basic

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gatewise.gaternet import Site

_MEMORY_FOR_WHOLE = 2**28
_MANY_PATTERNS = 20_000  # of sites, whose indices are kept

Picked = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True, eq=False)
class FilterIndices:
    """Some filters of one site, in runs of equal length.

    Attributes:
        units: which runs.
        run: how long they are.
        channels: the filters themselves.
    """

    units: Tensor
    run: int
    channels: Tensor

    def pick(self, tensor: Tensor, axis: int) -> Tensor:
        """Return these filters of a tensor that has all of them on one axis; whole runs are copied at once.

        >>> some = FilterIndices(torch.tensor([1]), 2, torch.tensor([2, 3]))
        >>> some.pick(torch.tensor([[0, 1, 2, 3]]), 1)
        tensor([[2, 3]])
        """
        if self.run == 1:
            return tensor.index_select(axis, self.units)
        return tensor.unflatten(axis, (-1, self.run)).index_select(axis, self.units).flatten(axis, axis + 1)


@dataclass(eq=False)
class ActiveFilters:
    """What the layers of a skipping network read at each call.

    Attributes:
        memory: bytes that picked weights may take; those not used for longest go first. Weights of layers that run
            whole, in the order that suits this machine, are kept besides, up to as much as 256 MiB.
        chosen: the open filters of each site that is narrow now, by the site's number.
        packs: whether picked weights may be kept in the order that suits this machine best.
    """

    packs: ClassVar[bool] = True

    memory: int
    chosen: dict[int, FilterIndices] = field(default_factory=dict)
    _known: dict[tuple[int, bytes], FilterIndices] = field(default_factory=dict)
    _picked: "_LRUWeightCache" = field(init=False)
    _whole: "_LRUWeightCache" = field(init=False)

    def __post_init__(self) -> None:
        self._picked, self._whole = _LRUWeightCache(self.memory), _LRUWeightCache(_MEMORY_FOR_WHOLE)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, or a pickle, begins with: nothing picked."""
        empty = {"_picked": _LRUWeightCache(self.memory), "_whole": _LRUWeightCache(_MEMORY_FOR_WHOLE)}
        return {**self.__dict__, "chosen": {}, "_known": {}, **empty}

    def close(self) -> None:
        """Let nothing be open or closed any more, until the next call."""
        self.chosen = {}

    def forget(self) -> None:
        """Drop everything that was picked, for example because the weights have moved."""
        self.close()
        self._known.clear()
        self._picked.clear()
        self._whole.clear()

    def filters(self, number: int, site: Site, pattern: bytes, device: torch.device) -> FilterIndices:
        """Return the open filters of a site for the gates `pattern`, a byte each; the first unit if none is open."""
        known = self._known.get((number, pattern))
        if known is None:
            if len(self._known) >= _MANY_PATTERNS:
                self._known.clear()
            known = self._known[number, pattern] = _open_filters(site, pattern, device)
        return known

    def open(self, number: int, site: Site, own: Tensor, union: np.ndarray, *, alike: bool) -> Tensor | None:
        """Let layers run those filters of a site that some image opens; return what its narrow map is multiplied by.

        `own` are the site's gates, (N, gates), `union` those that some image opens, `alike` whether all open the same.
        """
        if union.all() and site.driven_by is None:
            return None if alike else site.spread(own)
        self.chosen[number] = chosen = self.filters(number, site, union.tobytes(), own.device)
        return None if alike and union.any() else site.spread(own)[:, chosen.channels]

    def picked(self, key: tuple[object, ...], pick: Callable[[], Picked]) -> Picked:
        """Return what `pick` gives for this key, from memory if it is there."""
        return self._picked.of(key, pick)

    def whole(self, key: tuple[object, ...], pack: Callable[[], Picked]) -> Picked:
        """Return what `pack` gives for a layer of which nothing is left out, from memory if it is there."""
        return self._whole.of(key, pack)


class _LRUWeightCache:
    """Weights by what they are for, up to so many bytes; those not used for longest go first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._held: OrderedDict[tuple[object, ...], Picked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        self._held.clear()
        self.bytes = 0

    def of(self, key: tuple[object, ...], make: Callable[[], Picked]) -> Picked:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
            return found
        found = self._held[key] = make()
        self.bytes += _size(found)
        while self.bytes > self.limit:
            self.bytes -= _size(self._held.popitem(last=False)[1])
        return found


def _open_filters(site: Site, pattern: bytes, device: torch.device) -> FilterIndices:
    if site.driven_by is None:
        units = [gate for gate, state in enumerate(pattern) if state] or [0]
        run = site.group_size
    else:
        states = pattern + b"\1\0"  # always open, always closed
        units = [filter_ for filter_, gate in enumerate(site.driven_by) if states[gate]] or [0]
        run = 1
    channels = [unit * run + offset for unit in units for offset in range(run)]
    return FilterIndices(torch.tensor(units, device=device), run, torch.tensor(channels, device=device))


def _size(picked: Picked) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in picked if tensor is not None)
