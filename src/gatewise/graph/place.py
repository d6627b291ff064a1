"""The result of a place rule: places, and skipped candidates with their reasons."""

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
class Skipped:
    """A candidate without a gate, and the reason."""

    name: str
    reason: str


@dataclass
class Places:
    """The places that a rule has found, and the candidates that it has skipped.

    >>> places = Places()
    >>> places.take(Place("conv1", "output", 8, 2), "conv1", "no layer ends there")
    >>> places.take(None, "relu", "no layer ends there")
    >>> [p.layer for p in places.found], places.skipped
    (['conv1'], [Skipped(name='relu', reason='no layer ends there')])
    """

    found: list[Place] = field(default_factory=list[Place])
    skipped: list[Skipped] = field(default_factory=list[Skipped])

    def take(self, place: Place | None, candidate: str, reason: str) -> None:
        """Add `place`; if it is None, add `candidate` to the skipped ones with `reason`."""
        if place is None:
            self.skip(candidate, reason)
        else:
            self.found.append(place)

    def skip(self, candidate: str, reason: str) -> None:
        """Add a skipped candidate."""
        self.skipped.append(Skipped(candidate, reason))
