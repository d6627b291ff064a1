"""Routes: K sets of open filters for the whole network, of equal cost, of which the gater picks one for each image."""

# pyright: basic

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatewise import errors
from gatewise.core._torch_compat import is_jit_tracing
from gatewise.core.merging import merged, run_twice
from gatewise.core.turns import Turns
from gatewise.core.types import Output
from gatewise.gaternet.hooks import GateContext
from gatewise.gaternet.route_norms import RouteNorms, check_norms_kept
from gatewise.gaternet.sites import Site
from gatewise.gates.functional import at_least_float32, straight_through

_BALANCE = 0.1  # weight of the balance term; at 0.01, as in the Switch Transformer, a route was left without images
_LARGEST_UNIT = 16  # filters; runtimes with blocked layouts compute whole blocks of 8 or 16
_FEWEST_UNITS = 4  # per layer, so that a budget can be met
_AT_RANDOM = 2.0**-20  # of an open gate in random routes; those of computed ones have 1
ROWS_WITH_ROUTES = (
    "The images of each route run together: return a row for each image, and compute losses outside the network, or "
    "use one route, net.of_route(0)."
)


def open_counts(sites: Sequence[Site], budget: float) -> list[int]:
    """Return the number of open gates of each site: that of every route, so that routes have equal multiply-adds.

    Counts are multiples of 16 filters, or of the largest power of two that is at most a quarter of a layer's filters.
    Layers are rounded in order, and each makes up for the multiply-adds that the layers before it have too many or too
    few, so the whole network meets the budget.

    Args:
        sites: the gated layers.
        budget: fraction of the gated filters' multiply-adds, in (0, 1].
    """
    counts: list[int] = []
    owed = 0.0  # multiply-adds that the counts so far are below the budget
    for site in sites:
        unit = _unit(site)
        macs = site.macs_per_filter * site.group_size or 1.0  # of one gate
        wanted = budget * site.gates + owed / macs
        count = min(site.gates, max(unit, unit * round(wanted / unit)))
        owed += (budget * site.gates - count) * macs
        counts.append(count)
    return counts


def _unit(site: Site) -> int:
    """Return the number of gates by which the count of open gates of a site varies."""
    unit = _LARGEST_UNIT
    while unit > 1 and (unit * _FEWEST_UNITS > site.filters or unit % site.group_size or site.filters % unit):
        unit //= 2
    return max(1, unit // site.group_size)


class OneRoute(nn.Module):
    """The gater of a network with one route: it has nothing to decide and costs nothing, (N, ...) -> (N, 1) zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 1)


class Routes(nn.Module):
    """The routes of a GaterNet, and the choice between them.

    In training mode the route of an image is sampled by straight-through Gumbel-softmax from the gater's logits, in
    eval mode it is the largest logit. The extra loss balances the routes: 0.1 K sum_k f_k P_k, with f_k the fraction
    of images whose largest logit is k and P_k the mean probability of k.

    Args:
        backbone: the network, for copies of its batch norms.
        sites: its gated layers.
        count: number of routes K.
        budget: fraction of the gated filters' multiply-adds that every route executes.

    Attributes:
        patterns: a number for each gate in each route, (K, gates), 0 if it is closed. It is open if the number is more
            than half of the largest, so a moving average of two sets of routes opens the one of the larger weight, and
            an equal mean the gates that most of the sets open. Older files have bool. At first routes are drawn at
            random, with small numbers: an average of them and later ones opens the later.
        norms: batch norms of each route.

    Paper: Fedus et al., Switch Transformers, JMLR 2022, arXiv 2101.03961 (the balance term).
    """

    patterns: Tensor

    def __init__(self, backbone: nn.Module, sites: Sequence[Site], count: int, budget: float) -> None:
        super().__init__()
        self.open_counts = open_counts(sites, budget)
        gates = sites[-1].first + sites[-1].gates
        anchor = next(backbone.parameters())
        self.register_buffer("patterns", torch.zeros(count, gates, device=anchor.device))
        self.open_most_important(sites, torch.rand(count, gates))
        self.patterns *= _AT_RANDOM
        self.norms = RouteNorms(backbone, count)
        self._turns = Turns()  # a forward puts the norms of its route into the backbone, which all threads share

    @property
    def opened(self) -> Tensor:
        """Whether each gate is open in each route, (K, gates), bool."""
        return self.patterns > self.patterns.amax() / 2

    def open_most_important(self, sites: Sequence[Site], importance: Tensor) -> None:
        """Open the most important gates of each site, as many as its count; `importance` is that for each route."""
        self.patterns.zero_()
        for site, count in zip(sites, self.open_counts, strict=True):
            best = site.first + site.own(importance).topk(count).indices
            self.patterns.scatter_(1, best.to(self.patterns.device), 1.0)

    def keep(self, route: int) -> None:
        """Drop all routes but one, in place."""
        self.patterns = self.patterns[route : route + 1].clone()
        self.norms.of_routes = nn.ModuleList([self.norms.of_routes[route]])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of the gater's logits, at least in float32: (N, K) -> (N, K)."""
        return logits.to(at_least_float32(logits.dtype)).softmax(1)

    def choose(self, logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Return the route of each image, (N,), and its gates, (N, gates), from the gater's logits, (N, K)."""
        logits = logits.to(at_least_float32(logits.dtype))
        if not training or logits.shape[1] == 1:
            route = logits.argmax(1)
            return route, self.gates(route).to(logits.dtype)
        uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
        soft = (logits - (-uniform.log()).log()).softmax(1)
        route = soft.argmax(1)
        chosen = straight_through(nn.functional.one_hot(route, logits.shape[1]).to(soft), soft)
        return route, (chosen.unsqueeze(2) * self.opened).sum(1)

    def gates(self, route: Tensor) -> Tensor:
        """Return the gates of routes: (N,) -> (N, gates), float32."""
        return self.opened[route].float()

    def nearest(self, gates: Tensor) -> Tensor:
        """Return the route that agrees with most of the given gates: (N, gates) -> (N,)."""
        signs = 2 * self.opened.to(at_least_float32(gates.dtype)) - 1
        return ((gates - 0.5).to(signs.dtype) @ signs.T).argmax(1)

    def balance_loss(self, logits: Tensor) -> Tensor:
        """Return 0.1 K sum_k f_k P_k, a scalar; it is smallest if the routes are used equally."""
        count = logits.shape[1]
        used = nn.functional.one_hot(logits.argmax(1), count).to(at_least_float32(logits.dtype)).mean(0)
        return _BALANCE * count * (used * self.probabilities(logits).mean(0)).sum()

    def preference_loss(self, logits: Tensor, routes: Tensor, losses: Tensor) -> Tensor:
        """Return the expected loss of an image if the gater chose between a few routes only, over the mean loss.

        Its gradient moves the gater towards the route of less loss; the losses themselves get no gradient.

        Args:
            logits: of the gater, (N, K).
            routes: routes that each image has run through, (N, R).
            losses: its loss in each of them, (N, R).
        """
        losses = losses.detach().to(at_least_float32(losses.dtype))
        shares = self.probabilities(logits.gather(1, routes))
        return (shares * losses).sum(1).mean() / losses.mean().clamp(min=1e-12)

    def run(self, backbone: nn.Module, context: GateContext, x: Tensor, route: Tensor, gates: Tensor) -> Output:
        """Run each image with its gates and the batch norms of its route; images of a route run together."""
        if len(self.patterns) > 1 and (torch.compiler.is_exporting() or is_jit_tracing()):
            raise errors.InvalidValueError(
                "a GaterNet with routes groups images by route in Python, which cannot be traced. Use one route: "
                "net.of_route(0)."
            )
        check_norms_kept(backbone, self.norms)
        if len(self.patterns) == 1 or not len(x):
            return self._run_group(backbone, context, x, 0, gates)
        used: list[int] = route.unique().tolist()
        rows = [(route == number).nonzero().flatten() for number in used]
        outputs = [
            self._run_route(backbone, context, x[own], number, gates[own])
            for number, own in zip(used, rows, strict=True)
        ]
        return merged(outputs, [own.cpu().numpy() for own in rows], ROWS_WITH_ROUTES)

    def _run_route(self, backbone: nn.Module, context: GateContext, x: Tensor, route: int, gates: Tensor) -> Output:
        """Run the images of a route; a single one twice where batch norms compute statistics."""
        if len(x) == 1 and (self.training or any(backbone.get_submodule(path).training for path in self.norms.paths)):
            return run_twice(lambda *both: self._run_group(backbone, context, both[0], route, both[1]), x, gates)
        return self._run_group(backbone, context, x, route, gates)

    def _run_group(self, backbone: nn.Module, context: GateContext, x: Tensor, route: int, gates: Tensor) -> Output:
        context.set_gates(gates)
        if is_jit_tracing():
            with self.norms.lent(route, backbone):
                return backbone(x)
        with contextlib.nullcontext() if torch.compiler.is_compiling() else self._turns:
            return functional_call(backbone, self.norms.tensors(route), (x,))
