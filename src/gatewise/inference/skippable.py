"""Find the sites of a GaterNet with filters that can be skipped, from its graph and by comparing outputs."""

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gatewise.gaternet import GaterNet
from gatewise.graph import ChannelDependency, Skipped
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.active_filters import ActiveFilters
from gatewise.inference.surgery import foldable, open_layers, why_not_skippable
from gatewise.inference.verify import Trial, channel_dependencies_of, drop_unsafe


def skippable(net: GaterNet, *, tried: bool = True) -> tuple[list[ChannelDependency], dict[str, str]]:
    """Return the channel dependency of each site, and the batch norm to fold into each convolution.

    Args:
        net: the network; it is not changed.
        tried: whether to compare outputs, too; otherwise only the graph is read.

    Returns:
        The dependencies, with `possible` false and a reason for sites that must compute all filters; and a dict from
        the path of a convolution to the path of its batch norm.
    """
    dependencies, followed = channel_dependencies_of(net)
    folds = foldable(net.backbone, followed)
    dependencies = [
        dependency
        if (reason := why_not_skippable(net.backbone, dependency, folds)) is None
        else ChannelDependency(reason=reason)
        for dependency in dependencies
    ]
    if tried:
        trial = Trial(net, functools.partial(_run_open, folds), lambda gates: gates)
        dependencies = drop_unsafe(trial, dependencies)
    return list(dependencies), folds


def kept_whole(net: GaterNet, dependencies: Sequence[ChannelDependency]) -> tuple[Skipped, ...]:
    """Return the sites that compute all filters, with the reasons."""
    sites = zip(net.sites, dependencies, strict=True)
    return tuple(Skipped(site.name, dependency.reason) for site, dependency in sites if not dependency.possible)


def _run_open(
    folds: dict[str, str], exact: GaterNet, dependencies: Sequence[ChannelDependency], x: Tensor, gates: Tensor
) -> Any:
    """Run a copy of a net with its open filters only; all images have the gates of the first."""
    copied = full_copy(exact)
    active_filters = ActiveFilters(2**40)
    open_layers(copied.backbone, copied.sites, dependencies, folds, active_filters)
    factors: dict[int, Tensor | None] = {}
    for number, (site, dependency) in enumerate(zip(copied.sites, dependencies, strict=True)):
        own = site.own(gates)
        union = own[0].bool().cpu().numpy()
        factors[number] = (
            active_filters.open(number, site, own, union, alike=True) if dependency.possible else site.spread(own)
        )
    copied.gate_context.current.factors = factors
    return copied.backbone(x)
