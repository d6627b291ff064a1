"""Squeeze-and-excitation (SE): scale each channel by a function of all channel means."""

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.gates.channel_scaling import ChannelScaling
from gatewise.gates.functional import average_pool
from gatewise.gates.kernels.backend import BACKENDS, takes_fused
from gatewise.gates.kernels.channels import SharedGradient, mean_of_channels, scale_channels
from gatewise.gates.registry import bottleneck_width, register_gate


def squeeze_excite(x: Tensor, reduce: nn.Module, expand: nn.Module) -> Tensor:
    """Return x * sigmoid(expand(relu(reduce(mean of x over positions)))).

    Args:
        x: feature map, (N, C, *S).
        reduce: maps (N, C, 1, ...) to (N, R, 1, ...).
        expand: maps (N, R, 1, ...) to (N, C, 1, ...).

    >>> x = torch.tensor([[[1.0, 3.0]]])  # mean 2
    >>> squeeze_excite(x, nn.Identity(), nn.Identity())  # sigmoid(2) = 0.8808
    tensor([[[0.8808, 2.6424]]])
    """
    return x * excitation(average_pool(x), reduce, expand).to(x.dtype)


def excitation(mean: Tensor, reduce: nn.Module, expand: nn.Module) -> Tensor:
    """Return the channel factors sigmoid(expand(relu(reduce(mean)))), (N, C, 1, ...).

    >>> excitation(torch.zeros(1, 1, 1), nn.Identity(), nn.Identity())
    tensor([[[0.5000]]])
    """
    return expand(torch.relu(reduce(mean))).sigmoid()


@register_gate(
    "se",
    function=squeeze_excite,
    title="Squeeze-and-excitation",
    paper="Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507",
    place="residual_end",
    variants={
        "wide": {"rd_ratio": 1 / 4},
        "divisor": {"rd_divisor": 8},
        "channels": {"rd_channels": 3},
        "1d": {"spatial_dims": 1},
        "3d": {"spatial_dims": 3},
    },
    no_effect_at_init={
        "spatial_dims": "chooses the rank of the input",
        "backend": "selects the implementation of the same function",
    },
    guidance="The baseline for all other gates, and one of the cheapest in a large network: it uses one mean per "
    "channel. A new gate halves the output of its branch, so a trained network needs some epochs to recover.",
)
class SqueezeExcite(ChannelScaling):
    """Scale each channel by sigmoid(W2 relu(W1 mean(x) + b1) + b2).

    `fc1` (C -> R) and `fc2` (R -> C) are 1x1 convolutions named as in timm; timm's weights load. A new gate is not the
    identity: its factors are about 0.5.

    Args:
        channels: number of channels, C.
        rd_ratio: R is C * rd_ratio, rounded down to a multiple of rd_divisor and at least rd_divisor.
        rd_channels: R; overrides rd_ratio.
        rd_divisor: R is a multiple of it.
        spatial_dims: number of spatial axes, 1 to 3.
        backend: "reference" is the definition, "fused" a kernel (ValueError with the reason if it cannot run), "auto"
            uses "fused" where it can.

    Raises:
        InvalidValueError: rd_ratio is not in (0, 1], or rd_channels or rd_divisor is below 1; in `forward`, the map has
            a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from timm's SEModule only in the default of rd_divisor: the paper does not round R to a multiple of 8.

    >>> gate = SqueezeExcite(32)
    >>> gate.fc1.out_channels, sum(p.numel() for p in gate.parameters())  # 32*2 + 2 + 2*32 + 32
    (2, 162)
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_dims: int = 2,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.backend = _validation.check_one_of("backend", backend, BACKENDS)
        width = bottleneck_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.fc1 = self.pointwise(channels, width, device, dtype)
        self.fc2 = self.pointwise(width, channels, device, dtype)

    def reset_parameters(self) -> None:
        """Reinitialise both layers with torch's default for convolutions."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    @property
    def channels(self) -> int:
        return self.fc1.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        # Without gradients the definition reads and writes the map no more often than the kernels do.
        fused_helps = torch.is_grad_enabled() or self.backend == "fused"
        if fused_helps and takes_fused(self.backend, "se", self.why_not_fused(x)):
            link = SharedGradient(x)
            return scale_channels(*self.channel_terms(x, link), link)
        return squeeze_excite(x, self.fc1, self.fc2)

    def channel_terms(self, x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the arguments of `scale_channels`: x, the factor of each channel, and None for the offsets."""
        x, mean = mean_of_channels(x, link)
        return x, excitation(mean, self.fc1, self.fc2), None
