"""Give a GaterNet its routes: patterns that are known, or those that the gates of a trained network form."""

# pyright: basic

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core.seeding import seeded
from gatewise.gaternet.network import GaterNet
from gatewise.gaternet.route_patterns import clusters
from gatewise.graph import evaluation_mode

_PASSES = 10  # over the images from which a gater learns to choose
_RATE = 3e-3


@torch.no_grad()
def set_routes(net: GaterNet, patterns: Tensor) -> None:
    """Give a net with routes its patterns, and all routes the backbone's batch norms, in place.

    Routes may open different numbers of filters. The gater is not changed.

    Args:
        net: a net with K routes.
        patterns: whether each gate is open in each route, (K, gates), of 0 and 1.

    Raises:
        InvalidValueError: the net has no routes, or the patterns have another shape or other values.

    >>> backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> net = GaterNet(backbone, routes=2, image_size=(8, 8))
    >>> set_routes(net, torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]))
    >>> net.executed_macs(net.routes).tolist() == sorted(net.executed_macs(net.routes).tolist())
    True
    """
    if net.selection is None:
        raise errors.InvalidValueError("set_routes needs routes; build the network with GaterNet(..., routes=K).")
    own = net.selection.patterns
    if not isinstance(patterns, Tensor) or patterns.shape != own.shape:
        given = tuple(patterns.shape) if isinstance(patterns, Tensor) else type(patterns).__name__
        raise errors.InvalidValueError(
            f"patterns must have shape {tuple(own.shape)}, a row for each route and a column for each gate, got {given}."
        )
    opened = patterns.to(own.device) == 1
    if not bool((opened | (patterns.to(own.device) == 0)).all()):
        raise errors.InvalidValueError("patterns must be 1 where a gate is open and 0 where it is closed.")
    own.copy_(opened)
    net.selection.norms.follow(net.backbone)


@torch.no_grad()
def routes_from_gates(net: GaterNet, batches: Iterable[Tensor], count: int) -> Tensor:
    """Return routes for a network that was trained without: whether each gate is open, (count, gates), bool.

    The images are divided into clusters of equal size by their gates; a route opens the gates that more than half of
    the images of a cluster open.

    Args:
        net: the network.
        batches: images, (N, C, *S).
        count: number of routes K.
    """
    with evaluation_mode(net):
        gates = torch.cat([net.decide(images) for images in batches])
    if len(gates) < count:
        raise errors.InvalidValueError(f"{count} routes need at least as many images, got {len(gates)}. Give more.")
    assigned = clusters(gates, count)
    return torch.stack([gates[assigned == number].mean(0) > 0.5 for number in range(count)])


def follow_gates(net: GaterNet, source: GaterNet, batches: Iterable[Tensor]) -> None:
    """Give a net with routes those of another net's gates, in place, and its gater that net's choice between them.

    The patterns are those of `routes_from_gates`. The gater starts from the parameters of the other net's gater, as far
    as they have the same shapes, and learns by cross-entropy which route agrees with most gates of each image.

    Args:
        net: a net with K routes, whose backbone has the weights of that of `source`.
        source: a net with the same gates that decides them one by one, in eval mode.
        batches: images, (N, C, *S); they are read several times.
    """
    images = list(batches)
    assert net.routes is not None
    assert net.selection is not None
    set_routes(net, routes_from_gates(source, images, len(net.routes)))
    with torch.no_grad():
        nearest = [net.selection.nearest(source.decide(x)) for x in images]
    if len(net.routes) > 1:
        own, theirs = net.gater.state_dict(), source.gater.state_dict()
        fitting = {name: tensor for name, tensor in theirs.items() if own[name].shape == tensor.shape}
        net.gater.load_state_dict(fitting, strict=False)
        _teach(net.gater, images, nearest)


def _teach(gater: nn.Module, images: list[Tensor], classes: list[Tensor]) -> None:
    """Train a gater to classify images."""
    before = gater.training
    optimizer = torch.optim.Adam(gater.parameters(), lr=_RATE)
    with seeded(0):
        for _ in range(_PASSES):
            for index in torch.randperm(len(images)).tolist():
                loss = nn.functional.cross_entropy(gater.train()(images[index]), classes[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    gater.train(before)
