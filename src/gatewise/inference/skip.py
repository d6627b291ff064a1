"""Run a GaterNet at inference with the open filters of each image only."""

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import has_memory
from gatewise.core.merging import merged
from gatewise.core.types import Output
from gatewise.gaternet import GaterNet, check_no_routes
from gatewise.gates.functional import hard_sigmoid_gate
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.active_filters import ActiveFilters
from gatewise.inference.costs import Costs, default_cache
from gatewise.inference.meter import local_pays, measured_plan
from gatewise.inference.plan import Plan
from gatewise.inference.skippable import kept_whole, skippable
from gatewise.inference.sub_batches import SubBatch, Work, bucketed, one_by_pattern
from gatewise.inference.surgery import fold_norms, open_layers

MODES = ("mask", "skip", "bucket", "auto")
_NO_STATE = (
    "a skipping net has no state dict: its weights are folded and sliced copies. Save and load the GaterNet that it "
    "was made from, or use torch.save on the skipping net itself."
)
_NOT_TRACED = (
    "a skipping net reads the gates of each batch in Python, which torch.export, torch.fx, torch.func and torch.jit "
    "cannot trace. Use the GaterNet that it was made from; to export a run: gatewise export RUN --form skip"
)


class SkippingNet(nn.Module):
    """A GaterNet for inference: (N, C, H, W) -> output of `net.eval()`, without computing closed filters.

    Use `skip_closed_filters` to make one; it copies the weights of the net. Not thread-safe.

    Attributes:
        mode: "mask", "skip", "bucket" or "auto".
        skipped: sites that still compute all filters and multiply, with the reasons.
        last_parts: the sub-batches of the last batch, with their images and the sites computed with open filters only.
    """

    def __init__(self, net: GaterNet, mode: str, memory: int, cache: Path) -> None:
        super().__init__()
        self.mode, self.cache = mode, cache
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._locally: dict[tuple[int, ...], bool] = {}
        self.active_filters = ActiveFilters(memory)
        dependencies, folds = skippable(net, tried=mode != "mask")
        self.skipped = kept_whole(net, dependencies)
        self.net = self.plain = full_copy(net).eval().requires_grad_(False)
        if mode == "auto":
            self.net = full_copy(self.plain)
            fold_norms(self.plain.backbone, folds)
        if mode != "mask":
            open_layers(self.net.backbone, net.sites, dependencies, folds, self.active_filters)
        self.work = Work.of(net, dependencies)
        self.last_parts: list[SubBatch] = []
        self._where = self._anchor()

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Output:
        return self.forward_with_gates(x, gates)[0]

    def __prepare_scriptable__(self) -> nn.Module:
        raise errors.InvalidValueError(_NOT_TRACED)

    @torch.no_grad()
    def forward_with_gates(self, x: Tensor, gates: Tensor | None = None) -> tuple[Output, Tensor]:
        """Return the backbone's output and the gates, (N, gate_count); `gates` replace those of the gater."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            from gatewise.inference.uncompiled import run_uncompiled  # slow import: loads torch._dynamo

            return run_uncompiled(self, x, gates)
        _check_not_traced(x)
        if self.training:
            raise errors.InvalidValueError(
                "a skipping net is for inference only. Train the GaterNet that it was made from."
            )
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
        """Return the plan for batches like `x` or smaller; measure the layers if their costs are not known."""
        kind = (*x.shape[1:], torch.get_num_threads())
        plan = self._plans.get(kind)
        if plan is None or max(plan.measured) < len(x):
            costs = Costs(self.cache, x.device, x.dtype)
            plan = self._plans[kind] = measured_plan(
                self.work, (self.plain, self.net), self.active_filters, _channels_last(x), costs
            )
        return plan

    def _local_pays(self, x: Tensor) -> bool:
        """Return whether skipping is faster with local gating; "auto" measures it once for each batch shape."""
        if self.mode != "auto":
            return True
        kind = (*x.shape, torch.get_num_threads())
        if kind not in self._locally:
            ways = [lambda: self._run_local(x), lambda: self.plain.forward_with_gates(x)]
            self._locally[kind] = local_pays(x, ways, self.net, Costs(self.cache, x.device, x.dtype))
        return self._locally[kind]

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError: the weights are sliced copies. Save the GaterNet instead."""
        raise errors.InvalidValueError(_NO_STATE)

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError: load into the GaterNet, and make a new skipping net from it."""
        raise errors.InvalidValueError(_NO_STATE)

    def _partition(self, gates: Tensor, x: Tensor) -> list[SubBatch]:
        patterns = gates.detach().cpu().numpy() > 0
        if self.mode == "skip":
            return one_by_pattern(patterns, self.work)
        if self.mode == "bucket":
            return bucketed(patterns, self.work)
        return self.plan(x).parts(patterns)

    def _run(self, x: Tensor, gates: Tensor, part: SubBatch) -> Any:
        """Run images with similar patterns: filters that only some of them open are computed for all and multiplied."""
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
        """Activate the filters of a site that some image opens, and return the factors of its map, or None.

        Args:
            number: index of the site.
            gates: gates of all sites, (N, gate_count).
            union: which gates of this site are open for some image, (gates,).
            narrow: whether to compute the open filters only.
            alike: whether all images have the same gates.
        """
        site = self.net.sites[number]
        if narrow:
            return self.active_filters.open(number, site, site.own(gates), union, alike=alike)
        everything = bool(union.all()) and site.driven_by is None
        return None if everything and alike else site.spread(site.own(gates))

    def _run_local(self, x: Tensor) -> tuple[Output, Tensor]:
        """Run images with local gating: one by one in mode "skip", otherwise all together."""
        x = _channels_last(x)
        together = self.mode != "skip"
        parts: list[Tensor] = [x] if together else list(x.split(1))
        runs = [self._run_deciding(part) for part in parts]
        images = np.arange(len(x))
        outputs, gates = zip(*runs, strict=True)
        return merged(list(outputs), [images] if together else list(images[:, None])), torch.cat(gates)

    def _run_deciding(self, x: Tensor) -> tuple[Output, Tensor]:
        """Run images with local gating: each site computes its gates when its input is available."""
        net, gate_context = self.net, self.net.gate_context
        gates = x.new_zeros(len(x), net.gate_count)

        def decide(number: int, features: Tensor) -> Tensor | None:
            decider = cast(Any, net.gater)[number]
            pooled = decider.pool(features)
            active = self.active_filters.chosen.get(self.work.reads.get(net.sites[number].name, -1))
            if active is not None:
                padded = pooled.new_zeros(len(pooled), decider.head.fc1.in_features)
                pooled = padded.index_copy_(1, active.channels, pooled)
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
        """Clear all caches if the network has been moved to another device or dtype."""
        now = self._anchor()
        if now != self._where:
            warnings.warn(
                f"the network was planned for {self._where[0]}, {self._where[1]} and is now on {now[0]}, {now[1]}; "
                f"its weights are sliced and its layers measured again.",
                stacklevel=3,
            )
            self.active_filters.forget()
            self._plans.clear()
            self._locally.clear()
            self._where = now

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, sites={len(self.net.sites)}, skipped={len(self.skipped)}"


def skip_closed_filters(
    net: GaterNet,
    mode: str = "auto",
    *,
    memory: int = 2**28,
    cache: str | Path | None = None,
) -> SkippingNet:
    """Return a copy of `net` for inference that does not compute closed filters; same outputs as `net.eval()`.

    Args:
        net: a GaterNet; it is not changed. Its weights are copied, with batch norms folded into convolutions.
        mode: "mask" computes all filters and multiplies, as the net itself does. "skip" splits a batch by gate pattern
            and runs each part with its open filters only. "bucket" runs images with the same or a similar pattern
            together: filters that only some of them open are computed for all and multiplied. "auto" measures the
            layers on this machine, once for each image size and each new largest batch, and chooses for each batch.
        memory: bytes of the cache of sliced weights.
        cache: file for the measurements of "auto"; None is $GATEWISE_CACHE, or costs.json in the user's cache folder.

    Raises:
        TypeError: if `net` is not a GaterNet.
        ValueError: if `mode` is unknown.

    >>> _ = torch.manual_seed(0)
    >>> net = GaterNet(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), image_size=(8, 8)).eval()
    >>> x = torch.randn(5, 3, 8, 8)
    >>> fast = skip_closed_filters(net, mode="skip")
    >>> bool(((fast(x) - net(x)).abs() < 1e-5).all())
    True
    """
    if not isinstance(net, GaterNet):
        raise errors.InvalidTypeError(
            f"skip_closed_filters expects a GaterNet, got {type(net).__name__}. If compaction "
            f"has removed all gates, use the network directly."
        )
    check_no_routes(net, "skip_closed_filters")
    _validation.check_one_of("mode", mode, MODES)
    _validation.check_integer_at_least(0, memory=memory)
    return SkippingNet(net, mode, memory, default_cache() if cache is None else Path(cache)).eval()


def _check_not_traced(x: Tensor) -> None:
    """Raise ValueError if `x` is traced: the control flow depends on the data of each batch."""
    is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    wrapped = torch.compiler.is_exporting() or is_tracing or isinstance(x, torch.fx.Proxy)
    if wrapped or not has_memory(x):
        raise errors.InvalidValueError(_NOT_TRACED)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
