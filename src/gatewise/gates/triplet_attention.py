"""Triplet attention: scale the map by factors over (C, W), (H, C) and (H, W), each pooled over the third axis."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.gates.functional import at_least_float32
from gatewise.gates.registry import Gate, register_gate


def zpool(x: Tensor, axis: int) -> Tensor:
    """Return the maximum and the mean over one axis of a map (N, C, H, W), stacked as two channels: (N, 2, ., .).

    >>> zpool(torch.tensor([[[[1.0, 3.0]]]]), axis=3).shape, zpool(torch.tensor([[[[1.0, 3.0]]]]), axis=3).flatten()
    (torch.Size([1, 2, 1, 1]), tensor([3., 2.]))
    """
    means = x.mean(axis, dtype=at_least_float32(x.dtype)).to(x.dtype)
    return torch.stack([x.amax(axis), means], dim=1)


def triplet_attention(x: Tensor, cw: nn.Module, hc: nn.Module, hw: nn.Module | None = None) -> Tensor:
    """Return x times the mean of sigmoid(cw(z_H)), sigmoid(hc(z_W)) and sigmoid(hw(z_C)), z_A = zpool over axis A.

    Args:
        x: feature map, (N, C, H, W).
        cw: maps (N, 2, C, W) to logits (N, 1, C, W).
        hc: maps (N, 2, H, C) to logits (N, 1, H, C).
        hw: maps (N, 2, H, W) to logits (N, 1, H, W); None averages only the other two factors.

    >>> x = torch.tensor([[[[1.0, 3.0]]]])
    >>> triplet_attention(x, lambda z: z[:, :1], lambda z: z[:, :1])  # (sigmoid(1) + sigmoid(3)) / 2, and sigmoid(3)
    tensor([[[[0.8418, 2.8577]]]])
    """
    factors = cw(zpool(x, 2)).sigmoid().transpose(1, 2)  # (N, C, 1, W)
    factors = factors + hc(zpool(x.transpose(1, 2), 3)).sigmoid().permute(0, 3, 2, 1)  # (N, C, H, W)
    if hw is None:
        return x * (factors / 2).to(x.dtype)
    return x * ((factors + hw(zpool(x, 1)).sigmoid()) / 3).to(x.dtype)


def branch(kernel_size: int, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Sequential:
    """Return a convolution from two channels to one with batch norm, nested as in the official code."""
    conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
    # torch's momentum is the weight of the new batch; the same value in TensorFlow's convention is 0.99.
    bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01, device=device, dtype=dtype)
    return nn.Sequential(OrderedDict(conv=nn.Sequential(OrderedDict(conv=conv, bn=bn))))


@register_gate(
    "triplet",
    function=triplet_attention,
    title="Triplet attention",
    paper="Misra et al., Rotate to Attend: Convolutional Triplet Attention Module, WACV 2021, arXiv 2010.03045",
    place="residual_end",
    variants={
        "kernel3": {"kernel_size": 3},
        "no_spatial": {"no_spatial": True},
    },
    guidance="When the position in the image should count as much as the channel: 300 parameters at any width. It is "
    "much slower than that suggests, because it pools the map along three axes; measure it in your network first.",
)
class TripletAttention(Gate):
    """Multiply by the mean of three factors sigmoid(BN(conv(z))), where z is the maximum and the mean over H, W or C.

    `cw` takes (C, W) pooled over H, `hc` takes (H, C) pooled over W, and `hw` takes (H, W) pooled over C. Each is a
    k x k convolution from 2 channels to 1 without bias, and a batch norm (eps 1e-5, momentum 0.01): 3 (2 k^2 + 2)
    parameters, 300 for k = 7, for any C. For maps of two spatial axes only. A state dict of the official module loads.
    A new gate is not the identity: its factors are about 0.5.

    Args:
        channels: number of channels, C.
        kernel_size: k, odd.
        no_spatial: omit `hw`, and average two factors.

    Raises:
        InvalidValueError: kernel_size is even; in `forward`, the map has a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from the official code only in the order of operations: the three factors are averaged before one
    multiplication, and values that tie for the maximum share its gradient.

    >>> gate = TripletAttention(64)
    >>> sum(p.numel() for p in gate.parameters())  # 3 * (2 * 7 * 7 + 2)
    300
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        no_spatial: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        _validation.check_odd(kernel_size=kernel_size)
        _validation.check_bool(no_spatial=no_spatial)
        self.cw = branch(kernel_size, device, dtype)
        self.hc = branch(kernel_size, device, dtype)
        self.hw = None if no_spatial else branch(kernel_size, device, dtype)

    def reset_parameters(self) -> None:
        """Reinitialise all convolutions and batch norms with torch's defaults."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return triplet_attention(x, self.cw, self.hc, self.hw)

    def extra_repr(self) -> str:
        return f"{self.channels}"
