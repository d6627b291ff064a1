"""Which images of a batch are run together: those with the same open filters, or nearly the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gatewise.gaternet import GaterNet
from gatewise.places import ChannelDependency


@dataclass(frozen=True, eq=False)
class SubBatch:
    """Images that are run together.

    Attributes:
        images: their rows in the batch.
        union: for each gate whether one of them opens it.
        alike: whether all of them open the same.
        narrow: for each site whether only the open filters are computed.
        plain: whether all filters are computed and multiplied, as the network itself does.
    """

    images: np.ndarray
    union: np.ndarray
    alike: bool
    narrow: np.ndarray
    plain: bool = False


class Costing(Protocol):
    """What ways to run images cost, in whatever unit; R of them are asked for at once."""

    def narrow(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return for each site whether to leave out its closed filters: (R, gates), (R,) -> (R, sites)."""
        ...

    def cost(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return the cost of so many images that have these filters open: (R, gates), (R,) -> (R,)."""
        ...


@dataclass(frozen=True, eq=False)
class Work:
    """What a network's layers cost, by the open shares of the sites they read and write.

    Attributes:
        paths: of the layers that a site changes.
        macs: of each of them, for one image.
        inputs: the site whose filters each of them reads, or the number of sites for none.
        outputs: the site whose filters each of them makes, or the number of sites for none.
        narrows: for each site whether its closed filters can be left out.
        starts: where each site's gates begin.
        part: of each gate, the share of its site's filters that it drives.
        always: for each site the share of filters that are always open.
        reads: for each convolution with gates the site whose filters it reads, if any.
    """

    paths: tuple[str, ...]
    macs: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    narrows: np.ndarray
    starts: np.ndarray
    part: np.ndarray
    always: np.ndarray
    reads: dict[str, int]

    @classmethod
    def of(cls, net: GaterNet, dependencies: Sequence[ChannelDependency]) -> "Work":
        """Collect the layers of a net."""
        nothing = len(net.sites)
        macs: dict[str, int] = {}
        inputs: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for number, (site, dependency) in enumerate(zip(net.sites, dependencies, strict=True)):
            if dependency.possible:
                for layer in (site.producer, *site.depthwise):
                    macs[layer.layer], outputs[layer.layer] = layer.macs, number
                for layer in site.consumers if dependency.consumers else ():
                    macs[layer.layer], inputs[layer.layer] = layer.macs, number
        return cls(
            paths=tuple(macs),
            macs=np.array([*macs.values()], dtype=float),
            inputs=np.array([inputs.get(path, nothing) for path in macs], dtype=int),
            outputs=np.array([outputs.get(path, nothing) for path in macs], dtype=int),
            narrows=np.array([dependency.possible for dependency in dependencies]),
            starts=np.array([site.first for site in net.sites]),
            part=np.concatenate([site.filters_of_gates.numpy() / site.filters for site in net.sites]),
            always=np.array([site.gate_of_filters.count(site.gates) / site.filters for site in net.sites]),
            reads={site.name: inputs[site.name] for site in net.sites if site.name in inputs},
        )

    def shares(self, unions: np.ndarray) -> np.ndarray:
        """Return the open share of each site, and 1 for none: (R, gates) -> (R, sites + 1)."""
        open_ = np.add.reduceat(unions * self.part, self.starts, axis=1) + self.always
        return np.concatenate([open_, np.ones((len(unions), 1))], 1)

    def narrow(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return for each site whether to leave out its closed filters: wherever that is possible."""
        return np.broadcast_to(self.narrows, (len(unions), len(self.narrows)))

    def cost(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return the multiply-adds of these layers for so many images: (R, gates), (R,) -> (R,)."""
        shares = self.shares(unions)
        return images * (self.macs * shares[:, self.inputs] * shares[:, self.outputs]).sum(1)


def one_by_pattern(patterns: np.ndarray, work: Costing) -> list[SubBatch]:
    """Return a part for each pattern of a batch: (N, gates) of bool -> parts."""
    return [part_of(patterns, images, work) for images in alike(patterns)]


def bucketed(patterns: np.ndarray, work: Costing, slack: float = 1.1) -> list[SubBatch]:
    """Return parts of images whose patterns are nearly the same: (N, gates) of bool -> parts.

    Patterns, the most frequent first, join the bucket where they add the least cost, if the bucket then costs at most
    `slack` times what both cost apart.
    """
    groups = sorted(alike(patterns), key=len, reverse=True)
    own = np.stack([patterns[images[0]] for images in groups])
    costs = work.cost(own, np.array([len(images) for images in groups]))
    buckets, unions, apart = [groups[0]], own[:1], costs[:1]
    for images, pattern, cost in zip(groups[1:], own[1:], costs[1:], strict=True):
        sizes = np.array([len(bucket) for bucket in buckets])
        merged = work.cost(unions | pattern, sizes + len(images))
        best = int((merged - apart).argmin())
        if merged[best] <= slack * (apart[best] + cost):
            buckets[best] = np.concatenate([buckets[best], images])
            unions[best] |= pattern
            apart[best] = merged[best]
        else:
            buckets.append(images)
            unions, apart = np.concatenate([unions, pattern[None]]), np.append(apart, cost)
    return [part_of(patterns, images, work) for images in buckets]


def alike(patterns: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each pattern of a batch."""
    rows: dict[bytes, list[int]] = {}
    for number, pattern in enumerate(patterns):
        rows.setdefault(pattern.tobytes(), []).append(number)
    return [np.array(images) for images in rows.values()]


def part_of(patterns: np.ndarray, images: np.ndarray, work: Costing) -> SubBatch:
    """Return these images of a batch as one part."""
    own = patterns[images]
    union: np.ndarray = np.any(own, axis=0)
    narrow = work.narrow(union[None], np.array([len(images)]))[0]
    return SubBatch(images, union, bool((own == own[0]).all()), narrow)
