"""Efficient channel attention (ECA): a short 1D convolution over the channel means, without a bottleneck."""

import math

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gates.functional import average_pool
from gatewise.gates.registry import Gate, register_gate


def efficient_channel_attention(x: Tensor, conv: nn.Module) -> Tensor:
    """Return x * sigmoid(conv(m)), where m are the channel means over all positions, as a sequence (N, 1, C).

    Args:
        x: feature map, (N, C, *S).
        conv: maps (N, 1, C) to (N, 1, C).

    >>> x = torch.tensor([[[1.0, 3.0]]])  # mean 2
    >>> efficient_channel_attention(x, nn.Identity())  # sigmoid(2) = 0.8808
    tensor([[[0.8808, 2.6424]]])
    """
    means = average_pool(x)  # (N, C, 1, ...)
    logits = conv(means.flatten(1).unsqueeze(1)).squeeze(1)  # (N, C)
    return x * logits.sigmoid().to(x.dtype)[(..., *[None] * (x.dim() - 2))]


def adaptive_kernel_size(channels: int, gamma: float, beta: float) -> int:
    """Return the odd integer nearest to |log2(channels) / gamma + beta / gamma|; ties go to the larger one.

    >>> [adaptive_kernel_size(channels, 2, 1) for channels in (16, 64, 256, 512, 2048)]  # of 2.5, 3.5, 4.5, 5 and 6
    [3, 3, 5, 5, 7]
    """
    return 2 * math.floor(abs((math.log2(channels) + beta) / gamma) / 2) + 1


@register_gate(
    "eca",
    function=efficient_channel_attention,
    title="Efficient channel attention",
    paper="Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020, "
    "arXiv 1910.03151",
    place="residual_end",
    variants={
        "kernel5": {"kernel_size": 5},
        "gamma1": {"gamma": 1},
        "beta4": {"beta": 4},
        "1d": {"spatial_dims": 1},
        "3d": {"spatial_dims": 3},
    },
    no_effect_at_init={"spatial_dims": "chooses the rank of the input"},
    guidance="When the number of parameters matters: a kernel of a few weights replaces the two layers of SE. Each "
    "factor depends only on neighbouring channel indices; training can order the channels accordingly. A new gate "
    "halves the output of its branch.",
)
class EfficientChannelAttention(Gate):
    """Scale each channel by sigmoid(conv(m)), a 1D convolution over the channel means m.

    The kernel size k is `kernel_size`, or the odd integer nearest to |(log2(C) + beta) / gamma|. `conv` has the name
    and the shape of the layer in timm's EcaModule, (1, 1, k), without bias and with zero padding; timm's weights load.
    A new gate is not the identity: its factors are about 0.5.

    Args:
        channels: number of channels, C.
        kernel_size: k, odd; None computes it from gamma and beta.
        gamma: divisor in the formula of k.
        beta: offset in the formula of k (the paper's b).
        spatial_dims: number of spatial axes, 1 to 3.

    Raises:
        InvalidValueError: kernel_size is even, gamma is below 1e-6, or kernel_size is given together with gamma or
            beta; in `forward`, the map has a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from timm's EcaModule where the formula gives 1 (with the defaults, for 4 channels and fewer): timm uses 3.

    >>> gate = EfficientChannelAttention(64)
    >>> gate.conv.kernel_size, sum(p.numel() for p in gate.parameters())  # (6 + 1) / 2 = 3.5
    ((3,), 3)
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float = 2,
        beta: float = 1,
        spatial_dims: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        _validation.check_number_between(1e-6, 1e6, gamma=gamma)
        _validation.check_number_between(-1e6, 1e6, beta=beta)
        if kernel_size is not None and (gamma, beta) != (2, 1):
            raise errors.InvalidValueError(
                "gamma and beta determine the kernel size; give either them or kernel_size, not both."
            )
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels, gamma, beta)
        _validation.check_odd(kernel_size=kernel_size)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Reinitialise the kernel with torch's default for convolutions."""
        self.conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return efficient_channel_attention(x, self.conv)

    def extra_repr(self) -> str:
        return f"{self.channels}"
