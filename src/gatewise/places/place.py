"""What a rule finds: places, and candidates that were left out with the reason."""

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """A spot where a gate can sit: the input or the output of one layer.

    Attributes:
        layer: path of the layer in the network.
        side: "input" or "output".
        channels: of the map there.
        spatial_dims: axes of the map besides samples and channels.
        channel_axis: where the channels are: 1, or the last axis in channels-last code such as ConvNeXt's.
    """

    layer: str
    side: str
    channels: int
    spatial_dims: int
    channel_axis: int = 1


class ContextPlace(nn.Module):
    """Marks where a network takes a block of global context; does nothing itself: (N, C, H, W) -> the same.

    Args:
        channels: C.
        stages: paths of the layers in whose residual branches such blocks may lie instead.
    """

    def __init__(self, channels: int, stages: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.channels, self.stages = channels, stages

    def forward(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Skipped:
    """A candidate that was left out."""

    name: str
    reason: str


@dataclass
class Places:
    """What a rule found, and the candidates that it left out.

    >>> places = Places()
    >>> places.take(Place("conv1", "output", 8, 2), "conv1", "no layer ends there")
    >>> places.take(None, "relu", "no layer ends there")
    >>> [p.layer for p in places.found], places.skipped
    (['conv1'], [Skipped(name='relu', reason='no layer ends there')])
    """

    found: list[Place] = field(default_factory=list[Place])
    skipped: list[Skipped] = field(default_factory=list[Skipped])

    def take(self, place: Place | None, candidate: str, reason: str) -> None:
        """Note `place`, or where there is none, that `candidate` was left out for `reason`."""
        if place is None:
            self.skip(candidate, reason)
        else:
            self.found.append(place)

    def skip(self, candidate: str, reason: str) -> None:
        """Note that a candidate was left out."""
        self.skipped.append(Skipped(candidate, reason))
