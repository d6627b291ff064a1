"""GaterNet: a gater network selects, for each image, which filters of a backbone are used."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.core.types import Output
from gatewise.gaternet.budget import Budget, Sparsity, open_share
from gatewise.gaternet.gater import LocalDecider, keep_logits, make_gater
from gatewise.gaternet.hooks import GateContext, attach, detach, keep_attached, recomputing
from gatewise.gaternet.sites import Chosen, Site, find_sites
from gatewise.gaternet.work import own_macs, saved_macs
from gatewise.gates.functional import at_least_float32, gumbel_sigmoid, hard_sigmoid_gate, semhash
from gatewise.graph import Graph, evaluation_mode
from gatewise.graph.measure import macs_per_sample
from gatewise.graph.trace import example_inputs, known_input_size

ESTIMATORS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "semhash": semhash,
    "gumbel": gumbel_sigmoid,
    "straight_through": hard_sigmoid_gate,
}
WEIGHTINGS = ("equal", "macs")
_SATURATED = 2.398 + 2  # SemHash has no gradient above 2.398; unit noise of 2 standard deviations still reaches it


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
        head_norm: whether that layer has a BatchNorm, as in the paper; the released code has none. Without it few
            gates of a light gater depend on the image; with it trainings of a few hundred steps miss the budget.
        group_size: number of neighbouring filters with a common gate.
        estimator: "semhash", "gumbel" or "straight_through"; see `gatewise.functional`.
        gate_bias: initial bias of the logits; at 2 nearly all gates are open. None is 2 with a budget and 0 otherwise.
        budget: target fraction of the gated filters' MACs, in (0, 1]. A controller adjusts the price of open gates.
            The target decreases linearly from 1 over the first half of the training. Set its number of steps with
            `schedule(steps)`; otherwise the decrease takes 1,000 steps. None uses `sparsity` instead.
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
        head_norm: bool = False,
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
        _validation.check_bool(head_norm=head_norm)
        gate_bias = (0.0 if budget is None else 2.0) if gate_bias is None else gate_bias
        _validation.check_number_between(-100, 100, gate_bias=gate_bias)
        _validation.check_number_between(0, 1e6, sparsity=sparsity)
        if budget is not None:
            _validation.check_number_between(1e-6, 1, budget=budget)
            if sparsity:
                raise errors.InvalidValueError("give budget or sparsity, not both: both set the price of open gates.")
        self.estimator = _validation.check_one_of("estimator", estimator, ESTIMATORS)
        _validation.check_one_of("weighting", weighting, WEIGHTINGS)
        example = _example(backbone, image_size) if example is None else example
        found, self.skipped = find_sites(Graph(backbone, example), sites, group_size)
        self.backbone = backbone
        self.input_shape = tuple(example.shape[1:])
        self.dense_macs = macs_per_sample(backbone, example)
        head: dict[str, Any] = {"bottleneck": bottleneck, "head_norm": head_norm, "gate_bias": gate_bias}
        self.gate_context = GateContext(found)
        local = isinstance(gater, str) and gater == "local"
        attach(backbone, self.gate_context, decide=local)
        if local:
            self.gater = _local_deciders(backbone, self.sites, head)
            self.gater_macs = _macs_of_linears(self.gater)
        else:
            self.gater = make_gater(gater, self.gate_count, self.input_shape, self.dense_macs, **head)
            self.gater_macs = self._check_gater(example)
        share = own_macs(self.sites) if budget is not None or weighting == "macs" else torch.ones(self.gate_count)
        share = (share / share.sum()).to(example.device, at_least_float32(example.dtype))
        self.price: Budget | Sparsity = Sparsity(share, sparsity) if budget is None else Budget(share, budget)
        self._due: Tensor | None = None
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
        expected = (len(example), self.gate_count)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise errors.InvalidValueError(
                f"the gater must return logits of shape (N, {self.gate_count}), one for each gate; got {given} for "
                f"{len(example)} images."
            )
        return macs_per_sample(gater, example)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Output:
        return self.forward_with_gates(x, gates)[0]

    def forward_with_gates(self, x: Tensor, gates: Tensor | None = None) -> tuple[Output, Tensor]:
        """Return the backbone's output and the gates, (N, gate_count); `gates` replace those of the gater."""
        _validation.check_not_symbolic("GaterNet", x)
        keep_attached(self.backbone, self.gate_context)
        if torch.is_grad_enabled():
            self.gate_context.gated = True
        try:
            if gates is None and self.is_local:
                return self._run_local(x)
            if gates is None:
                gates = self.decide(x)
            else:
                self.check_gates(x, gates)
            self.gate_context.factors = {n: site.spread(site.own(gates)) for n, site in enumerate(self.sites)}
            return self.backbone(x), gates
        finally:
            self.gate_context.factors, self.gate_context.decide = {}, None

    def decide(self, x: Tensor) -> Tensor:
        """Return the gates of the gater for these images, (N, gate_count); not for local gating."""
        logits = self.gater(x)
        gates = ESTIMATORS[self.estimator](logits, self.training)
        self._note(gates, logits)
        return gates

    def _run_local(self, x: Tensor) -> tuple[Output, Tensor]:
        logits: dict[int, Tensor] = {}
        gates: dict[int, Tensor] = {}

        def decide(number: int, features: Tensor) -> Tensor:
            if number not in gates:  # a layer that is called again keeps its gates
                logits[number] = self.gater[number](features)  # type: ignore[index]
                gates[number] = ESTIMATORS[self.estimator](logits[number], self.training)
            return self.sites[number].spread(gates[number])

        self.gate_context.decide = decide
        output = self.backbone(x)
        order = range(len(self.sites))
        decided = torch.cat([gates[number] for number in order], 1)
        self._note(decided, torch.cat([logits[number] for number in order], 1))
        return output, decided

    def check_gates(self, x: Tensor, gates: Tensor) -> None:
        """Raise ValueError unless `gates` has the shape (len(x), gate_count)."""
        _check_gates(gates)
        if tuple(gates.shape) != (len(x), self.gate_count):
            raise errors.InvalidValueError(
                f"gates must have shape ({len(x)}, {self.gate_count}), a row for each image, got {tuple(gates.shape)}."
            )

    def _note(self, gates: Tensor, logits: Tensor) -> None:
        """In training mode, store the loss term of these gates for `extra_loss`."""
        if self.training:
            logits = logits.detach()
            due = self.price(gates, ESTIMATORS[self.estimator](logits, False))
            self._due = self._due if recomputing() else due
            self.saturated = (logits.abs() > _SATURATED).float().mean()

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
        _check_gates(gates)
        if gates.dim() != 2 or gates.shape[1] != self.gate_count:
            raise errors.InvalidValueError(
                f"gates must have shape (N, {self.gate_count}), a row for each image, got {tuple(gates.shape)}."
            )
        return self.dense_macs + self.gater_macs - saved_macs(self.sites, gates)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_due": None}  # part of an autograd graph, which cannot be copied

    def extra_repr(self) -> str:
        return f"gates={self.gate_count}, sites={len(self.sites)}, estimator={self.estimator!r}"


def _check_gates(gates: object) -> None:
    if not isinstance(gates, Tensor) or gates.is_complex():
        raise errors.InvalidTypeError(
            f"gates must be a tensor of numbers from 0 to 1, got {_validation.safe_repr(gates)}."
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
