"""The gated layers of a backbone, one row each, and what their filters cost."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise._types import Example
from gatewise.places import Filters, LayerCost, Skipped, find_filters

KINDS = {"inner": "inner", "residual": "residual_end"}
Chosen = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Site:
    """One gated layer.

    Attributes:
        name: the convolution whose filters are gated.
        layer: where the gates act, which is behind its normalisation and activation for inner sites.
        side: "output" or "input" of that layer.
        channel_axis: of the map there.
        axes: of the map there, samples and channels included.
        filters: number of them.
        gates: number of gates; each drives filters / gates neighbouring filters, unless `driven_by` says otherwise.
        first: index of its first gate in the vector of all gates.
        producer: the convolution, with its multiply-adds.
        depthwise: convolutions behind it, each of whose filters goes with one of these.
        consumers: who reads these filters; closing one saves its share of each reader too.
        driven_by: of a compacted network, the gate of each filter; `gates` where it is always open, `gates` + 1 where
            it is always closed.
    """

    name: str
    layer: str
    side: str
    channel_axis: int
    axes: int
    filters: int
    gates: int
    first: int
    producer: LayerCost
    depthwise: tuple[LayerCost, ...]
    consumers: tuple[LayerCost, ...]
    driven_by: tuple[int, ...] | None = None

    @property
    def group_size(self) -> int:
        """Filters that one gate drives, where `driven_by` does not say."""
        return self.filters // self.gates

    def own(self, gates: Tensor) -> Tensor:
        """Return this site's part of all gates: (N, all) -> (N, gates)."""
        return gates[:, self.first : self.first + self.gates]

    @property
    def gate_of_filters(self) -> tuple[int, ...]:
        """The gate of each filter, counted as `driven_by` does."""
        if self.driven_by is None:
            return tuple(filter_ // self.group_size for filter_ in range(self.filters))
        return self.driven_by

    def spread(self, gates: Tensor) -> Tensor:
        """Return the gate of each filter: (N, gates of the site) -> (N, filters)."""
        if self.driven_by is None:
            return gates if self.group_size == 1 else gates.repeat_interleave(self.group_size, 1)
        always = gates.new_tensor([1.0, 0.0]).expand(gates.shape[0], 2)
        return torch.cat([gates, always], 1)[:, list(self.driven_by)]

    @property
    def filters_of_gates(self) -> Tensor:
        """How many filters each gate drives, (gates,)."""
        return torch.tensor([self.gate_of_filters.count(gate) for gate in range(self.gates)], dtype=torch.long)

    @property
    def macs_per_filter(self) -> float:
        """Multiply-adds of one filter on its whole input, depthwise layers behind it included."""
        return sum(layer.macs for layer in (self.producer, *self.depthwise)) / self.filters

    @property
    def consumer_macs_per_filter(self) -> float:
        """Multiply-adds that the readers spend on one filter if all of their own are open."""
        return sum(reader.macs for reader in self.consumers) / self.filters


def find_sites(
    backbone: nn.Module, chosen: Chosen, group_size: int, example: Example = None
) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    """Return the sites of `backbone`, which is only read, and the candidates that were left out with the reason.

    Args:
        backbone: any network.
        chosen: "inner", "residual", or by hand: a regular expression that is searched for in the names of the
            convolutions, a list of their names, or a function of name and module; by hand a convolution is gated at
            its inner place if it has one, and at the end of its branch otherwise.
        group_size: neighbouring filters that share one gate.
        example: an input, for networks whose input size cannot be guessed.

    Refused with ValueError: no site, a listed name that is none, filters that group_size does not divide.
    """
    _validation.check_integer_at_least(1, group_size=group_size)
    if isinstance(chosen, str) and chosen in KINDS:
        found, skipped = find_filters(backbone, KINDS[chosen], example)
    else:
        found, skipped = _by_hand(backbone, chosen, example)
    if not found:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3]) or "the network has no such place"
        raise errors.InvalidValueError(
            f"{type(backbone).__name__} has no filters to gate at sites={_validation.safe_repr(chosen)} ({reasons}). "
            f"Choose sites='inner' or 'residual', or convolutions by name."
        )
    sites: list[Site] = []
    for filters in found:
        first = sites[-1].first + sites[-1].gates if sites else 0
        sites.append(_site(filters, group_size, first))
    return tuple(sites), tuple(skipped)


def _site(filters: Filters, group_size: int, first: int) -> Site:
    place, name = filters.place, filters.producer.layer
    if place.channels % group_size:
        raise errors.InvalidValueError(
            f"group_size {group_size} does not divide the {place.channels} filters of {name!r}. "
            f"Choose a divisor of all widths, or leave this layer out."
        )
    return Site(
        name=name,
        layer=place.layer,
        side=place.side,
        channel_axis=place.channel_axis,
        axes=place.spatial_dims + 2,
        filters=place.channels,
        gates=place.channels // group_size,
        first=first,
        producer=filters.producer,
        depthwise=filters.depthwise,
        consumers=filters.consumers,
    )


def _by_hand(backbone: nn.Module, chosen: Chosen, example: Example) -> tuple[list[Filters], list[Skipped]]:
    """Return the filters of chosen convolutions."""
    candidates: dict[str, Filters] = {}
    skipped: list[Skipped] = []
    for kind in KINDS.values():
        found, left_out = find_filters(backbone, kind, example)
        skipped += left_out
        for filters in found:
            candidates.setdefault(filters.producer.layer, filters)
    modules: dict[str, nn.Module] = dict(backbone.named_modules())
    if callable(chosen):
        names = {name for name in candidates if chosen(name, modules[name])}
    elif isinstance(chosen, str):
        _validation.check_regular_expression(f"sites={chosen!r}", chosen)
        names = {name for name in candidates if re.search(chosen, name)}
    elif not isinstance(chosen, Sequence):
        raise errors.InvalidTypeError(
            f"sites must be inner, residual, an expression or a list, got {_validation.safe_repr(chosen)}."
        )
    else:
        names = {_validation.check_one_of("gateable convolution", name, candidates) for name in chosen}
    order = [name for name in modules if name in names]
    return [candidates[name] for name in order], skipped
