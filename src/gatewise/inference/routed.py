"""A GaterNet that opens one of K sets of filters for each image, as one dense network for each set."""

# pyright: basic

from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core._torch_compat import is_recorded
from gatewise.core.merging import merged
from gatewise.core.types import Output
from gatewise.gaternet import GaterNet
from gatewise.gaternet.network import ESTIMATORS, check_gates
from gatewise.gaternet.routes import ROWS_WITH_ROUTES
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.restructure import GateState, restructure
from gatewise.inference.surgery import folded

NO_STATE = (
    "a skipping net has no state dict: its weights are folded and sliced copies. Save and load the GaterNet that it "
    "was made from, or use torch.save on the skipping net itself."
)
_NOT_TRACED = (
    "a net that runs route by route reads the route of each image in Python, which torch.export, torch.fx, torch.func "
    "and torch.jit cannot trace. Use one route of the GaterNet, net.of_route(k); gatewise.export writes all routes."
)


class Chooser(nn.Module):
    """Images (N, C, *S) -> the route of each, (N,), int64, and its gates, (N, gates).

    The gater of a net with routes has one logit for each. Otherwise the route is the one that agrees with most of the
    gates.

    Args:
        net: the network.
        patterns: whether each gate is open in each route, (K, gates), bool, for a net without routes.
    """

    patterns: Tensor

    def __init__(self, net: GaterNet, patterns: Tensor) -> None:
        super().__init__()
        self.gater: nn.Module = full_copy(net.gater).eval().requires_grad_(False)
        self.estimator = net.estimator
        self.decides_gates = net.routes is None
        anchor = next(net.parameters())
        self.register_buffer("patterns", patterns.to(anchor))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.gater(image)
        if self.decides_gates:
            gates = ESTIMATORS[self.estimator](logits, False)
            logits = (gates - 0.5) @ (2 * self.patterns - 1).T  # gates that agree, less those that do not
        route = logits.argmax(1)
        return route, self.patterns[route]


class RoutedNet(nn.Module):
    """Run each image through the dense network of its route: (N, C, *S) -> output and gates of `net.eval()`.

    Args:
        net: the network; it is not changed.
        patterns: the routes of a net that has none: whether each gate is open, (K, gates), bool.

    Attributes:
        chooser: chooses the route of each image.
        networks: one network for each route, without its closed filters.
        example: an image, (1, C, *S).

    Raises:
        InvalidValueError: the net has no routes and no patterns are given, or it has local gating.
    """

    example: Tensor

    def __init__(self, net: GaterNet, patterns: Tensor | None = None) -> None:
        super().__init__()
        if net.is_local:
            raise errors.InvalidValueError(
                "local gating computes its gates during the forward, so an image has no route. Choose another form."
            )
        own = net.routes
        if own is None and patterns is None:
            raise errors.InvalidValueError(
                "the network has no routes. Train it with gaternet:routes=K, or give routes (--routes K)."
            )
        chosen = cast(Tensor, own if patterns is None else patterns)
        if chosen.dim() != 2 or chosen.shape[1] != net.gate_count or not len(chosen):
            raise errors.InvalidValueError(
                f"routes must have shape (K, {net.gate_count}), a row for each route, got {tuple(chosen.shape)}."
            )
        self.chooser = Chooser(net, chosen)
        self.networks = nn.ModuleList(_dense_networks(net, chosen.bool(), own is not None))
        anchor = next(net.parameters())
        self.register_buffer("example", torch.zeros(1, *net.input_shape).to(anchor), persistent=False)
        self.eval().requires_grad_(False)

    @property
    def count(self) -> int:
        """Number of routes K."""
        return len(self.networks)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Output:
        return self.forward_with_gates(x, gates)[0]

    @torch.no_grad()
    def forward_with_gates(self, x: Tensor, gates: Tensor | None = None) -> tuple[Output, Tensor]:
        """Return the output and the gates, (N, gates); `gates` select the routes instead of the gater."""
        if is_recorded(x):
            raise errors.InvalidValueError(_NOT_TRACED)
        if gates is not None:
            check_gates(gates, images=len(x), count=self.chooser.patterns.shape[1])
        route, gates = self.chooser(x) if gates is None else (self.route_with(gates), gates)
        assert gates is not None
        used: list[int] = route.unique().tolist()
        if len(used) <= 1:
            return self.networks[used[0] if used else 0](x), gates
        rows = [(route == number).nonzero().flatten() for number in used]
        outputs: list[Any] = [self.networks[number](x[own]) for number, own in zip(used, rows, strict=True)]
        return merged(outputs, [own.cpu().numpy() for own in rows], ROWS_WITH_ROUTES), gates

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError: the weights are sliced copies. Save the GaterNet instead."""
        raise errors.InvalidValueError(NO_STATE)

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError: load into the GaterNet, and make a new skipping net from it."""
        raise errors.InvalidValueError(NO_STATE)

    def folded(self) -> "RoutedNet":
        """Fold the batch norms of all networks into their convolutions, in place, and return this net."""
        example = self.example.expand(2, *self.example.shape[1:])
        self.networks = nn.ModuleList([folded(network, example) for network in self.networks])
        return self

    def route_with(self, gates: Tensor) -> Tensor:
        """Return the route that has exactly these gates, (N, gates) -> (N,); raise if there is none."""
        same = (gates.unsqueeze(1) == self.chooser.patterns.to(gates)).all(2)
        if not bool(same.any(1).all()):
            raise errors.InvalidValueError("the gates of an image are those of no route. Run the GaterNet itself.")
        return same.int().argmax(1)

    def __prepare_scriptable__(self) -> nn.Module:
        raise errors.InvalidValueError(_NOT_TRACED)


def _dense_networks(net: GaterNet, patterns: Tensor, own: bool) -> list[nn.Module]:
    """Return a copy of the backbone for each pattern, without the closed filters, which are compared once."""
    networks: list[nn.Module] = []
    whole: list[str] | None = None
    for route, opened in enumerate(patterns.tolist()):
        single: Any = net.of_route(route) if own else net
        states = [GateState.OPEN if gate else GateState.CLOSED for gate in opened]
        network, dependencies = restructure(single, states, whole)
        if whole is None:
            sites = zip(net.sites, dependencies, strict=True)
            whole = [site.name for site, dependency in sites if not dependency.possible]
        networks.append(network)
    return networks
