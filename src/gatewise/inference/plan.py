"""Choose the sites to narrow and the images to run together from the measured times of the layers."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatewise.inference.sub_batches import SubBatch, Work, alike, bucketed, part_of

_GRID = np.linspace(0, 1, 65)
PROMISING = 0.9  # a plan must be predicted to take at most this fraction of the time of the simpler one
_NEAR = 1.1  # try buckets if separate patterns take at most this multiple of the best time


@dataclass(frozen=True, eq=False)
class Seconds:
    """Measured seconds for one number of images.

    A narrow layer takes fixed + slope * (open fraction of its work). The first row of `fixed` and `slope` is for a cold
    weight cache, the second for a warm one.

    Attributes:
        dense: each layer with all its filters, (layers,).
        fixed: constant part of each narrow layer, (2, layers).
        slope: part of each narrow layer that is proportional to its open work, (2, layers).
        mask: multiplication of the map at each site, (sites,).
        rest: all operations that gates do not change, ().
        plain: the original network, with all filters computed and multiplied, ().
    """

    dense: np.ndarray
    fixed: np.ndarray
    slope: np.ndarray
    mask: np.ndarray
    rest: np.ndarray
    plain: np.ndarray


class Plan:
    """The cost model of `Work` in seconds instead of multiply-adds: where narrow layers save time, and how much.

    Args:
        work: the layers that gates change.
        measured: times for one or two numbers of images; others are interpolated.
        weights: size of each layer's weights in bytes, (layers,).
        memory: size of the cache of sliced weights in bytes.

    Attributes:
        limits: largest open fraction of a site that makes narrow layers faster, (2, sites) for each number of images;
            -1 for never. The first row is for a cold weight cache, the second for a warm one.
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
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # bytes of the sliced weights, by pattern

    def _pays_up_to(self, seconds: Seconds, again: int) -> np.ndarray:
        work, sites = self.work, len(self.work.narrows)
        limits = np.full(sites, -1.0)
        for number in np.flatnonzero(work.narrows):
            inputs, outputs = work.inputs == number, work.outputs == number
            own = inputs | outputs
            other = (np.where(inputs, work.outputs, work.inputs)[own] < sites)[
                :, None
            ]  # whether the other side is gated, too
            far = np.where(other, _GRID, 1.0)  # with the same open fraction as this one
            fixed, slope = seconds.fixed[again][own, None], seconds.slope[again][own, None]
            whole = np.where(far < 1, fixed + slope * far, seconds.dense[own, None])
            gain = (whole - fixed - slope * far * _GRID).sum(0) + seconds.mask[number]
            losing = np.flatnonzero(gain[:-1] <= 0)  # at 1 all filters are open
            limits[number] = 1.0 if not len(losing) else _GRID[losing[0] - 1] if losing[0] else -1.0
        return limits

    def _between(self, values: Iterable[Any], images: Any) -> Any:
        """Interpolate linearly between the values of the smallest and largest measured number of images."""
        few, *rest = values
        return few + (images - min(self.measured)) / self._span * (rest[0] - few) if rest else few

    def narrow(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return for each site whether to skip its closed filters: (R, gates), (R,) -> (R, sites)."""
        again = [int(union.tobytes() in self._seen) for union in unions]
        limits = self._between((limits[again] for limits in self.limits.values()), images[:, None])
        return self.work.narrows & (self.work.shares(unions)[:, :-1] <= limits)

    def cost(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return the predicted seconds of R sub-batches: open gates (R, gates), images (R,) -> (R,)."""
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
        """Return the predicted seconds for each equal open fraction of _GRID, with a warm weight cache."""
        shares = np.repeat(_GRID[:, None], len(self.work.narrows) + 1, 1)
        shares[:, -1] = 1
        narrow = self.work.narrows & (shares[:, :-1] <= limits[1])
        return self._seconds(seconds, shares, narrow, [1] * len(shares))

    def parts(self, patterns: np.ndarray) -> list[SubBatch]:
        """Return the fastest sub-batches: all images together, buckets, or the original network."""
        everyone = np.arange(len(patterns))
        plain = self._between((float(seconds.plain) for seconds in self.measured.values()), len(patterns))
        original = [SubBatch(everyone, patterns[0], alike=False, narrow=self.work.narrows, plain=True)]
        groups = alike(patterns)
        union = patterns.any(0)
        if not self._hopeful(len(groups), patterns.mean(), union.mean(), plain):
            return original
        unions = np.stack([union, *(patterns[images[0]] for images in groups)])
        together, *apart = self.cost(unions, np.array([len(patterns), *map(len, groups)]))
        best, least = original, plain
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
        """Return whether a plan may be faster than the original network, from a cheap estimate."""
        first, last = self._outlooks[0], self._outlooks[-1]
        together, apart = last[round(union * (len(_GRID) - 1))], groups * first[round(open_ * (len(_GRID) - 1))]
        return min(together, apart) < PROMISING * plain

    def _note(self, parts: list[SubBatch]) -> None:
        """Record the patterns with cached weights, up to the size of the cache."""
        for part in parts:
            if not part.plain:
                share = np.where(part.narrow, self.work.shares(part.union[None])[0, :-1], 1.0)
                share, picked = np.append(share, 1.0), part.union.tobytes()
                self._seen[picked] = float(self.weights @ (share[self.work.inputs] * share[self.work.outputs]))
                self._seen.move_to_end(picked)
        while sum(self._seen.values()) > self.memory:
            self._seen.popitem(last=False)
