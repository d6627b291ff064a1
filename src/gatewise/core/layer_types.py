"""The public layer classes of torch by kind, for isinstance: their private base classes may change."""

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # by number of spatial axes
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # the same
ANY_CONVOLUTIONS = CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS
LAZY_CONVOLUTIONS = (
    *(nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d),
    *(nn.LazyConvTranspose1d, nn.LazyConvTranspose2d, nn.LazyConvTranspose3d),
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # by number of spatial axes
BATCH_NORMS = (
    *(*NORMS, nn.SyncBatchNorm),
    *(nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d),
)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # by number of spatial axes
CHANNEL_NORMS = (  # each channel is normalised by itself
    *(*BATCH_NORMS, *INSTANCE_NORMS),
    *(nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d),
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def spatial_axes(convolution: nn.Module) -> int:
    """Return the number of spatial axes of a convolution, from its class: reading a parametrised weight changes it.

    >>> spatial_axes(nn.Conv1d(3, 8, 3)), spatial_axes(nn.ConvTranspose3d(3, 8, 3))
    (1, 3)
    """
    kinds = zip(CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, strict=True)
    return next(axes for axes, own in enumerate(kinds, 1) if isinstance(convolution, own))
