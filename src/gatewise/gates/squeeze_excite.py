"""Squeeze and excitation (SE): the first channel attention, and the baseline of all others."""

import torch
from torch import Tensor, nn

from gatewise import _validation
from gatewise.functional import average_pool
from gatewise.kernels.backend import BACKENDS, takes_fused, why_not_fusible
from gatewise.kernels.channels import SharedGradient, mean_of_channels, scale_channels
from gatewise.registry import Gate, bottleneck_width, register_gate


def squeeze_excite(x: Tensor, reduce: nn.Module, expand: nn.Module) -> Tensor:
    """Return x * sigmoid(expand(relu(reduce(mean of x over positions)))).

    Args:
        x: the map, (N, C, *S).
        reduce: maps (N, C, 1, ...) to (N, R, 1, ...).
        expand: maps (N, R, 1, ...) to (N, C, 1, ...).

    >>> x = torch.tensor([[[1.0, 3.0]]])  # mean 2
    >>> squeeze_excite(x, nn.Identity(), nn.Identity())  # sigmoid(2) = 0.8808
    tensor([[[0.8808, 2.6424]]])
    """
    return x * excitation(average_pool(x), reduce, expand).to(x.dtype)


def excitation(mean: Tensor, reduce: nn.Module, expand: nn.Module) -> Tensor:
    """Return the factors sigmoid(expand(relu(reduce(mean)))) of a map's channels, (N, C, 1, ...).

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
        "backend": "chooses how the same numbers are computed",
    },
    guidance="The baseline that every other gate must beat, and one of the cheapest on a large network: it reads one "
    "mean of each channel. A fresh gate halves its branch, so a trained network needs some epochs to come back.",
)
class SqueezeExcite(Gate):
    """Scale each channel by sigmoid(W2 relu(W1 mean(x) + b1) + b2).

    `fc1` (C -> R) and `fc2` (R -> C) are 1x1 convolutions named as in timm, whose weights load. R is
    `rd_channels`, or C * rd_ratio rounded down to a multiple of rd_divisor, and never below 1.

    `backend` says how the same numbers are computed: "reference" is the definition, "fused" a kernel (ValueError with
    the reason where it cannot run), "auto" either.

    Refuses, with ValueError: rd_ratio outside (0, 1], rd_channels or rd_divisor below 1; at run time a map of
    other channels or rank; with TypeError: integer maps. A fresh gate is not the identity: its factors lie
    around 0.5.

    Differs from timm's SEModule in its default only: the paper does not round R to a multiple of 8.

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
        """Draw both layers anew, as torch initialises a convolution."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    @property
    def channels(self) -> int:
        return self.fc1.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        pays = torch.is_grad_enabled() or self.backend == "fused"  # without gradients the definition is as few passes
        if pays and takes_fused(self.backend, "se", self.why_not_fused(x)):
            link = SharedGradient(x)
            return scale_channels(*self.channel_terms(x, link), link)
        return squeeze_excite(x, self.fc1, self.fc2)

    def why_not_fused(self, x: Tensor) -> str:
        """Return why no kernel can stand in for this gate now, or ''."""
        return why_not_fusible(x)

    def channel_terms(self, x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return x, and what `scale_channels` multiplies its channels by and adds to them."""
        x, mean = mean_of_channels(x, link)
        return x, excitation(mean, self.fc1, self.fc2), None
