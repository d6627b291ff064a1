"""Run a GaterNet at inference with the open filters of each image only."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import is_recorded, is_replica
from gatewise.core.merging import merged
from gatewise.core.turns import Turns
from gatewise.core.types import Output
from gatewise.gaternet import GaterNet
from gatewise.gates.functional import hard_sigmoid_gate
from gatewise.graph.measure import interleaved_latency
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.active_filters import ActiveFilters
from gatewise.inference.routed import NO_STATE, RoutedNet
from gatewise.inference.skippable import kept_whole, skippable
from gatewise.inference.sub_batches import SubBatch, Work, bucketed, one_by_pattern
from gatewise.inference.surgery import fold_norms, open_layers

MODES = ("mask", "skip", "bucket", "auto")
_PROMISING = 0.9  # another way must take less than this fraction of the time with all filters
_ROUNDS = 5
_NOT_TRACED = (
    "a skipping net reads the gates of each batch in Python, which torch.export, torch.fx, torch.func and torch.jit "
    "cannot trace. Use the GaterNet that it was made from; to export a run: gatewise export RUN --form skip"
)


class SkippingNet(nn.Module):
    """A GaterNet for inference: (N, C, H, W) -> output of `net.eval()`, without computing closed filters.

    Use `skip_closed_filters` to make one; it copies the weights of the net. Threads that call it take turns.

    Attributes:
        mode: "mask", "skip", "bucket" or "auto".
        skipped: sites that still compute all filters and multiply, with the reasons.
        last_parts: the sub-batches of the last batch; none if all filters were computed.
    """

    def __init__(self, net: GaterNet, mode: str, memory: int) -> None:
        super().__init__()
        self.mode = mode
        self._found: dict[tuple[int, ...], str] = {}  # the fastest way for each shape of a batch and number of threads
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
        self._turns = Turns()

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
        if is_recorded(x):
            raise errors.InvalidValueError(_NOT_TRACED)
        if self.training:
            raise errors.InvalidValueError(
                "a skipping net is for inference only. Train the GaterNet that it was made from."
            )
        if self.mode == "mask":
            return self.net.forward_with_gates(x, gates)
        if is_replica(self):
            raise errors.InvalidTypeError(
                "nn.DataParallel cannot run a skipping net, whose layers select weights on one device. Make one on "
                "each device with skip_closed_filters, or run the GaterNet in nn.DataParallel."
            )
        with self._turns:
            return self._skip(x, gates)

    def _skip(self, x: Tensor, gates: Tensor | None) -> tuple[Output, Tensor]:
        self._follow_weights()
        if gates is None and self.net.is_local:
            plain = self._way_of_local(x) == "mask"
            return self.plain.forward_with_gates(x) if plain else self._run_local(x)
        hard = True
        if gates is None:
            gates = self.net.decide(x)
        else:
            self.net.check_gates(x, gates)
            hard = bool(((gates == 0) | (gates == 1)).all())
        self.last_parts = []
        if not len(x) or not hard or (way := self._way(x, gates)) == "mask":
            return self.plain.forward_with_gates(x, gates)
        self.last_parts = self._partition(gates, way)
        return self._run_parts(x, gates, self.last_parts), gates

    def _fastest(self, x: Tensor, ways: Mapping[str, Callable[[], Any]]) -> str:
        """Return the fastest of the ways to run batches like `x`, timed at the first one; the first way is plain."""
        kind = (*x.shape, torch.get_num_threads())
        if kind not in self._found:
            with torch.inference_mode():
                times = interleaved_latency(ways, rounds=_ROUNDS, seconds_per_turn=0.005)
            plain = next(iter(times))
            best = min(times, key=lambda way: times[way].median_s)
            self._found[kind] = best if times[best].median_s < _PROMISING * times[plain].median_s else plain
        return self._found[kind]

    def _way(self, x: Tensor, gates: Tensor) -> str:
        """Return the mode in which a batch runs."""
        if self.mode != "auto":
            return self.mode

        def with_new_patterns(mode: str) -> Callable[[], Any]:
            def call() -> Any:
                self.active_filters.forget_patterns()
                return self._run_parts(x, gates, self._partition(gates, mode))

            return call

        parted = ("skip", "bucket")[: 1 if len(x) == 1 else 2]  # the same for one image
        ways = {"mask": lambda: self.plain.forward_with_gates(x, gates)}
        return self._fastest(x, ways | {mode: with_new_patterns(mode) for mode in parted})

    def _way_of_local(self, x: Tensor) -> str:
        if self.mode != "auto":
            return self.mode
        ways = {"mask": lambda: self.plain.forward_with_gates(x), "bucket": lambda: self._run_local(x)}
        return self._fastest(x, ways)

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError: the weights are sliced copies. Save the GaterNet instead."""
        raise errors.InvalidValueError(NO_STATE)

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError: load into the GaterNet, and make a new skipping net from it."""
        raise errors.InvalidValueError(NO_STATE)

    def _partition(self, gates: Tensor, mode: str) -> list[SubBatch]:
        patterns = gates.detach().cpu().numpy() > 0
        return one_by_pattern(patterns) if mode == "skip" else bucketed(patterns, self.work)

    def _run_parts(self, x: Tensor, gates: Tensor, parts: list[SubBatch]) -> Any:
        """Run the sub-batches one after another, and return their outputs in the order of the batch."""
        x = _channels_last(x)
        if len(parts) == 1:
            return self._run(x, gates, parts[0])
        outputs: list[Any] = []
        for part in parts:
            rows = torch.from_numpy(part.images).to(x.device)
            outputs.append(self._run(x[rows], gates[rows], part))
        return merged(outputs, [part.images for part in parts])

    def _run(self, x: Tensor, gates: Tensor, part: SubBatch) -> Any:
        """Run images with similar patterns: filters that only some of them open are computed for all and multiplied."""
        factors: dict[int, Tensor | None] = {}
        for number, site in enumerate(self.net.sites):
            union = part.union[site.first : site.first + site.gates]
            factors[number] = self._open(number, gates, union, narrow=bool(self.work.narrows[number]), alike=part.alike)
        self.net.gate_context.current.factors = factors
        try:
            return self.net.backbone(x)
        finally:
            self.active_filters.close()
            self.net.gate_context.current.clear()

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

        gate_context.current.decide = decide
        try:
            output = net.backbone(x)
        finally:
            self.active_filters.close()
            gate_context.current.clear()
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
                f"the network ran on {self._where[0]}, {self._where[1]} and is now on {now[0]}, {now[1]}; its weights "
                f"are sliced and its ways to run timed again.",
                stacklevel=3,
            )
            self.active_filters.forget()
            self._found.clear()
            self._where = now

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, sites={len(self.net.sites)}, skipped={len(self.skipped)}"


def skip_closed_filters(
    net: GaterNet,
    mode: str = "auto",
    *,
    memory: int = 2**28,
) -> "SkippingNet | RoutedNet":
    """Return a copy of `net` for inference that does not compute closed filters; same outputs as `net.eval()`.

    A net with routes runs route by route, each with its own dense network, in all modes but "mask".

    Args:
        net: a GaterNet; it is not changed. Its weights are copied, with batch norms folded into convolutions.
        mode: "mask" computes all filters and multiplies, as the net itself does. "skip" splits a batch by gate pattern
            and runs each part with its open filters only. "bucket" runs images with the same or a similar pattern
            together: filters that only some of them open are computed for all and multiplied. "auto" times all three
            at the first batch of each size, with patterns that are new, and keeps the fastest for batches of this size.
        memory: bytes of the cache of sliced weights.

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
    _validation.check_one_of("mode", mode, MODES)
    _validation.check_integer_at_least(0, memory=memory)
    if net.routes is not None and mode != "mask":
        return RoutedNet(net).folded()
    return SkippingNet(net, mode, memory).eval()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
