"""What is told of a gate when it has been seen over many images."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GateSummary:
    """What one gate did over all images that reached it.

    Values are factors of channels, or for a gate that adds what it adds to them; see `Recorded`. A channel that is zero
    in an image tells nothing of its factor, and is left out for that image.

    Attributes:
        path: of the gate in the network.
        is_additive: whether it adds, so that doing nothing is 0 and not 1.
        mean: over images, of each channel, (C,); not a number for a channel that is always zero.
        deviation: likewise.
        average: over images and channels.
        overall_deviation: standard deviation over images and channels.
        by_class: mean over the images of each class, (classes, C); not a number for a class without images.
        histogram: how many values lie in each of the bins, the outermost of which take what lies beyond, (bins,).
        edges: of the bins, (bins + 1,).
        near_identity: share of channels that an image's map leaves unchanged but for 5 % of their size.
        between_images: share of the values' variance that lies between images, the rest lying between channels: 0 for a
            gate that does the same to all images.
        between_classes: share of the variance between images that lies between classes, less what chance gives to so
            many classes (epsilon squared), at least 0.
        spread_before: spread between channels at the input: standard deviation of the channels' root mean squares over
            their mean, averaged over images.
        spread_after: likewise at the output.
    """

    path: str
    is_additive: bool
    mean: Tensor
    deviation: Tensor
    average: float
    overall_deviation: float
    by_class: Tensor
    histogram: Tensor
    edges: Tensor
    near_identity: float
    between_images: float
    between_classes: float
    spread_before: float
    spread_after: float

    @property
    def neutral(self) -> float:
        """The value of doing nothing."""
        return 0.0 if self.is_additive else 1.0

    @property
    def competition(self) -> float:
        """spread_after / spread_before: above 1 channels compete (strong ones win), below 1 they cooperate."""
        return self.spread_after / self.spread_before if self.spread_before else 1.0
