"""The result of a place rule: places, and skipped candidates with their reasons."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """A position for a gate: the input or the output of one layer.

    Attributes:
        layer: path of the layer in the network.
        side: "input" or "output".
        channels: number of channels of the map.
        spatial_dims: number of spatial axes of the map.
        channel_axis: channel axis of the map: 1, or the last axis in channels-last code such as ConvNeXt's.
    """

    layer: str
    side: str
    channels: int
    spatial_dims: int
    channel_axis: int = 1


@dataclass(frozen=True)
class Spot:
    """A place as it is seen at one call of its layer.

    Attributes:
        place: the place.
        call: identifier of the call.
        calls: number of calls of the layer.
        origin: the layers that make the channels of the map in this call; () if it is the only call.
    """

    place: Place
    call: str
    calls: int
    origin: tuple[str, ...]

    @property
    def side(self) -> tuple[str, str]:
        """The layer and its side."""
        return self.place.layer, self.place.side


@dataclass(frozen=True)
class Skipped:
    """A candidate without a gate, and the reason."""

    name: str
    reason: str


@dataclass
class Places:
    """The places that a rule has found, and the candidates that it has skipped.

    A candidate is a map, and its spots are the sides of layers where it can be gated, in order of preference. A gate
    runs at every call of its layer, so a layer that is called several times has a place only if each of its calls is
    one of the spots, for the same channels.

    >>> conv = Spot(Place("conv", "output", 8, 2), "conv", 1, ())
    >>> first, second = (Spot(Place("relu", "output", 8, 2), call, 2, ()) for call in ("relu", "relu@1"))
    >>> places = Places()
    >>> places.take([first, conv], "relu", "no layer ends there")
    >>> places.take([second], "relu", "no layer ends there")
    >>> places.take([], "add", "no layer ends there")
    >>> [place.layer for place in places.settled().found], places.skipped
    (['relu'], [Skipped(name='add', reason='no layer ends there')])
    """

    found: list[Place] = field(default_factory=list[Place])
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    _taken: list[tuple[list[Spot], str, str]] = field(default_factory=list[tuple[list[Spot], str, str]], repr=False)

    def take(self, spots: list[Spot], candidate: str, reason: str) -> None:
        """Add a candidate at the first possible of its spots; without spots it is skipped with `reason`."""
        self._taken.append((spots, candidate, reason))

    def skip(self, candidate: str, reason: str) -> None:
        """Add a skipped candidate."""
        self.skipped.append(Skipped(candidate, reason))

    def settled(self) -> "Places":
        """Choose the places of all candidates, and return self."""
        unfit = _why_unfit(spot for spots, *_ in self._taken for spot in spots)
        while True:
            chosen = [next((spot for spot in spots if spot.side not in unfit), None) for spots, *_ in self._taken]
            also = _why_unfit(spot for spot in chosen if spot is not None)
            if not also:
                break
            unfit |= also
        for spot, (spots, candidate, reason) in zip(chosen, self._taken, strict=True):
            if spot is None:
                self.skip(candidate, unfit[spots[0].side] if spots else reason)
            elif spot.place not in self.found:
                self.found.append(spot.place)
        self._taken, self.skipped = [], list(dict.fromkeys(self.skipped))
        return self


def _why_unfit(spots: Iterable[Spot]) -> dict[tuple[str, str], str]:
    """Return the sides of layers whose calls are not all among the spots, or are not alike, each with the reason."""
    sides: dict[tuple[str, str], list[Spot]] = {}
    for spot in spots:
        sides.setdefault(spot.side, []).append(spot)
    reasons: dict[tuple[str, str], str] = {}
    for (layer, side), own in sides.items():
        calls, here = own[0].calls, len({spot.call for spot in own})
        often = f"{layer} is called {calls} times" if calls > 1 else f"{layer} has several {side}s"
        makers = sorted({maker for spot in own for maker in spot.origin})
        if here < calls:
            reasons[layer, side] = f"{often}, and its {side} is such a place at {here} of them"
        elif len({spot.place for spot in own}) > 1:
            widths = sorted({spot.place.channels for spot in own})
            reasons[layer, side] = f"{often}, with different numbers of channels or axes: {widths}"
        elif len({spot.origin for spot in own}) > 1:
            reasons[layer, side] = f"{often}, for channels that different layers make: {', '.join(makers)}"
    return reasons
