"""Rebuild a GaterNet without its constant gates and closed filters."""

# pyright: basic

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.gaternet import GaterNet, Site
from gatewise.gaternet.hooks import detach
from gatewise.graph import ChannelDependency, LayerCost
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.constant_gates import hold_constant
from gatewise.inference.slicing import keep_channels, keep_inputs, keep_outputs, silence_inputs
from gatewise.inference.verify import Trial, channel_dependencies_of, drop_unsafe


class GateState(enum.StrEnum):
    """Whether a gate is constant over a set of images; a value is the character in `Compaction.states`."""

    OPEN = "1"
    CLOSED = "0"
    DECIDED = "?"  # it depends on the image


def restructure(
    net: GaterNet, states: Sequence[GateState], whole: Sequence[str] | None = None
) -> tuple[nn.Module, list[ChannelDependency]]:
    """Return a copy of `net` without constant gates and closed filters, and the channel dependency of each site.

    The copy is compared with `net` in float64. A site keeps its closed filters, multiplied by 0, if removing them
    changes the output.

    Args:
        net: the network; it is not changed.
        states: the state of each gate.
        whole: names of the sites that keep all filters, if known; None compares outputs to find them.

    Returns:
        The plain backbone if all gates are constant, otherwise a GaterNet; and the dependencies.
    """
    flags = torch.tensor([[state == GateState.DECIDED, state == GateState.OPEN] for state in states])
    decided, opened = flags.unbind(1)

    def run(exact: GaterNet, dependencies: Sequence[ChannelDependency], x: Tensor, gates: Tensor) -> Any:
        small = _cut(exact, states, dependencies)
        return small(x, gates[:, decided]) if isinstance(small, GaterNet) else small(x)

    dependencies, _ = channel_dependencies_of(net)
    if whole is None:
        trial = Trial(net, run, lambda gates: torch.where(decided.to(gates.device), gates, opened.to(gates)))
        dependencies = drop_unsafe(trial, dependencies)
    else:
        left = ChannelDependency(reason="kept unchanged")
        dependencies = [
            left if site.name in whole else dependency for site, dependency in zip(net.sites, dependencies, strict=True)
        ]
    return _cut(net, states, dependencies), dependencies


def _cut(net: GaterNet, states: Sequence[GateState], dependencies: Sequence[ChannelDependency]) -> nn.Module:
    small = full_copy(net)
    plans = [_Plan(net, site, dependency, states) for site, dependency in zip(net.sites, dependencies, strict=True)]
    for plan in plans:
        plan.take_out(small)
    chosen = [gate for gate, state in enumerate(states) if state == GateState.DECIDED]
    if chosen:
        sites: list[Site] = []
        for plan in plans:
            if plan.decided:
                first = sites[-1].first + sites[-1].gates if sites else 0
                sites.append(plan.new_site(net.backbone, small.backbone, first))
        small.decide_only(tuple(sites), chosen, [gate for gate, state in enumerate(states) if state == GateState.OPEN])
    else:
        detach(small.backbone)
    for plan in plans:
        plan.hold(small.backbone)
    if not chosen:
        return small.backbone
    small.count_work()
    return small


class _Plan:
    """The changes at one site."""

    def __init__(self, net: GaterNet, site: Site, dependency: ChannelDependency, states: Sequence[GateState]) -> None:
        own = states[site.first : site.first + site.gates]
        self.site, self.dependency = site, dependency
        self.states = [
            (*own, GateState.OPEN, GateState.CLOSED)[gate] for gate in site.gate_of_filters
        ]  # of each filter
        self.decided = [gate for gate, state in enumerate(own) if state == GateState.DECIDED]
        layers = [net.backbone.get_submodule(path) for path in (*dependency.producers, *dependency.consumers)]
        groups = math.lcm(1, *(getattr(layer, "groups", 1) for layer in layers))
        self.kept = _balanced(
            [state != GateState.CLOSED for state in self.states], groups if dependency.possible else 0
        )

    def take_out(self, net: GaterNet) -> None:
        kept = torch.tensor(self.kept, device=next(net.backbone.parameters()).device)
        closed = [place for place, filter_ in enumerate(self.kept) if self.states[filter_] == GateState.CLOSED]
        if len(kept) < self.site.filters:
            for path in self.dependency.producers:
                keep_outputs(net.backbone.get_submodule(path), kept)
            for path in self.dependency.elementwise:
                keep_channels(net.backbone.get_submodule(path), kept)
            for layer in self._consumers(net):
                keep_inputs(layer, kept)
        if closed and not self.decided:
            for layer in self._consumers(net):
                silence_inputs(layer, torch.tensor(closed))

    def _consumers(self, net: GaterNet) -> list[nn.Module]:
        """Return the consumers of these filters: layers of the backbone, and local deciders on their inputs."""
        consumers = [net.backbone.get_submodule(path) for path in self.dependency.consumers]
        if net.is_local:
            names = [site.name for site in net.sites]
            deciders: Any = [net.gater[names.index(path)] for path in self.dependency.consumers if path in names]  # type: ignore[index]
            consumers += [decider.head.fc1 for decider in deciders]
        return consumers

    def new_site(self, before: nn.Module, after: nn.Module, first: int) -> Site:
        gates = len(self.decided)
        names = {GateState.OPEN: gates, GateState.CLOSED: gates + 1}
        driven_by = [
            names[self.states[filter_]]
            if self.states[filter_] in names
            else self.decided.index(self.site.gate_of_filters[filter_])
            for filter_ in self.kept
        ]

        def scaled(layer: LayerCost) -> LayerCost:
            old, new = (network.get_submodule(layer.layer) for network in (before, after))
            if "weight" not in dict(old.named_parameters(recurse=False)):
                return layer  # a module of the network's own, which is never changed
            share = new.weight.numel() / old.weight.numel()  # type: ignore[union-attr,operator]
            return LayerCost(layer.layer, round(layer.macs * share), getattr(new, "groups", 1))

        return dataclasses.replace(
            self.site,
            filters=len(self.kept),
            gates=gates,
            first=first,
            producer=scaled(self.site.producer),
            depthwise=tuple(map(scaled, self.site.depthwise)),
            consumers=tuple(map(scaled, self.site.consumers)),
            driven_by=tuple(driven_by),
        )

    def hold(self, backbone: nn.Module) -> None:
        """Insert zeros for closed channels that the consumers still need."""
        if GateState.CLOSED not in self.states or self.dependency.consumers:
            return
        places = {filter_: place for place, filter_ in enumerate(self.kept) if self.states[filter_] != GateState.CLOSED}
        source = [places.get(filter_, -1) for filter_ in range(self.site.filters)]
        if self.decided and len(self.kept) == self.site.filters:
            return  # the hooks of the GaterNet do this
        hold_constant(backbone, self.site.layer, self.site.side, source, self.site.channel_axis)


def _balanced(wanted: list[bool], groups: int) -> list[int]:
    """Return the filters to keep: those wanted, plus others to make all `groups` groups equal, and at least one.

    >>> _balanced([True, True, False, False], groups=2)
    [0, 1, 2, 3]
    >>> _balanced([True, False, False, False], groups=2)
    [0, 2]
    >>> _balanced([False, False], groups=1)
    [0]
    >>> _balanced([True, False], groups=0)  # no filter can be removed
    [0, 1]
    """
    if not groups:
        return list(range(len(wanted)))
    size = len(wanted) // groups
    of_group = [range(start, start + size) for start in range(0, len(wanted), size)]
    count = max(1, *(sum(wanted[filter_] for filter_ in group) for group in of_group))
    return sorted(
        filter_ for group in of_group for filter_ in sorted(group, key=lambda filter_: not wanted[filter_])[:count]
    )
