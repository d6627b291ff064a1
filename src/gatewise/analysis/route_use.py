"""Which images take which route of a GaterNet."""

# pyright: basic

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise import errors
from gatewise.gaternet import GaterNet


@dataclass(frozen=True)
class RouteUse:
    """The routes of a set of images.

    Attributes:
        images: number of images of each class (column) that take each route (row), (K, classes).
        examples: for each route the indices of a few of its images, spread over all of them.
        overlap: of each pair of routes, gates that are open in both over gates that are open in either, (K, K).
    """

    images: Tensor
    examples: tuple[tuple[int, ...], ...]
    overlap: Tensor

    @property
    def shares(self) -> list[float]:
        """Share of the images that take each route."""
        return (self.images.sum(1) / self.images.sum()).tolist()

    @property
    def shared_information(self) -> float:
        """Mutual information of route and class in bits: log2 K at most; 0 if the route says nothing of the class."""
        joint = self.images.double() / self.images.sum()
        independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        return float(torch.where(joint > 0, joint * (joint / independent.clamp(min=1e-300)).log2(), 0.0).sum())


def record_routes(net: GaterNet, batches: Iterable[tuple[Tensor, Tensor]], classes: int, examples: int = 8) -> RouteUse:
    """Return the routes of images.

    Args:
        net: a network with routes.
        batches: images with the classes of the images; all 0 if they have none.
        classes: number of classes.
        examples: number of images to keep for each route.

    Raises:
        InvalidValueError: the network has no routes, or there are no images.
    """
    device = next(net.parameters()).device
    pairs = [(net.route_of(images.to(device)).cpu(), labels.cpu()) for images, labels in batches]
    if not pairs:
        raise errors.InvalidValueError("there are no images to record; an iterator may be used up already.")
    assert net.routes is not None
    route, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    counts = torch.zeros(len(net.routes), classes, dtype=torch.long)
    counts.index_put_((route, labels), torch.ones_like(route), accumulate=True)
    own = [(route == number).nonzero().flatten() for number in range(len(net.routes))]
    kept = tuple(tuple(each[:: max(1, len(each) // examples)][:examples].tolist()) for each in own)
    opened = net.routes.cpu().double()
    both = opened @ opened.T
    total = opened.sum(1)
    return RouteUse(counts, kept, both / (total[:, None] + total[None, :] - both))
