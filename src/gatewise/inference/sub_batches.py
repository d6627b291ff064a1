"""Split a batch into images that run together: those with equal or similar open filters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gatewise.gaternet import GaterNet
from gatewise.graph import ChannelDependency


@dataclass(frozen=True, eq=False)
class SubBatch:
    """Images of a batch that run together.

    Attributes:
        images: rows of the images in the batch.
        union: for each gate whether some image opens it, (gates,).
        alike: whether all images have the same gates.
    """

    images: np.ndarray
    union: np.ndarray
    alike: bool


@dataclass(frozen=True, eq=False)
class Work:
    """The cost model in multiply-adds: macs * (open fraction of the inputs) * (open fraction of the outputs) per layer.

    Attributes:
        paths: paths of the layers that gates change.
        macs: multiply-adds of each layer for one image, (layers,).
        inputs: index of the site with the inputs of each layer, or the number of sites if they have no gates.
        outputs: index of the site with the outputs of each layer, or the number of sites if they have no gates.
        narrows: for each site whether its closed filters can be skipped.
        starts: index of the first gate of each site.
        part: for each gate the fraction of its site's filters that it controls.
        always: for each site the fraction of filters that are always open.
        reads: index of the site with the inputs, by path of the gated convolution.
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
        """Return the cost model of a net with these channel dependencies."""
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
        """Return the open fraction of each site, and a last column of 1: (R, gates) -> (R, sites + 1)."""
        open_ = np.add.reduceat(unions * self.part, self.starts, axis=1) + self.always
        return np.concatenate([open_, np.ones((len(unions), 1))], 1)

    def cost(self, unions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return the multiply-adds of R sub-batches: open gates (R, gates), images (R,) -> (R,)."""
        shares = self.shares(unions)
        return images * (self.macs * shares[:, self.inputs] * shares[:, self.outputs]).sum(1)


def one_by_pattern(patterns: np.ndarray) -> list[SubBatch]:
    """Return one sub-batch for each distinct pattern: bool (N, gates) -> sub-batches."""
    return [part_of(patterns, images) for images in alike(patterns)]


def bucketed(patterns: np.ndarray, work: Work, slack: float = 1.1) -> list[SubBatch]:
    """Return sub-batches of images with similar patterns: bool (N, gates) -> sub-batches.

    Greedy, most frequent pattern first: a pattern joins the bucket with the smallest additional cost if the merged cost
    is at most `slack` times the sum of the separate costs; otherwise it starts a new bucket.
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
    return [part_of(patterns, images) for images in buckets]


def alike(patterns: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each distinct pattern."""
    rows: dict[bytes, list[int]] = {}
    for number, pattern in enumerate(patterns):
        rows.setdefault(pattern.tobytes(), []).append(number)
    return [np.array(images) for images in rows.values()]


def part_of(patterns: np.ndarray, images: np.ndarray) -> SubBatch:
    """Return these images of a batch as one sub-batch."""
    own = patterns[images]
    union: np.ndarray = np.any(own, axis=0)
    return SubBatch(images, union, bool((own == own[0]).all()))
