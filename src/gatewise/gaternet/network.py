"""GaterNet: a gater network selects, for each image, which filters of a backbone are used."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import is_replica
from gatewise.core.loaders import Loader, batches_of
from gatewise.core.merging import halves
from gatewise.core.reasons import as_data_error
from gatewise.core.seeding import seeded
from gatewise.core.types import Output, main_output
from gatewise.gaternet.budget import Budget, Sparsity, open_share
from gatewise.gaternet.gater import HEAD_NORMS, LocalDecider, head_norm_of, keep_logits, make_gater
from gatewise.gaternet.hooks import GateContext, attach, detach, keep_attached, recomputing
from gatewise.gaternet.route_patterns import clusters, importance_by_cluster, sensitivity
from gatewise.gaternet.routes import OneRoute, Routes
from gatewise.gaternet.sites import Chosen, Site, find_sites
from gatewise.gaternet.work import own_macs, saved_macs
from gatewise.gates.functional import at_least_float32, gumbel_sigmoid, hard_sigmoid_gate, semhash
from gatewise.graph import Graph, evaluation_mode
from gatewise.graph.measure import macs_per_sample
from gatewise.graph.structural_copy import full_copy
from gatewise.graph.trace import example_inputs, known_input_size

ESTIMATORS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "semhash": semhash,
    "gumbel": gumbel_sigmoid,
    "straight_through": hard_sigmoid_gate,
}
WEIGHTINGS = ("equal", "macs")
_SATURATED = 2.398 + 2  # SemHash has no gradient above 2.398; unit noise of 2 standard deviations still reaches it


COMPANIONS = ("dense", "random")  # the network with all gates open; a random route of each image


@dataclass(frozen=True)
class CompanionOutputs:
    """What ran in the same training forward as the gated network.

    Attributes:
        dense: output with all gates open, or None.
        random: output of a random route of each image, or None.
        logits: the gater's logits, (N, K), with `random`.
        routes: the image's own and its random route, (N, 2), with `random`.
    """

    dense: Output | None = None
    random: Output | None = None
    logits: Tensor | None = None
    routes: Tensor | None = None


class GaterNet(nn.Module):
    """Multiply each gated filter of `backbone` by a gate in {0, 1} that `gater` computes from the image.

    (N, C, *S) -> output of the backbone, with one to three spatial axes S. In training mode the estimator samples the
    gates; in eval mode they are hard and deterministic. Closed filters are computed and then multiplied by zero, which
    saves no work. Use this form for training and as the reference; `skip_closed_filters` and `compact` return faster
    forms.

    Args:
        backbone: any network with one image tensor as input. It is kept as `net.backbone`, with hooks that do nothing
            when it is called directly.
        sites: "inner" (after normalisation and activation of the convolutions inside a block: a closed filter is
            exactly zero, so its convolution and its consumer both save work), "residual" (as in the paper: the last
            convolution of each residual branch, before the addition), or convolutions by name: a list, a regular
            expression, or a function of name and module.
        gater: "light" (at most 3 % of the backbone's multiply-adds), "resnet20" (official), "local" (each site has a
            decider on the input of its convolution), a module (N, C, *S) -> (N, gates) logits, or a function from
            the number of gates to such a module.
        bottleneck: width of the gater's hidden layer.
        head_norm: norm of that layer: "batch" (or True), as in the paper, "layer", or False, as in the released code.
            "auto" is "batch" for "light" and "local", and none for other gaters. Without it few gates of a light gater
            depend on the image.
        routes: number K of routes; None lets the gater choose each gate. A route is a set of open filters for the whole
            network, and the gater picks one of K for each image. All routes open equally many filters of each layer, so
            all images cost the same multiply-adds. At first the routes are random; `draw_routes` computes them from a
            trained backbone. With one route the network is statically pruned and needs no gater.
        group_size: number of neighbouring filters with a common gate.
        estimator: "semhash", "gumbel" or "straight_through"; see `gatewise.functional`.
        gate_bias: initial bias of the logits; at 2 nearly all gates are open. None is 2 with a budget and 0 otherwise.
        budget: target fraction of the gated filters' MACs, in (0, 1]. A controller adjusts the price of open gates.
            The target decreases linearly from 1 over the first half of the training. Set its number of steps with
            `schedule(steps)`; otherwise the decrease takes 1,000 steps. None uses `sparsity` instead. All routes meet
            the budget by construction, up to rounding; with routes None is 0.5.
        sparsity: weight of the mean gate in the loss (lambda in the paper).
        weighting: weight of each gate in the `sparsity` term: "equal" as in the paper, or "macs".
        image_size: (height, width) for counting work and building the light gater; None reads it from
            the backbone; if the backbone does not define it, 224 with a warning.
        example: an input, for backbones with an input size that cannot be guessed, such as those of volumes; then
            `image_size` is not needed.

    Raises:
        ValueError: if there is no filter to gate, an option is out of range, both `budget` and `sparsity` are set, or
            the gater fails on the image or returns a wrong number of logits.

    Paper: Chen et al., You Look Twice: GaterNet for Dynamic Filter Selection in CNNs, CVPR 2019, arXiv 1811.11205.

    Differs from the paper: the paper gates the end of each residual unit ("residual"), with ResNet-20 as gater and an
    unspecified lambda; "inner", "light" and `budget` are additions that save work.

    >>> from gatewise import make_model
    >>> net = GaterNet(make_model("resnet20"), sites="residual", gater="resnet20")
    >>> net.gate_count, sum(p.numel() for p in net.parameters())
    (336, 547842)
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        sites: Chosen = "inner",
        gater: str | nn.Module | Callable[[int], nn.Module] = "light",
        bottleneck: int = 8,
        head_norm: bool | str = "auto",
        routes: int | None = None,
        group_size: int = 1,
        estimator: str = "semhash",
        gate_bias: float | None = None,
        budget: float | None = None,
        sparsity: float = 0.0,
        weighting: str = "equal",
        image_size: tuple[int, ...] | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        _validation.check_module("GaterNet", backbone)
        if image_size is not None:
            _validation.check_image_size("image_size", image_size, axes=(1, 2, 3))
        if example is not None:
            _validation.check_floating_point("GaterNet", example=example)
        _validation.check_integer_at_least(1, bottleneck=bottleneck)
        _check_head_norm(head_norm)
        gate_bias = (0.0 if budget is None else 2.0) if gate_bias is None else gate_bias
        _validation.check_number_between(-100, 100, gate_bias=gate_bias)
        _validation.check_number_between(0, 1e6, sparsity=sparsity)
        if budget is not None:
            _validation.check_number_between(1e-6, 1, budget=budget)
            if sparsity:
                raise errors.InvalidValueError("give budget or sparsity, not both: both set the price of open gates.")
        if routes is not None:
            _check_routes(routes, gater, sparsity)
            gate_bias = 0.0
        self.estimator = _validation.check_one_of("estimator", estimator, ESTIMATORS)
        _validation.check_one_of("weighting", weighting, WEIGHTINGS)
        example = _example(backbone, image_size) if example is None else example
        found, self.skipped = find_sites(Graph(backbone, example), sites, group_size)
        self.backbone = backbone
        self.input_shape = tuple(example.shape[1:])
        self.dense_macs = macs_per_sample(backbone, example)
        norm = head_norm_of(head_norm, gater)
        head: dict[str, Any] = {"bottleneck": bottleneck, "head_norm": norm, "gate_bias": gate_bias}
        self.gate_context = GateContext(found)
        self.selection = None if routes is None else Routes(backbone, found, routes, 0.5 if budget is None else budget)
        local = isinstance(gater, str) and gater == "local"
        attach(backbone, self.gate_context, decide=local)
        if local:
            self.gater = _local_deciders(backbone, self.sites, head)
            self.gater_macs = _macs_of_linears(self.gater)
        else:
            logits = self.gate_count if routes is None else routes
            gater = OneRoute() if routes == 1 else gater
            self.gater = make_gater(gater, logits, self.gate_count, self.input_shape, self.dense_macs, **head)
            self.gater_macs = self._check_gater(example)
        device = "cpu" if example.is_meta else example.device  # no file has the values
        with torch.device(device):
            share = own_macs(self.sites) if budget is not None or weighting == "macs" else torch.ones(self.gate_count)
        share = (share / share.sum()).to(at_least_float32(example.dtype))
        priced = budget if routes is None else None  # the cost of routes is fixed
        self.price: Budget | Sparsity = Sparsity(share, sparsity) if priced is None else Budget(share, priced)
        self._due: Tensor | None = None
        self.all_open = False  # while the dense network is trained, before gates are chosen
        self.companions: frozenset[str] = frozenset()  # COMPANIONS that run in each training forward
        self._companion_outputs: CompanionOutputs | None = None
        self.saturated = torch.zeros(())  # fraction of saturated logits in the last training batch

    @property
    def sites(self) -> tuple[Site, ...]:
        """The gated layers, in the order of their gates."""
        return self.gate_context.sites

    @property
    def gate_count(self) -> int:
        """Length of the vector of gates."""
        return self.sites[-1].first + self.sites[-1].gates

    @property
    def budget(self) -> float | None:
        """Target fraction of the gated filters' MACs, or None."""
        return self.price.target if isinstance(self.price, Budget) else None

    @property
    def routes(self) -> Tensor | None:
        """Whether each gate is open in each route, (K, gate_count), bool; None if gates are chosen one by one."""
        return None if self.selection is None else self.selection.opened

    @property
    def is_local(self) -> bool:
        """Whether each site has a decider (gater="local")."""
        return isinstance(self.gater, nn.ModuleList)

    def __prepare_scriptable__(self) -> nn.Module:
        raise _validation.cannot_script("a GaterNet")

    def _check_gater(self, example: Tensor) -> int:
        """Raise if the gater fails or returns a wrong shape; return its multiply-adds."""
        gater = self.gater.to(example)
        problem = f"fails on an image of {' x '.join(map(str, example.shape[1:]))}"
        advice = "Choose another gater, or set image_size."
        failing = as_data_error("the gater", problem, advice, kind=errors.InvalidValueError)
        with failing, evaluation_mode(gater), torch.no_grad():
            logits = gater(example)
        count = self.gate_count if self.routes is None else len(self.routes)
        expected = (len(example), count)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise errors.InvalidValueError(
                f"the gater must return logits of shape (N, {count}), one for each "
                f"{'gate' if self.routes is None else 'route'}; got {given} for {len(example)} images."
            )
        return macs_per_sample(gater, example)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Output:
        return self.forward_with_gates(x, gates)[0]

    def forward_with_gates(self, x: Tensor, gates: Tensor | None = None) -> tuple[Output, Tensor]:
        """Return the backbone's output and the gates, (N, gate_count); `gates` replace those of the gater."""
        _validation.check_not_symbolic("GaterNet", x)
        if self.training and is_replica(self):
            raise errors.InvalidTypeError(
                "nn.DataParallel cannot train a GaterNet: the terms of the loss that its replicas compute, such as the "
                "budget's, would be lost. Use DistributedDataParallel (torchrun), or one device "
                "(CUDA_VISIBLE_DEVICES=0)."
            )
        keep_attached(self.backbone, self.gate_context)
        if torch.is_grad_enabled():
            self.gate_context.gated = True
        self._companion_outputs = None
        try:
            if gates is not None:
                self.check_gates(x, gates)
                return self._run(x, gates), gates
            if self.all_open:
                return self._run_dense(x)
            output, gates = self._decide_and_run(x)
            if self.training and "dense" in self.companions:
                self._companion_outputs = replace(
                    self._companion_outputs or CompanionOutputs(), dense=self._run_dense(x)[0]
                )
            return output, gates
        finally:
            self.gate_context.current.clear()

    def _decide_and_run(self, x: Tensor) -> tuple[Output, Tensor]:
        if self.is_local:
            return self._run_local(x)
        if self.selection is None:
            gates = self.decide(x)
            return self._run(x, gates), gates
        logits = self.gater(x)
        route, gates = self.selection.choose(logits, self.training)
        self._note_routes(logits)
        if not (self.training and "random" in self.companions and len(self.selection.patterns) > 1):
            return self.selection.run(self.backbone, self.gate_context, x, route, gates), gates
        other = torch.randperm(len(x), device=x.device) % len(self.selection.patterns)  # equally many of each route
        both = torch.cat([route, other]), torch.cat([gates, self.selection.gates(other).to(gates)])
        output = self.selection.run(self.backbone, self.gate_context, torch.cat([x, x]), *both)
        own, random = halves(output)
        self._companion_outputs = CompanionOutputs(random=random, logits=logits, routes=torch.stack([route, other], 1))
        return own, gates

    def _run(self, x: Tensor, gates: Tensor) -> Output:
        """Run the backbone with given gates; routes use the batch norms of the nearest route."""
        if self.selection is not None:
            return self.selection.run(self.backbone, self.gate_context, x, self.selection.nearest(gates), gates)
        self.gate_context.set_gates(gates)
        return self.backbone(x)

    def _run_dense(self, x: Tensor) -> tuple[Output, Tensor]:
        """Run the backbone with all gates open.

        The running statistics of norms that it shares with the gated network stay those of the gated network.
        """
        self.gate_context.set_all_open()
        kept = {} if self.all_open or self.selection is not None else dict(self.backbone.named_buffers())
        copies = {name: buffer.clone() for name, buffer in kept.items()}
        self.gate_context.gated = self.gate_context.gated and not self.all_open
        output = functional_call(self.backbone, copies, (x,)) if copies else self.backbone(x)
        return output, x.new_ones(len(x), self.gate_count)

    def decide(self, x: Tensor) -> Tensor:
        """Return the gates of the gater for these images, (N, gate_count); not for local gating."""
        logits = self.gater(x)
        if self.selection is not None:
            self._note_routes(logits)
            return self.selection.choose(logits, self.training)[1]
        gates = ESTIMATORS[self.estimator](logits, self.training)
        self._note(gates, logits)
        return gates

    @torch.no_grad()
    def route_of(self, x: Tensor) -> Tensor:
        """Return the route of each image in eval mode: (N, C, *S) -> (N,), int64.

        Raises:
            ValueError: the network has no routes.
        """
        selection = self._selection("route_of")
        with evaluation_mode(self.gater):
            return selection.choose(self.gater(x), False)[0]

    def of_route(self, route: int) -> "GaterNet":
        """Return a copy with one route, which every image takes; its backbone has the batch norms of this route.

        Raises:
            ValueError: the network has no routes, or fewer.
        """
        selection = self._selection("of_route")
        _validation.check_integer_at_least(0, route=route)
        _validation.check_number_between(0, len(selection.patterns) - 1, route=route)
        single: Any = full_copy(self)
        single.gater, single.gater_macs, single._due = OneRoute(), 0, None
        single.selection.keep(route)
        single.selection.norms.write(0, single.backbone)
        return single

    def draw_routes(self, loader: Loader | Tensor) -> None:
        """Compute the routes from the backbone's weights and images, and give all routes the backbone's norms.

        The images are divided into K clusters of equal size by what the dense network computes. A route opens the
        filters whose gates change the outputs most, to first order, for the images of one cluster.

        Args:
            loader: batches of images (N, C, *S), or tuples or dicts with images; a few thousand images are enough.

        Raises:
            ValueError: the network has no routes, or the loader has fewer images than there are routes.
        """
        selection = self._selection("draw_routes")
        device = next(self.parameters()).device
        batches = batches_of(loader, "draw_routes")
        with seeded(0):
            found = [self._features_and_importance(images.to(device)) for images, _ in batches]
        if sum(len(features) for features, _ in found) < len(selection.patterns):
            raise errors.InvalidValueError(
                f"draw_routes needs at least {len(selection.patterns)} images, one for each route. Give more images."
            )
        features, importance = (torch.cat(parts) for parts in zip(*found, strict=True))
        assigned = clusters(features, len(selection.patterns))
        selection.open_most_important(self.sites, importance_by_cluster(importance, assigned, len(selection.patterns)))
        self.norms_follow_backbone()

    def norms_follow_backbone(self) -> None:
        """Give the norms of all routes the parameters and statistics of the backbone's own norms, if there are routes.

        Call it after new weights were put into `backbone`.
        """
        if self.selection is not None:
            self.selection.norms.follow(self.backbone)

    def _features_and_importance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the dense network, (N, F), and how much each gate changes them, (N, gates)."""
        gates = x.new_ones(len(x), self.gate_count).requires_grad_()
        self.gate_context.set_gates(gates)
        try:
            with evaluation_mode(self.backbone), torch.enable_grad():
                output = main_output(self.backbone(x))
                return output.detach().flatten(1), sensitivity(output, gates)
        finally:
            self.gate_context.current.clear()

    def _selection(self, method: str) -> Routes:
        if self.selection is None:
            raise errors.InvalidValueError(f"{method} needs routes; build the network with GaterNet(..., routes=K).")
        return self.selection

    def _run_local(self, x: Tensor) -> tuple[Output, Tensor]:
        logits: dict[int, Tensor] = {}
        gates: dict[int, Tensor] = {}

        def decide(number: int, features: Tensor) -> Tensor:
            if number not in gates:  # a layer that is called again keeps its gates
                logits[number] = self.gater[number](features)  # type: ignore[index]
                gates[number] = ESTIMATORS[self.estimator](logits[number], self.training)
            return self.sites[number].spread(gates[number])

        self.gate_context.current.decide = decide
        output = self.backbone(x)
        order = range(len(self.sites))
        decided = torch.cat([gates[number] for number in order], 1)
        self._note(decided, torch.cat([logits[number] for number in order], 1))
        return output, decided

    def check_gates(self, x: Tensor, gates: Tensor) -> None:
        """Raise ValueError unless `gates` has the shape (len(x), gate_count)."""
        check_gates(gates, images=len(x), count=self.gate_count)

    def _note(self, gates: Tensor, logits: Tensor) -> None:
        """In training mode, store the loss term of these gates for `extra_loss`."""
        if self.training:
            logits = logits.detach()
            due = self.price(gates, ESTIMATORS[self.estimator](logits, False))
            self._due = self._due if recomputing() else due
            self.saturated = (logits.abs() > _SATURATED).float().mean()

    def _note_routes(self, logits: Tensor) -> None:
        """In training mode, store the balance term of the routes for `extra_loss`."""
        if self.training and self.selection is not None and logits.shape[1] > 1:
            due = self.selection.balance_loss(logits)
            self._due = self._due if recomputing() else due

    def companion_outputs(self) -> "CompanionOutputs | None":
        """Return the outputs of the companions in the last training forward, and clear them; None without any."""
        found, self._companion_outputs = self._companion_outputs, None
        return found

    def decide_only(self, sites: tuple[Site, ...], chosen: list[int], always_open: list[int]) -> None:
        """Replace the sites, and keep only the gates that still depend on the image; used by `compact`.

        Args:
            sites: the remaining sites, with new numbers of filters and gates.
            chosen: indices of the present gates to keep.
            always_open: indices of the present gates that are open for every image; all others are always closed.
        """
        if self.is_local:
            old = {site.name: (number, site) for number, site in enumerate(self.sites)}
            deciders: list[nn.Module] = []
            for site in sites:
                number, old_site = old[site.name]
                own = range(old_site.first, old_site.first + old_site.gates)
                kept = [gate - old_site.first for gate in chosen if gate in own]
                deciders.append(keep_logits(self.gater[number], kept))  # type: ignore[index]
            self.gater = nn.ModuleList(deciders)
        else:
            self.gater = keep_logits(self.gater, chosen)
        detach(self.backbone)
        self.gate_context = GateContext(sites)
        attach(self.backbone, self.gate_context, decide=self.is_local)
        self.price = self.price.of_some(chosen, always_open)

    def count_work(self) -> None:
        """Recompute `dense_macs` and `gater_macs`."""
        anchor = next(self.backbone.parameters())
        example = torch.zeros(2, *self.input_shape, dtype=anchor.dtype, device=anchor.device)
        self.dense_macs = macs_per_sample(self.backbone, example)
        self.gater_macs = _macs_of_linears(self.gater) if self.is_local else macs_per_sample(self.gater, example)

    def extra_loss(self) -> Tensor | None:
        """Return the loss term of the last training forward and clear it; None if there is none."""
        due, self._due = self._due, None
        return due

    def schedule(self, steps: int) -> None:
        """Reset the controller of the budget for a training of `steps` steps."""
        if isinstance(self.price, Budget):
            self.price.schedule(steps)

    def open_fraction(self, gates: Tensor) -> Tensor:
        """Return sum(g m) / sum(m) with the multiply-adds m of each gate's filters: (N, gate_count) -> (N,).

        >>> net = GaterNet(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), image_size=(8, 8))
        >>> net.open_fraction(torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]]))
        tensor([0.2500])
        """
        own = own_macs(self.sites).to(gates)
        return open_share(gates, own / own.sum())

    def executed_macs(self, gates: Tensor) -> Tensor:
        """Return the multiply-adds of each image with these gates, including the gater: (N, gate_count) -> (N,).

        A convolution counts with its open filters and open inputs; a layer without gates counts in full.
        """
        _check_are_numbers(gates)
        if gates.dim() != 2 or gates.shape[1] != self.gate_count:
            raise errors.InvalidValueError(
                f"gates must have shape (N, {self.gate_count}), a row for each image, got {tuple(gates.shape)}."
            )
        return self.dense_macs + self.gater_macs - saved_macs(self.sites, gates)

    def __getstate__(self) -> dict[str, Any]:
        graph = {"_due": None, "_companion_outputs": None}  # parts of an autograd graph, which cannot be copied
        return {**super().__getstate__(), **graph}  # without the compiled call, which would run this network

    def extra_repr(self) -> str:
        return f"gates={self.gate_count}, sites={len(self.sites)}, estimator={self.estimator!r}"


def _check_head_norm(head_norm: object) -> None:
    if not (isinstance(head_norm, bool) or head_norm in HEAD_NORMS):
        raise errors.InvalidValueError(
            f"head_norm must be auto, batch, layer, true or false, got {_validation.safe_repr(head_norm)}."
        )


def _check_routes(routes: object, gater: object, sparsity: float) -> None:
    _validation.check_integer_at_least(1, routes=routes)  # type: ignore[arg-type]
    if gater == "local":
        raise errors.InvalidValueError(
            "routes are chosen for the whole network, and gater='local' decides layer by layer. Choose gater='light'."
        )
    if sparsity:
        raise errors.InvalidValueError("routes have a fixed cost, so they have no sparsity term. Set budget instead.")


def _check_are_numbers(gates: object) -> None:
    if not isinstance(gates, Tensor) or gates.is_complex():
        raise errors.InvalidTypeError(
            f"gates must be a tensor of numbers from 0 to 1, got {_validation.safe_repr(gates)}."
        )


def check_gates(gates: Tensor, *, images: int, count: int) -> None:
    """Raise ValueError unless `gates` has the shape (images, count)."""
    _check_are_numbers(gates)
    if tuple(gates.shape) != (images, count):
        raise errors.InvalidValueError(
            f"gates must have shape ({images}, {count}), a row for each image, got {tuple(gates.shape)}."
        )


def _example(backbone: nn.Module, image_size: tuple[int, ...] | None) -> Tensor:
    """Return two images of zeros of the backbone's input size."""
    guesses = example_inputs(backbone)
    if not guesses:
        raise errors.InvalidValueError(f"{type(backbone).__name__} has no convolution; there is nothing to gate.")
    guess = guesses[0]
    if image_size is None and not known_input_size(backbone):
        size = "x".join(map(str, guess.shape[2:]))
        warnings.warn(
            f"{type(backbone).__name__} does not define its image size; work is counted for {size}. Set image_size=.",
            stacklevel=3,
        )
    return guess if image_size is None else guess.new_zeros(2, guess.shape[1], *image_size)


def _macs_of_linears(module: nn.Module) -> int:
    return sum(layer.in_features * layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))


def _local_deciders(backbone: nn.Module, sites: tuple[Site, ...], head: dict[str, Any]) -> nn.ModuleList:
    """Return one decider for each site."""
    deciders: list[nn.Module] = []
    for site in sites:
        layer: Any = backbone.get_submodule(site.name)
        channels = getattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", None)
        if channels is None:
            raise errors.InvalidValueError(
                f"gater='local' decides on the input of a convolution or linear layer, and {site.name!r} is a "
                f"{type(layer).__name__}. Leave it out with sites=, or choose another gater."
            )
        axis = site.axes - 1 if isinstance(layer, nn.Linear) else 1
        anchor = next(layer.parameters())
        deciders.append(LocalDecider(channels, axis, site.gates, **head).to(anchor))
    return nn.ModuleList(deciders)
