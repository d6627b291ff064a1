"""Run a GaterNet so that each image computes its open filters only."""

import copy
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise._types import Output
from gatewise.execution.active_filters import ActiveFilters
from gatewise.execution.costs import Costs, default_cache
from gatewise.execution.merging import merged
from gatewise.execution.meter import local_pays, measured_plan
from gatewise.execution.plan import Plan
from gatewise.execution.skippable import kept_whole, skippable
from gatewise.execution.sub_batches import SubBatch, Work, bucketed, one_by_pattern
from gatewise.execution.surgery import fold_norms, replace_with_dynamic_layers
from gatewise.functional import hard_sigmoid_gate
from gatewise.gaternet import GaterNet

MODES = ("mask", "skip", "bucket", "auto")
_NO_STATE = (
    "a skipping net has no state dict: its weights are copies, folded and picked. Save and load the GaterNet that it "
    "was made from; torch.save takes the whole skipping net."
)


class SkippingNet(nn.Module):
    """A GaterNet at inference: (N, C, H, W) -> what the net gives in eval mode, without computing closed filters.

    Made by `skip_closed_filters`, from a copy of the net's weights as they are then. Not for several threads at once.

    Attributes:
        mode: "mask", "skip", "bucket" or "auto".
        skipped: sites whose filters are computed and multiplied as before, each with the reason.
        last_parts: how the last batch was run: for each part its images and the sites where it was narrow.
    """

    def __init__(self, net: GaterNet, mode: str, memory: int, cache: Path) -> None:
        super().__init__()
        self.mode, self.cache = mode, cache
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._locally: dict[tuple[int, ...], bool] = {}
        self.active_filters = ActiveFilters(memory)
        dependencies, folds = skippable(net, tried=mode != "mask")
        self.skipped = kept_whole(net, dependencies)
        self.net = self.plain = copy.deepcopy(net).eval().requires_grad_(False)
        if mode == "auto":
            self.net = copy.deepcopy(self.plain)
            fold_norms(self.plain.backbone, folds)
        if mode != "mask":
            replace_with_dynamic_layers(self.net.backbone, net.sites, dependencies, folds, self.active_filters)
        self.work = Work.of(net, dependencies)
        self.last_parts: list[SubBatch] = []
        self._where = self._anchor()

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Output:
        return self.forward_with_gates(x, gates)[0]

    @torch.no_grad()
    def forward_with_gates(self, x: Tensor, gates: Tensor | None = None) -> tuple[Output, Tensor]:
        """Return the backbone's output and the gates, (N, gate_count); `gates` forces a pattern."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            from gatewise.execution.uncompiled import run_uncompiled  # loads torch's compiler

            return run_uncompiled(self, x, gates)
        _check_not_traced(x)
        if self.training:
            raise errors.InvalidValueError("a skipping net is for inference; train the GaterNet that it was made from.")
        if self.mode == "mask":
            return self.net.forward_with_gates(x, gates)
        self._follow_weights()
        if gates is None and self.net.is_local and len(x):
            return self._run_local(x) if self._local_pays(x) else self.plain.forward_with_gates(x)
        hard = True
        if gates is None:
            gates = self.net.decide(x)
        else:
            self.net.check_gates(x, gates)
            hard = bool(((gates == 0) | (gates == 1)).all())
        if not len(x) or not hard:
            return self.plain.forward_with_gates(x, gates)
        self.last_parts = self._partition(gates, x)
        if self.last_parts[0].plain:
            return self.plain.forward_with_gates(x, gates)
        x = _channels_last(x)
        if len(self.last_parts) == 1:
            return self._run(x, gates, self.last_parts[0]), gates
        outputs: list[Any] = []
        for part in self.last_parts:
            rows = torch.from_numpy(part.images).to(x.device)
            outputs.append(self._run(x[rows], gates[rows], part))
        return merged(outputs, [part.images for part in self.last_parts]), gates

    def plan(self, x: Tensor) -> Plan:
        """Return the measured costs for batches like `x`, smaller ones included; measured now if they are not known."""
        kind = (*x.shape[1:], torch.get_num_threads())
        plan = self._plans.get(kind)
        if plan is None or max(plan.measured) < len(x):
            costs = Costs(self.cache, x.device, x.dtype)
            plan = self._plans[kind] = measured_plan(
                self.work, (self.plain, self.net), self.active_filters, _channels_last(x), costs
            )
        return plan

    def _local_pays(self, x: Tensor) -> bool:
        """Whether to leave out what local gates close: in mode auto measured, once for each shape of batch."""
        if self.mode != "auto":
            return True
        kind = (*x.shape, torch.get_num_threads())
        if kind not in self._locally:
            ways = [lambda: self._run_local(x), lambda: self.plain.forward_with_gates(x)]
            self._locally[kind] = local_pays(x, ways, self.net, Costs(self.cache, x.device, x.dtype))
        return self._locally[kind]

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Refuse: weights lie here as they are picked, under no name. Save the GaterNet."""
        raise errors.InvalidValueError(_NO_STATE)

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        """Refuse: load into the GaterNet, and make a skipping net of that."""
        raise errors.InvalidValueError(_NO_STATE)

    def _partition(self, gates: Tensor, x: Tensor) -> list[SubBatch]:
        patterns = gates.detach().cpu().numpy() > 0
        if self.mode == "skip":
            return one_by_pattern(patterns, self.work)
        if self.mode == "bucket":
            return bucketed(patterns, self.work)
        return self.plan(x).parts(patterns)

    def _run(self, x: Tensor, gates: Tensor, part: SubBatch) -> Any:
        """Run images that share their open filters, or differ in a few: those are computed for all and multiplied."""
        factors: dict[int, Tensor | None] = {}
        for number, site in enumerate(self.net.sites):
            union = part.union[site.first : site.first + site.gates]
            factors[number] = self._open(number, gates, union, narrow=part.narrow[number], alike=part.alike)
        self.net.gate_context.factors = factors
        try:
            return self.net.backbone(x)
        finally:
            self.active_filters.close()
            self.net.gate_context.factors = {}

    def _open(self, number: int, gates: Tensor, union: np.ndarray, *, narrow: bool, alike: bool) -> Tensor | None:
        """Let layers run those filters of a site that some image opens; return what its map is multiplied by.

        `gates` are those of all sites, `union` the gates of this one that some image opens.
        """
        site = self.net.sites[number]
        if narrow:
            return self.active_filters.open(number, site, site.own(gates), union, alike=alike)
        everything = bool(union.all()) and site.driven_by is None
        return None if everything and alike else site.spread(site.own(gates))

    def _run_local(self, x: Tensor) -> tuple[Output, Tensor]:
        """Run each image alone, or where filters of several are picked at once all together."""
        x = _channels_last(x)
        whole = self.mode != "skip"
        parts: list[Tensor] = [x] if whole else list(x.split(1))
        runs = [self._run_deciding(part) for part in parts]
        images = np.arange(len(x))
        outputs, gates = zip(*runs, strict=True)
        return merged(list(outputs), [images] if whole else list(images[:, None])), torch.cat(gates)

    def _run_deciding(self, x: Tensor) -> tuple[Output, Tensor]:
        """Run images with local gating: each site decides when its input is there."""
        net, gate_context = self.net, self.net.gate_context
        gates = x.new_zeros(len(x), net.gate_count)

        def decide(number: int, features: Tensor) -> Tensor | None:
            decider = cast(Any, net.gater)[number]
            pooled = decider.pool(features)
            source = self.active_filters.chosen.get(self.work.reads.get(net.sites[number].name, -1))
            if source is not None:
                whole = pooled.new_zeros(len(pooled), decider.head.fc1.in_features)
                pooled = whole.index_copy_(1, source.channels, pooled)
            own = hard_sigmoid_gate(decider.head(pooled), False)
            gates[:, net.sites[number].first :][:, : own.shape[1]] = own
            union = own.bool().any(0).cpu().numpy()
            return self._open(number, gates, union, narrow=bool(self.work.narrows[number]), alike=len(x) == 1)

        gate_context.decide = decide
        try:
            output = net.backbone(x)
        finally:
            self.active_filters.close()
            gate_context.factors, gate_context.decide = {}, None
        return output, gates

    def _anchor(self) -> tuple[torch.device, torch.dtype]:
        anchor = next((b for b in self.net.backbone.buffers() if b.is_floating_point()), None)
        anchor = next(self.net.parameters()) if anchor is None else anchor
        return anchor.device, anchor.dtype

    def _follow_weights(self) -> None:
        """Pick weights anew if the network has been moved to another device or type."""
        now = self._anchor()
        if now != self._where:
            warnings.warn(
                f"the network was planned for {self._where[0]}, {self._where[1]} and is now on {now[0]}, {now[1]}; "
                f"weights are picked, and layers measured, anew.",
                stacklevel=3,
            )
            self.active_filters.forget()
            self._plans.clear()
            self._locally.clear()
            self._where = now

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, sites={len(self.net.sites)}, kept whole={len(self.skipped)}"


def skip_closed_filters(
    net: GaterNet,
    mode: str = "auto",
    *,
    memory: int = 2**28,
    cache: str | Path | None = None,
) -> SkippingNet:
    """Return `net` for inference, where closed filters are not computed; same logits as `net.eval()`.

    Args:
        net: a GaterNet, which is only read: its weights are copied, and batch norms folded into convolutions.
        mode: "mask" computes all filters and multiplies, as the net itself does. "skip" runs each pattern of a batch
            for itself, with its open filters only. "bucket" runs images with the same or nearly the same pattern
            together: a filter that one of them needs is computed for all of them, and multiplied. "auto" measures the
            layers on this machine, once for each size of image and largest batch, and chooses for each batch.
        memory: bytes for weights picked for patterns seen before.
        cache: file for what "auto" measures; None takes $GATEWISE_CACHE, or costs.json in the user's cache folder.

    Refused: what is no GaterNet, with TypeError; an unknown mode, with ValueError.

    >>> _ = torch.manual_seed(0)
    >>> net = GaterNet(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), image_size=(8, 8)).eval()
    >>> x = torch.randn(5, 3, 8, 8)
    >>> fast = skip_closed_filters(net, mode="skip")
    >>> bool(((fast(x) - net(x)).abs() < 1e-5).all())
    True
    """
    if not isinstance(net, GaterNet):
        raise errors.InvalidTypeError(
            f"skip_closed_filters expects a GaterNet, got {type(net).__name__}. A compacted net without decided gates "
            f"is fast as it is."
        )
    _validation.check_one_of("mode", mode, MODES)
    _validation.check_integer_at_least(0, memory=memory)
    return SkippingNet(net, mode, memory, default_cache() if cache is None else Path(cache)).eval()


def _check_not_traced(x: Tensor) -> None:
    """Refuse to be written down as one graph or function: what runs is decided in Python, batch by batch."""
    core: Any = torch._C
    wrapped = torch.compiler.is_exporting() or isinstance(x, torch.fx.Proxy)
    if wrapped or core._functorch.is_functorch_wrapped_tensor(x):
        raise errors.InvalidValueError(
            "a skipping net looks at the gates of each batch in Python, which torch.export, torch.fx and torch.func "
            "cannot record. Give them the GaterNet that it was made from; a run is exported by: gatewise export RUN "
            "--form skip"
        )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
