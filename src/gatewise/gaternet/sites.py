"""Find the gated layers (sites) of a backbone and the multiply-adds of their filters."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.graph import Filters, Graph, LayerCost, Skipped, find_filters, place_kind, place_names

_OF_CHOSEN = ("inner", "residual_end")  # the first of these places that a convolution chosen by name has
Chosen = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Site:
    """One gated layer.

    Attributes:
        name: path of the convolution with the gated filters.
        layer: path of the layer where the gates act; for inner sites after normalisation and activation.
        side: side of that layer, "output" or "input".
        channel_axis: channel axis of the map there.
        axes: number of axes of the map there, including samples and channels.
        filters: number of filters.
        gates: number of gates; each one controls filters / gates neighbouring filters, unless `driven_by` is set.
        first: index of the first gate of this site in the vector of all gates.
        producer: the convolution, with its multiply-adds.
        depthwise: depthwise convolutions between the convolution and the gates, with the same channels.
        consumers: layers with these filters as input; closing a filter also saves its share of their work.
        driven_by: in a compacted network, the gate of each filter: `gates` if it is always open, `gates` + 1 if it is
            always closed.
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
        """Number of filters per gate, if `driven_by` is None."""
        return self.filters // self.gates

    def own(self, gates: Tensor) -> Tensor:
        """Return the gates of this site: (N, gate_count) -> (N, gates)."""
        return gates[:, self.first : self.first + self.gates]

    @property
    def gate_of_filters(self) -> tuple[int, ...]:
        """The gate of each filter, with the indices of `driven_by`."""
        if self.driven_by is None:
            return tuple(filter_ // self.group_size for filter_ in range(self.filters))
        return self.driven_by

    def spread(self, gates: Tensor) -> Tensor:
        """Return the gate value of each filter: (N, gates) -> (N, filters)."""
        if self.driven_by is None:
            return gates if self.group_size == 1 else gates.repeat_interleave(self.group_size, 1)
        always = gates.new_tensor([1.0, 0.0]).expand(gates.shape[0], 2)
        return torch.cat([gates, always], 1)[:, list(self.driven_by)]

    @property
    def filters_of_gates(self) -> Tensor:
        """Number of filters of each gate, (gates,)."""
        return torch.tensor([self.gate_of_filters.count(gate) for gate in range(self.gates)], dtype=torch.long)

    @property
    def macs_per_filter(self) -> float:
        """Multiply-adds of one filter with all inputs open, including its depthwise convolutions."""
        return sum(layer.macs for layer in (self.producer, *self.depthwise)) / self.filters

    @property
    def consumer_macs_per_filter(self) -> float:
        """Multiply-adds of the consumers for one filter, with all of their own filters open."""
        return sum(consumer.macs for consumer in self.consumers) / self.filters


def places_by_sites() -> dict[str, str]:
    """Return the kind of place for each value of `sites` that is not a selection of convolutions.

    >>> places_by_sites()
    {'inner': 'inner', 'residual': 'residual_end'}
    """
    kinds = [place_kind(name) for name in place_names()]
    return {kind.sites: kind.name for kind in kinds if kind.sites}


def find_sites(graph: Graph, chosen: Chosen, group_size: int) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    """Return the sites of a backbone and the skipped candidates with their reasons.

    Args:
        graph: the graph of the backbone.
        chosen: a key of `places_by_sites`, or a selection of convolutions: a regular expression for their names
            (`re.search`), a list of names, or a function of name and module. A selected convolution is gated at its
            inner place if it has one, otherwise at the end of its branch.
        group_size: number of neighbouring filters with a common gate.

    Raises:
        ValueError: if there is no site, a listed name is unknown, or group_size does not divide a number of filters.
    """
    _validation.check_integer_at_least(1, group_size=group_size)
    places = places_by_sites()
    if isinstance(chosen, str) and chosen in places:
        found, skipped = find_filters(graph, places[chosen])
    else:
        found, skipped = _by_hand(graph, chosen)
    if not found:
        raise errors.InvalidValueError(_why_no_sites(graph, chosen, skipped))
    sites: list[Site] = []
    for filters in found:
        first = sites[-1].first + sites[-1].gates if sites else 0
        sites.append(_site(filters, group_size, first))
    return tuple(sites), tuple(skipped)


def _why_no_sites(graph: Graph, chosen: Chosen, skipped: list[Skipped]) -> str:
    places = places_by_sites()
    reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3]) or "the network has no such place"
    hint = ""
    if isinstance(chosen, str) and chosen not in places:
        reasons = "no convolution whose name matches can be gated"
        hint = _validation.did_you_mean(chosen, [*places, *_gateable(graph)[0]])
    return (
        f"{type(graph.model).__name__} has no filters to gate at sites={_validation.safe_repr(chosen)} ({reasons}). "
        f"Choose sites={' or '.join(map(repr, places))}, or select convolutions by name.{hint}"
    )


def _site(filters: Filters, group_size: int, first: int) -> Site:
    place, name = filters.place, filters.producer.layer
    if place.channels % group_size:
        raise errors.InvalidValueError(
            f"group_size {group_size} does not divide the {place.channels} filters of {name!r}. "
            f"Choose a common divisor of all widths, or exclude this layer."
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


def _gateable(graph: Graph) -> tuple[dict[str, Filters], list[Skipped]]:
    """Return the filters that can be chosen by name, by their convolution, and the skipped candidates."""
    candidates: dict[str, Filters] = {}
    skipped: list[Skipped] = []
    for place in _OF_CHOSEN:
        found, not_found = find_filters(graph, place)
        skipped += not_found
        for filters in found:
            candidates.setdefault(filters.producer.layer, filters)
    return candidates, skipped


def _by_hand(graph: Graph, chosen: Chosen) -> tuple[list[Filters], list[Skipped]]:
    """Return the filters of the selected convolutions, and the skipped candidates."""
    candidates, skipped = _gateable(graph)
    modules = graph.modules
    if callable(chosen):
        names = {name for name in candidates if chosen(name, modules[name])}
    elif isinstance(chosen, str):
        _validation.check_regular_expression(f"sites={chosen!r}", chosen)
        names = {name for name in candidates if re.search(chosen, name)}
    elif not isinstance(chosen, Sequence):
        raise errors.InvalidTypeError(
            f"sites must be {', '.join(map(repr, places_by_sites()))}, a regular expression, a list of names or a "
            f"function, got {_validation.safe_repr(chosen)}."
        )
    else:
        names = {_validation.check_one_of("gateable convolution", name, candidates) for name in chosen}
    order = [name for name in modules if name in names]
    return [candidates[name] for name in order], skipped
