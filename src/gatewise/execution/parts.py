"""Which images of a batch are run together: those with the same open filters, or nearly the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gatewise.gaternet import GaterNet
from gatewise.places import Flow


@dataclass(frozen=True, eq=False)
class Part:
    """Images that are run together.

    Attributes:
        images: their rows in the batch.
        union: for each gate whether one of them opens it.
        alike: whether all of them open the same.
        narrow: for each site whether only the open filters are computed.
    """

    images: np.ndarray
    union: np.ndarray
    alike: bool
    narrow: np.ndarray


@dataclass(frozen=True, eq=False)
class Work:
    """What a network's layers cost, by the open shares of the sites they read and write.

    Attributes:
        macs: of each layer that a site changes, for one image.
        inputs: the site whose filters each of them reads, or the number of sites for none.
        outputs: the site whose filters each of them makes, or the number of sites for none.
        narrows: for each site whether its closed filters can be left out.
        starts: where each site's gates begin, and the number of all gates.
        reads: for each convolution with gates the site whose filters it reads, if any.
    """

    macs: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    narrows: np.ndarray
    starts: np.ndarray
    reads: dict[str, int]

    @classmethod
    def of(cls, net: GaterNet, flows: Sequence[Flow]) -> "Work":
        """Collect the layers of a net."""
        nothing = len(net.sites)
        macs: dict[str, int] = {}
        inputs: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for number, (site, flow) in enumerate(zip(net.sites, flows, strict=True)):
            if flow.possible:
                for layer in (site.maker, *site.depthwise):
                    macs[layer.layer], outputs[layer.layer] = layer.macs, number
                for layer in site.readers if flow.readers else ():
                    macs[layer.layer], inputs[layer.layer] = layer.macs, number
        return cls(
            macs=np.array([*macs.values()], dtype=float),
            inputs=np.array([inputs.get(path, nothing) for path in macs], dtype=int),
            outputs=np.array([outputs.get(path, nothing) for path in macs], dtype=int),
            narrows=np.array([flow.possible for flow in flows]),
            starts=np.array([*(site.first for site in net.sites), net.gate_count]),
            reads={site.name: inputs[site.name] for site in net.sites if site.name in inputs},
        )

    def shares(self, union: np.ndarray) -> np.ndarray:
        """Return the open share of each site, and 1 for none: (..., gates) -> (..., sites + 1)."""
        open_ = np.add.reduceat(union, self.starts[:-1], axis=-1, dtype=float) / np.diff(self.starts)
        return np.concatenate([open_, np.ones((*union.shape[:-1], 1))], -1)

    def narrow(self, union: np.ndarray, images: int) -> np.ndarray:  # noqa: ARG002
        """Return for each site whether to leave out its closed filters."""
        return self.narrows

    def cost(self, union: np.ndarray, images: np.ndarray | int) -> np.ndarray:
        """Return the multiply-adds of these layers for so many images: (..., gates), (...) -> (...)."""
        shares = self.shares(union)
        return images * (self.macs * shares[..., self.inputs] * shares[..., self.outputs]).sum(-1)


def one_by_pattern(patterns: np.ndarray, work: Work) -> list[Part]:
    """Return a part for each pattern of a batch: (N, gates) of bool -> parts."""
    return [_part(patterns, images, work) for images in _alike(patterns)]


def bucketed(patterns: np.ndarray, work: Work, slack: float = 1.1) -> list[Part]:
    """Return parts of images whose patterns are nearly the same: (N, gates) of bool -> parts.

    Patterns, the most frequent first, join the bucket where they add the least cost, if the bucket then costs at most
    `slack` times what both cost apart.
    """
    buckets: list[np.ndarray] = []
    unions = np.zeros((0, patterns.shape[1]), bool)
    for images in sorted(_alike(patterns), key=len, reverse=True):
        own = patterns[images[0]]
        if buckets:
            sizes = np.array([len(bucket) for bucket in buckets])
            apart = work.cost(unions, sizes) + work.cost(own, len(images))
            more = work.cost(unions | own, sizes + len(images)) / apart
            best = int(more.argmin())
            if more[best] <= slack:
                buckets[best] = np.concatenate([buckets[best], images])
                unions[best] |= own
                continue
        buckets.append(images)
        unions = np.concatenate([unions, own[None]])
    return [_part(patterns, images, work) for images in buckets]


def _alike(patterns: np.ndarray) -> list[np.ndarray]:
    rows: dict[bytes, list[int]] = {}
    for number, pattern in enumerate(patterns):
        rows.setdefault(pattern.tobytes(), []).append(number)
    return [np.array(images) for images in rows.values()]


def _part(patterns: np.ndarray, images: np.ndarray, work: Work) -> Part:
    own = patterns[images]
    union = own.any(0)
    return Part(images, union, bool((own == own[0]).all()), work.narrow(union, len(images)))
