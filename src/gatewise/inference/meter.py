"""Measure the time of each layer of a network on this machine."""

# pyright: basic

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatewise.gaternet import GaterNet, Site
from gatewise.graph import change_map
from gatewise.graph.measure import interleaved_latency
from gatewise.inference.active_filters import ActiveFilters, FilterIndices
from gatewise.inference.costs import Costs
from gatewise.inference.plan import PROMISING, Plan, Seconds
from gatewise.inference.sub_batches import Work

_SHARES = (0.25, 0.5, 0.75)
_SPREAD = 0.05  # minimum range of the open work for a linear fit: most filters may be always open


def measured_plan(
    work: Work, nets: tuple[GaterNet, GaterNet], active_filters: ActiveFilters, x: Tensor, costs: Costs
) -> Plan:
    """Return a plan from the times of all layers for one image and for len(x) images.

    Args:
        work: the layers that gates change.
        nets: the original net, and its copy with dynamic layers.
        active_filters: the active filters of that copy.
        x: a batch of the largest size.
        costs: cache of measurements; missing ones are added and saved.
    """
    meter = _Meter(work, nets, active_filters, x, costs)
    measured = {images: meter.seconds(images) for images in sorted({1, len(x)})}
    plan = Plan(work, measured, meter.weights(), active_filters.memory)
    costs.save()
    return plan


def fingerprint(net: GaterNet) -> str:
    """Return a hash of the layers, weight shapes and sites, on which the time of a network depends."""
    layers = [(path, type(layer).__name__, layer.extra_repr()) for path, layer in net.backbone.named_modules()]
    tensors = itertools.chain(net.backbone.named_parameters(), net.backbone.named_buffers())
    shapes = [(name, tuple(tensor.shape)) for name, tensor in tensors]
    sites = [(site.name, site.filters, site.group_size) for site in net.sites]
    return hashlib.sha256(repr((layers, shapes, sites)).encode()).hexdigest()[:12]


class _Meter:
    """Measure the layers of a net; layers of equal configuration share a measurement."""

    def __init__(
        self, work: Work, nets: tuple[GaterNet, GaterNet], active_filters: ActiveFilters, x: Tensor, costs: Costs
    ) -> None:
        self.work, self.active_filters, self.x, self.costs = work, active_filters, x, costs
        self.plain, self.net = nets
        self.layers: dict[str, Any] = dict(self.net.backbone.named_modules())
        self.forms: dict[str, Any] = {path: self.layers[path].forward for path in work.paths}
        self.shapes = self._shapes()

    def seconds(self, images: int) -> Seconds:
        names = {path: self._name(path, images) for path in self.work.paths}
        rows = [self.costs.of(name, 5, lambda path=path: self._layer(path, images)) for path, name in names.items()]
        masks = [self._mask(number, site, images) for number, site in enumerate(self.net.sites)]
        whole, narrow, plain = self._whole(images)
        table = np.array(rows).reshape(-1, 5).T
        rest = max(0.0, whole - table[0].sum())
        fixed, slope = table[[1, 3]], table[[2, 4]]
        half = np.append(self._half(), 1.0)
        expected = (fixed[1] + slope[1] * half[self.work.inputs] * half[self.work.outputs]).sum()
        more = max(1.0, (narrow - rest) / expected) if len(rows) else 1.0  # overhead between the layers
        return Seconds(table[0], more * fixed, more * slope, np.array(masks), np.array(rest), np.array(plain))

    def weights(self) -> np.ndarray:
        """Return the weight size of each layer in bytes."""
        weights = [form.weight for form in self.forms.values()]
        return np.array([weight.numel() * weight.element_size() for weight in weights])

    def _half(self) -> np.ndarray:
        """Return the open fraction of each site with half of its gates open."""
        halves = [self._some(number, site, 0.5) for number, site in enumerate(self.net.sites)]
        shares = [len(half.channels) / site.filters for half, site in zip(halves, self.net.sites, strict=True)]
        return np.where(self.work.narrows, shares, 1.0)

    def _narrow(self, x: Tensor) -> Tensor:
        """Run with half of the gates of each site open, and multiply the narrow maps if there are several images."""
        gate_context, sites = self.net.gate_context, self.net.sites
        chosen = {n: self._some(n, sites[n], 0.5) for n in np.flatnonzero(self.work.narrows).tolist()}
        several = chosen.items() if len(x) > 1 else ()
        factors: dict[int, Tensor | None] = {n: x.new_ones(len(x), len(own.channels)) for n, own in several}
        self.active_filters.chosen, gate_context.factors = chosen, factors
        try:
            return self.net.backbone(x)
        finally:
            self.active_filters.chosen, gate_context.factors = {}, {}

    def _whole(self, images: int) -> list[float]:
        """Return the seconds of the network with all filters, with half of them, and of the original network."""
        x = self.x[:images]
        gates = x.new_ones(images, self.net.gate_count)
        plain = x.contiguous()
        name = f"{type(self.net.backbone).__name__} {fingerprint(self.net)}, {tuple(x.shape)}"
        ways = [lambda: self.net.backbone(x), lambda: self._narrow(x), lambda: self.plain(plain, gates)]
        return self.costs.of(name, 3, lambda: _times(ways))

    def _name(self, path: str, images: int) -> str:
        layer, (inputs, outputs) = self.layers[path], self._sites(path)
        runs = [site.group_size if site.driven_by is None else 1 for site in (inputs, outputs) if site is not None]
        sides = f"{'in' if inputs else ''}{'out' if outputs else ''}"
        kind = f"{type(layer).__name__}({layer.extra_repr()})"
        return f"{kind}, {sides} of {runs}, on {(images, *self.shapes[path])}"

    def _sites(self, path: str) -> tuple[Site | None, Site | None]:
        form, sites = self.forms[path], self.net.sites
        return tuple(None if number is None else sites[number] for number in (form.reads, form.writes))  # type: ignore[return-value]

    def _layer(self, path: str, images: int) -> list[float]:
        """Return the seconds of a layer: dense, then (fixed, slope) with a cold and with a warm weight cache."""
        form, shape = self.forms[path], (images, *self.shapes[path])
        work, calls = [], []
        for share in _SHARES:
            chosen, part = {}, 1.0
            for number in {form.reads, form.writes} - {None}:
                site = self.net.sites[number]
                chosen[number] = self._some(number, site, share)
                part *= len(chosen[number].channels) / site.filters
            work.append(part)
            calls += [self._call(form, shape, chosen, again) for again in (False, True)]
        try:
            dense, *narrow = _times([self._call(form, shape, {}, True), *calls])
        finally:
            self.active_filters.forget()
        found = [dense]
        for own in (narrow[::2], narrow[1::2]):
            slope, fixed = np.polyfit(work, own, 1) if np.ptp(work) > _SPREAD else (0.0, np.mean(own))
            found += [max(0.0, float(fixed)), max(0.0, float(slope))]
        return found

    def _some(self, number: int, site: Site, share: float) -> FilterIndices:
        generator = np.random.default_rng(0)
        pattern = np.zeros(site.gates, bool)
        pattern[generator.permutation(site.gates)[: max(1, round(share * site.gates))]] = True
        return self.active_filters.filters(number, site, pattern.tobytes(), self.x.device)

    def _call(
        self, form: Any, shape: tuple[int, ...], chosen: dict[int, FilterIndices], again: bool
    ) -> Callable[[], Tensor]:
        read = chosen.get(form.takes)
        sizes = list(shape)
        if read is not None:
            sizes[form.channel_axis] = len(read.channels)
        x = torch.randn(sizes, device=self.x.device, dtype=self.x.dtype)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and form.channel_axis == 1 else x

        def call() -> Tensor:
            self.active_filters.chosen = chosen if again else {n: dataclasses.replace(own) for n, own in chosen.items()}
            return form(x)

        return call

    def _mask(self, number: int, site: Site, images: int) -> float:
        shape = (images, *self.shapes[f"site {number}"])
        factors = torch.ones([size if axis in {0, site.channel_axis} else 1 for axis, size in enumerate(shape)])

        def measure() -> list[float]:
            x = torch.randn(shape, device=self.x.device, dtype=self.x.dtype)
            return _times([lambda: x * factors.to(x)])

        return self.costs.of(f"a product of {shape}, axis {site.channel_axis}", 1, measure)[0]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each layer's input and of each site's map, without the batch axis."""
        shapes: dict[str, tuple[int, ...]] = {}
        handles = []
        for path in self.work.paths:
            handles.append(change_map(self.layers[path], "input", _noting(shapes, path)))
        for number, site in enumerate(self.net.sites):
            handles.append(change_map(self.layers[site.layer], site.side, _noting(shapes, f"site {number}")))
        try:
            self.net.backbone(self.x[:1])
        finally:
            for handle in handles:
                handle.remove()
        return shapes


def _noting(shapes: dict[str, tuple[int, ...]], name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    def note(_: nn.Module, x: Tensor) -> Tensor:
        shapes[name] = tuple(x.shape[1:])
        return x

    return note


def local_pays(x: Tensor, ways: list[Callable[[], Any]], net: GaterNet, costs: Costs) -> bool:
    """Return whether skipping closed filters saves time with local gating; `ways` are [skipping, original]."""
    without, whole = costs.of(f"local gating {fingerprint(net)}, {tuple(x.shape)}", 2, lambda: _times(ways))
    costs.save()
    return without < PROMISING * whole


def _times(calls: list[Callable[[], Any]]) -> list[float]:
    with torch.inference_mode():
        found = interleaved_latency({str(n): call for n, call in enumerate(calls)}, rounds=5, seconds_per_turn=0.005)
    return [latency.median_s for latency in found.values()]
