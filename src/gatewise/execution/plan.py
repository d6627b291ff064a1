"""Which sites to narrow and which images to run together, given what the layers cost on this machine."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatewise.execution.sub_batches import SubBatch, Work, alike, bucketed, part_of

_GRID = np.linspace(0, 1, 65)
PROMISING = 0.9  # a way to run must be expected to take at most this share of a surer one's time
_NEAR = 1.1  # patterns that apart take at most this share of the best time may do with less in buckets


@dataclass(frozen=True, eq=False)
class Seconds:
    """What one number of images takes.

    Attributes:
        dense: of each layer with all its filters, (layers,).
        fixed: of each layer when narrow, besides its open work, (2, layers): weights picked now, and picked before.
        slope: of each layer when narrow, times the open share of its work, (2, layers).
        mask: the multiplication of each site's map, (sites,).
        rest: everything that no gate changes, ().
        plain: the whole network as it was, all filters computed and multiplied, ().
    """

    dense: np.ndarray
    fixed: np.ndarray
    slope: np.ndarray
    mask: np.ndarray
    rest: np.ndarray
    plain: np.ndarray


class Plan:
    """What `Work` tells in multiply-adds, in seconds of this machine: where to be narrow, and what that costs.

    Args:
        work: the layers.
        measured: by the number of images, one or two of them; what lies between is interpolated.
        weights: bytes of each layer's weights, (layers,).
        memory: bytes that picked weights may take.

    Attributes:
        limits: up to which open share of a site narrowing pays, (2, sites) for each number of images; -1 for never. The
            first row is for weights that have to be picked, the second for such as were picked before.
    """

    def __init__(self, work: Work, measured: Mapping[int, Seconds], weights: np.ndarray, memory: int) -> None:
        self.work, self.measured = work, dict(sorted(measured.items()))
        self.weights, self.memory = weights, memory
        self.limits = {
            images: np.stack([self._pays_up_to(seconds, again) for again in (0, 1)])
            for images, seconds in self.measured.items()
        }
        self._outlooks = [self._outlook(self.measured[images], limits) for images, limits in self.limits.items()]
        self._span = max(1, max(self.measured) - min(self.measured))
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # bytes of the weights that were picked for a pattern

    def _pays_up_to(self, seconds: Seconds, again: int) -> np.ndarray:
        work, sites = self.work, len(self.work.narrows)
        limits = np.full(sites, -1.0)
        for number in np.flatnonzero(work.narrows):
            inputs, outputs = work.inputs == number, work.outputs == number
            own = inputs | outputs
            other = (np.where(inputs, work.outputs, work.inputs)[own] < sites)[:, None]  # is the far side gated?
            far = np.where(other, _GRID, 1.0)  # then it is as open as this one
            fixed, slope = seconds.fixed[again][own, None], seconds.slope[again][own, None]
            whole = np.where(far < 1, fixed + slope * far, seconds.dense[own, None])
            gain = (whole - fixed - slope * far * _GRID).sum(0) + seconds.mask[number]
            losing = np.flatnonzero(gain[:-1] <= 0)  # at 1 nothing is left out
            limits[number] = 1.0 if not len(losing) else _GRID[losing[0] - 1] if losing[0] else -1.0
        return limits

    def _between(self, values: Iterable[Any], images: Any) -> Any:
        """Return what lies between the values for the smallest and the largest number of images that were measured."""
        few, *rest = values
        return few + (images - min(self.measured)) / self._span * (rest[0] - few) if rest else few

    def narrow(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return for each site whether to leave out its closed filters: (R, gates), (R,) -> (R, sites)."""
        again = [int(union.tobytes() in self._seen) for union in unions]
        limits = self._between((limits[again] for limits in self.limits.values()), images[:, None])
        return self.work.narrows & (self.work.shares(unions)[:, :-1] <= limits)

    def cost(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return the seconds of so many images with these filters open: (R, gates), (R,) -> (R,)."""
        again = [int(union.tobytes() in self._seen) for union in unions]
        shares, narrow = self.work.shares(unions), self.narrow(unions, images)
        return self._between(
            (self._seconds(seconds, shares, narrow, again) for seconds in self.measured.values()), images
        )

    def _seconds(self, seconds: Seconds, shares: np.ndarray, narrow: np.ndarray, again: list[int]) -> np.ndarray:
        share = shares.copy()
        share[:, :-1][~narrow] = 1
        open_work = share[:, self.work.inputs] * share[:, self.work.outputs]
        narrowed = seconds.fixed[again] + seconds.slope[again] * open_work
        layers = np.where(open_work < 1, narrowed, seconds.dense).sum(1)
        return layers + (~narrow & (shares[:, :-1] < 1)) @ seconds.mask + seconds.rest

    def _outlook(self, seconds: Seconds, limits: np.ndarray) -> np.ndarray:
        """Return the seconds if all sites are open to the same share, with weights picked before, for each of _GRID."""
        shares = np.repeat(_GRID[:, None], len(self.work.narrows) + 1, 1)
        shares[:, -1] = 1
        narrow = self.work.narrows & (shares[:, :-1] <= limits[1])
        return self._seconds(seconds, shares, narrow, [1] * len(shares))

    def parts(self, patterns: np.ndarray) -> list[SubBatch]:
        """Return the parts of a batch that take least: all images at once, buckets, or the network as it was."""
        everyone = np.arange(len(patterns))
        plain = self._between((float(seconds.plain) for seconds in self.measured.values()), len(patterns))
        as_it_was = [SubBatch(everyone, patterns[0], alike=False, narrow=self.work.narrows, plain=True)]
        groups = alike(patterns)
        union = patterns.any(0)
        if not self._hopeful(len(groups), patterns.mean(), union.mean(), plain):
            return as_it_was
        unions = np.stack([union, *(patterns[images[0]] for images in groups)])
        together, *apart = self.cost(unions, np.array([len(patterns), *map(len, groups)]))
        best, least = as_it_was, plain
        if together < PROMISING * plain:
            best, least = [part_of(patterns, everyone, self)], together
        if len(groups) > 1 and sum(apart) < _NEAR * least:
            buckets = bucketed(patterns, self, slack=1.0)
            sizes = np.array([len(part.images) for part in buckets])
            if self.cost(np.stack([part.union for part in buckets]), sizes).sum() < PROMISING * least:
                best = buckets
        self._note(best)
        return best

    def _hopeful(self, groups: int, open_: float, union: float, plain: float) -> bool:
        """Whether a closer look may find something better than the network as it was; takes no time itself."""
        first, last = self._outlooks[0], self._outlooks[-1]
        together, apart = last[round(union * (len(_GRID) - 1))], groups * first[round(open_ * (len(_GRID) - 1))]
        return min(together, apart) < PROMISING * plain

    def _note(self, parts: list[SubBatch]) -> None:
        """Remember which open filters weights are picked for, as far as there is memory for them."""
        for part in parts:
            if not part.plain:
                share = np.where(part.narrow, self.work.shares(part.union[None])[0, :-1], 1.0)
                share, picked = np.append(share, 1.0), part.union.tobytes()
                self._seen[picked] = float(self.weights @ (share[self.work.inputs] * share[self.work.outputs]))
                self._seen.move_to_end(picked)
        while sum(self._seen.values()) > self.memory:
            self._seen.popitem(last=False)
