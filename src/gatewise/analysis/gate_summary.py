"""The statistics of one gate over many images."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GateSummary:
    """Statistics of one gate over all images that reached it.

    Values are the factors of channels or, for additive gates, the values added to channels; see `Recorded`. A channel
    that is zero in an image has no factor and is omitted for that image.

    Attributes:
        path: path of the gate in the network.
        is_additive: whether the gate adds, so that its neutral value is 0 instead of 1.
        mean: mean over images for each channel, (C,); NaN for a channel that is always zero.
        deviation: standard deviation over images for each channel, (C,); NaN for a channel that is always zero.
        average: mean over images and channels.
        overall_deviation: standard deviation over images and channels.
        by_class: mean over the images of each class, (classes, C); NaN for a class without images.
        histogram: number of values in each bin, (bins,); values out of range count in the outermost bins.
        edges: edges of the bins, (bins + 1,).
        near_identity: share of values, over images and channels, with `Recorded.changes` below 5 %.
        between_images: share of the variance that is between images, the rest being between channels; 0 if the gate
            treats all images the same.
        between_classes: share of the variance between images that is between classes, corrected for the share expected
            by chance with that many classes (epsilon squared), at least 0; NaN if an image has several classes or none.
        spread_before: spread between channels at the input: standard deviation over mean of the channels' root mean
            squares, averaged over images.
        spread_after: the same at the output.
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
        """Value of the identity: 0 for additive gates, 1 for others."""
        return 0.0 if self.is_additive else 1.0

    def dependence(self) -> float:
        """Return how much the values depend on the class: the root mean square distance of its mean from the mean."""
        return float((self.by_class - self.mean).square().nanmean().nan_to_num().sqrt())

    @property
    def competition(self) -> float:
        """spread_after / spread_before: channels compete above 1 (strong channels gain), and cooperate below 1."""
        return self.spread_after / self.spread_before if self.spread_before else 1.0
