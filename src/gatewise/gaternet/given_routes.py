"""Give a GaterNet its routes: patterns that are known, or those that the gates of a trained network form."""

# pyright: basic

from collections.abc import Iterable

import torch
from torch import Tensor

from gatewise import errors
from gatewise.gaternet.network import GaterNet
from gatewise.gaternet.route_patterns import clusters
from gatewise.graph import evaluation_mode


@torch.no_grad()
def set_routes(net: GaterNet, patterns: Tensor) -> None:
    """Give a net with routes its patterns, and all routes the backbone's batch norms, in place.

    Routes may open different numbers of filters. The gater is not changed.

    Args:
        net: a net with K routes.
        patterns: whether each gate is open in each route, (K, gates), of 0 and 1.

    Raises:
        InvalidValueError: the net has no routes, or the patterns have another shape or other values.

    >>> from torch import nn
    >>> backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> net = GaterNet(backbone, routes=2, image_size=(8, 8))
    >>> set_routes(net, torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]))
    >>> net.open_fraction(net.routes.float())
    tensor([0.5000, 0.7500])
    """
    if net.selection is None:
        raise errors.InvalidValueError("set_routes needs routes; build the network with GaterNet(..., routes=K).")
    own = net.selection.patterns
    if not isinstance(patterns, Tensor) or patterns.shape != own.shape:
        given = tuple(patterns.shape) if isinstance(patterns, Tensor) else type(patterns).__name__
        raise errors.InvalidValueError(
            f"patterns must have shape {tuple(own.shape)}, a row for each route and a column for each gate, got "
            f"{given}."
        )
    opened = patterns.to(own.device) == 1
    if not bool((opened | (patterns.to(own.device) == 0)).all()):
        raise errors.InvalidValueError("patterns must be 1 where a gate is open and 0 where it is closed.")
    own.copy_(opened)
    net.norms_follow_backbone()


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


@torch.no_grad()
def follow_gates(net: GaterNet, source: GaterNet, batches: Iterable[Tensor]) -> None:
    """Give a net with routes those of another net's gates, and the choice of that net's gater between them, in place.

    The patterns are those of `routes_from_gates`. With the logits l of the gates, the logit of route k is
    sum_i (2 p_ki - 1) l_i / sqrt(gates): an image takes the route whose open gates have the largest logits.

    Args:
        net: a net with K routes, whose backbone has the weights of that of `source`.
        source: a net with the same gates and a gater of the same name, in eval mode, that decides gates one by one.
        batches: images, (N, C, *S).
    """
    assert net.routes is not None
    set_routes(net, routes_from_gates(source, batches, len(net.routes)))
    if len(net.routes) == 1:
        return
    signs = (2 * net.routes.float() - 1) / net.gate_count**0.5
    given: dict[str, Tensor] = dict(source.gater.state_dict())
    for name in ("head.fc2.weight", "head.fc2.bias"):
        given[name] = signs.to(given[name]) @ given[name]
    net.gater.load_state_dict(given)
