"""Which filters of a GaterNet can be left out at run time: read from its graph, then tried."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gatewise.execution.active_filters import Openings
from gatewise.execution.surgery import foldable, open_up, why_not
from gatewise.execution.verify import flows_of, settle
from gatewise.gaternet import GaterNet
from gatewise.places import Flow, Skipped


def skippable(net: GaterNet, *, tried: bool = True) -> tuple[list[Flow], dict[str, str]]:
    """Return what changes with the filters of each site, and the batch norms that convolutions take in.

    A site whose filters cannot be left out, as the graph or a trial says, has an impossible flow with the reason.
    """
    flows, followed = flows_of(net)
    folds = foldable(net.backbone, followed)
    flows = [Flow(reason=reason) if (reason := why_not(net.backbone, flow, folds)) else flow for flow in flows]
    if tried:
        flows = settle(net, flows, functools.partial(_run_open, folds), lambda gates: gates)
    return list(flows), folds


def kept_whole(net: GaterNet, flows: Sequence[Flow]) -> tuple[Skipped, ...]:
    """Return the sites whose filters are all computed, each with the reason."""
    sites = zip(net.sites, flows, strict=True)
    return tuple(Skipped(site.name, flow.reason) for site, flow in sites if not flow.possible)


def _run_open(folds: dict[str, str], exact: GaterNet, flows: Sequence[Flow], x: Tensor, gates: Tensor) -> Any:
    """Run a net with its open filters only, all images having the same."""
    copied = copy.deepcopy(exact)
    openings = Openings(2**40)
    open_up(copied.backbone, copied.sites, flows, folds, openings)
    factors: dict[int, Tensor | None] = {}
    for number, (site, flow) in enumerate(zip(copied.sites, flows, strict=True)):
        own = site.own(gates)
        union = own[0].bool().cpu().numpy()
        factors[number] = openings.open(number, site, own, union, alike=True) if flow.possible else site.spread(own)
    copied._board.factors = factors
    return copied.backbone(x)
