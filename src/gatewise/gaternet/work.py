"""Count the multiply-adds of gated filters, and those that closed gates save."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gatewise.gaternet.sites import Site
from gatewise.graph import LayerCost


def own_macs(sites: Sequence[Site]) -> Tensor:
    """Return the multiply-adds of each gate's filters with all inputs open, (gate_count,)."""
    return torch.cat([site.macs_per_filter * site.filters_of_gates for site in sites])


def saved_macs(sites: Sequence[Site], gates: Tensor) -> Tensor:
    """Return the multiply-adds that closed gates save for each image: (N, gate_count) -> (N,), float64.

    A convolution still costs the fraction (open filters) x (open inputs), averaged over its groups. If it is called
    several times, its filters are gated in each call, and its inputs perhaps only in some.
    """
    gates = gates.to(torch.float64)
    written = {site.producer.layer: site for site in sites}
    read: dict[str, list[tuple[LayerCost, Site]]] = {}
    for site in sites:
        for consumer in site.consumers:
            read.setdefault(consumer.layer, []).append((consumer, site))
    saved = gates.new_zeros(len(gates))
    for name in written | read:
        reads, writer = read.get(name, []), written.get(name)
        groups = reads[0][0].groups if reads else written[name].producer.groups
        outputs = _open_in_groups(gates, writer, groups)
        for layer, site in reads:
            saved += layer.macs * (1 - (outputs * _open_in_groups(gates, site, groups)).mean(1))
        if writer is not None:
            without_gated_inputs = writer.producer.macs - sum(layer.macs for layer, _ in reads)
            saved += max(0, without_gated_inputs) * (1 - outputs.mean(1))
    for site in sites:
        for layer in site.depthwise:
            saved += layer.macs * (1 - _filters_of(site, gates).mean(1))
    return saved


def _open_in_groups(gates: Tensor, site: Site | None, groups: int) -> Tensor:
    """Return the open fraction of each group of a convolution, (N, groups); 1 without gates."""
    if site is None:
        return gates.new_ones(len(gates), groups)
    return _filters_of(site, gates).unflatten(1, (groups, -1)).mean(2)  # pyright: ignore[reportUnknownVariableType]


def _filters_of(site: Site, gates: Tensor) -> Tensor:
    return site.spread(site.own(gates))
