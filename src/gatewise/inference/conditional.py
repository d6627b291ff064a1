"""A GaterNet that selects its open filters with tensor operations, for export and for runtimes without Python."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core._torch_compat import check_size
from gatewise.core.types import Output
from gatewise.gaternet import GaterNet, Site
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.active_filters import ActiveFilters, FilterIndices, Picked
from gatewise.inference.skippable import kept_whole, skippable
from gatewise.inference.surgery import open_layers


class ConditionalNet(nn.Module):
    """(N, C, H, W) -> output and gates of `net.eval()`, without computing filters that are closed for all images.

    Weights and maps are indexed with the open filters, which are tensors in the graph of torch.export and ONNX. The
    images of a batch run together: filters that only some of them open are computed for all and multiplied. If all
    filters of a site are closed, its first unit runs and is multiplied by zero.

    Attributes:
        skipped: sites that still compute all filters and multiply, with the reasons.

    Raises:
        ValueError: for local gating, which computes its gates during the forward.
    """

    def __init__(self, net: GaterNet) -> None:
        super().__init__()
        if net.is_local:
            raise errors.InvalidValueError(
                "local gating computes its gates during the forward, and has no conditional form. Choose form masked "
                "or compact."
            )
        if net.routes is not None:
            raise errors.InvalidValueError(
                "a network with routes has batch norms for each of them, and no conditional form. Choose form routes."
            )
        self.dependencies, folds = skippable(net)
        self.skipped = kept_whole(net, self.dependencies)
        self.net = full_copy(net).eval().requires_grad_(False)
        self.active_filters = _UncachedFilters(memory=0)
        open_layers(self.net.backbone, net.sites, self.dependencies, folds, self.active_filters)

    def forward(self, x: Tensor) -> tuple[Output, Tensor]:
        gates = self.net.decide(x)
        factors: dict[int, Tensor | None] = {}
        for number, (site, dependency) in enumerate(zip(self.net.sites, self.dependencies, strict=True)):
            own = site.spread(site.own(gates))
            if dependency.possible:
                chosen = self.active_filters.chosen[number] = _open_for_some(site, site.own(gates))
                own = own.index_select(1, chosen.channels)
            factors[number] = own
        self.net.gate_context.current.factors = factors
        try:
            return self.net.backbone(x), gates
        finally:
            self.active_filters.close()
            self.net.gate_context.current.clear()


class _UncachedFilters(ActiveFilters):
    """Slices weights at each call, without cache and packing: the slicing must be part of the exported graph."""

    packs: ClassVar[bool] = False

    def picked(self, key: tuple[object, ...], pick: Callable[[], Picked]) -> Picked:  # noqa: ARG002
        return pick()


def _open_for_some(site: Site, gates: Tensor) -> FilterIndices:
    """Return the filters that some image opens, or the first unit if there are none; `gates` is (N, site.gates)."""
    if site.driven_by is None:
        states, run = gates.amax(0) > 0, site.group_size
    else:
        states, run = site.spread(gates).amax(0) > 0, 1
    first = torch.arange(len(states), device=gates.device) == 0
    units = torch.nonzero(states | (first & ~states.any())).squeeze(1)
    check_size(units.shape[0] >= 1)
    check_size(units.shape[0] <= len(states))
    channels = (units.unsqueeze(1) * run + torch.arange(run, device=gates.device)).flatten()
    return FilterIndices(units, run, channels)
