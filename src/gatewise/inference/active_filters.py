"""Hold the filters that are active in the current call, and cache the weights sliced for them."""

# pyright: basic

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gatewise.gaternet import Site

_PACKED_CACHE_BYTES = 2**28
_MANY_PATTERNS = 20_000  # cached filter indices; all are dropped beyond this number

Picked = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True, eq=False)
class FilterIndices:
    """Indices of some filters of one site, in runs of equal length.

    Attributes:
        units: indices of the runs.
        run: length of a run.
        channels: indices of the filters.
    """

    units: Tensor
    run: int
    channels: Tensor

    def pick(self, tensor: Tensor, axis: int) -> Tensor:
        """Return these filters of a tensor with all filters on `axis`, also from the end; runs are copied as blocks.

        >>> some = FilterIndices(torch.tensor([1]), 2, torch.tensor([2, 3]))
        >>> some.pick(torch.tensor([[0, 1, 2, 3]]), 1)
        tensor([[2, 3]])
        """
        if self.run == 1:
            return tensor.index_select(axis, self.units)
        axis %= tensor.dim()
        return tensor.unflatten(axis, (-1, self.run)).index_select(axis, self.units).flatten(axis, axis + 1)


@dataclass(eq=False)
class ActiveFilters:
    """The active filters of the current call, and LRU caches of sliced weights, shared by the layers of a network.

    Attributes:
        memory: size limit of the cache of sliced weights in bytes. A second cache of 256 MiB holds the packed weights
            of layers with all filters active.
        chosen: the active filters, by index of the site; a site without an entry computes all filters.
        packs: whether weights may be cached in the packed layout of oneDNN.
    """

    packs: ClassVar[bool] = True

    memory: int
    chosen: dict[int, FilterIndices] = field(default_factory=dict)
    _known: dict[tuple[int, bytes], FilterIndices] = field(default_factory=dict)
    _picked: "_LRUWeightCache" = field(init=False)
    _whole: "_LRUWeightCache" = field(init=False)

    def __post_init__(self) -> None:
        self._picked, self._whole = _LRUWeightCache(self.memory), _LRUWeightCache(_PACKED_CACHE_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or pickle, with empty caches."""
        empty = {"_picked": _LRUWeightCache(self.memory), "_whole": _LRUWeightCache(_PACKED_CACHE_BYTES)}
        return {**self.__dict__, "chosen": {}, "_known": {}, **empty}

    def close(self) -> None:
        """Clear the active filters at the end of a call."""
        self.chosen = {}

    def forget(self) -> None:
        """Clear the active filters and all caches, for example because the weights have moved to another device."""
        self.close()
        self._known.clear()
        self._picked.clear()
        self._whole.clear()

    def forget_patterns(self) -> None:
        """Clear what is kept of patterns, so that the next one is as new as the first."""
        self._known.clear()
        self._picked.clear()

    def filters(self, number: int, site: Site, pattern: bytes, device: torch.device) -> FilterIndices:
        """Return the open filters of a site for a pattern with one byte per gate; the first unit if none is open."""
        known = self._known.get((number, pattern))
        if known is None:
            if len(self._known) >= _MANY_PATTERNS:
                self._known.clear()
            known = self._known[number, pattern] = _open_filters(site, pattern, device)
        return known

    def open(self, number: int, site: Site, own: Tensor, union: np.ndarray, *, alike: bool) -> Tensor | None:
        """Activate the filters of a site that some image opens, and return the factors of its map, or None.

        Args:
            number: index of the site.
            site: the site.
            own: gates of the site, (N, gates).
            union: which gates are open for some image, (gates,).
            alike: whether all images have the same gates.
        """
        if union.all() and site.driven_by is None:
            return None if alike else site.spread(own)
        self.chosen[number] = chosen = self.filters(number, site, union.tobytes(), own.device)
        return None if alike and union.any() else site.spread(own)[:, chosen.channels]

    def picked(self, key: tuple[object, ...], pick: Callable[[], Picked]) -> Picked:
        """Return the sliced weights for `key`, from the cache or from `pick`."""
        return self._picked.of(key, pick)

    def whole(self, key: tuple[object, ...], pack: Callable[[], Picked]) -> Picked:
        """Return the packed weights for `key` of a layer with all filters active, from the cache or from `pack`."""
        return self._whole.of(key, pack)


class _LRUWeightCache:
    """An LRU cache of weights with a limit in bytes."""

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
