"""Gaters: networks from an image to the logits of all gates, built by name or given; and deciders for one site each."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import _validation
from gatewise.models.build import build_backbone
from gatewise.spec import ModelSpec

GATERS = ("light", "resnet20", "local")
LIGHT_SHARE = 0.03  # of the backbone's multiply-adds
_LIGHT_SIDE = 64  # larger images are averaged down to at most this


class Gater(nn.Module):
    """Return W2 relu(norm(W1 features(x) + b1)) + b2: an image (N, C, H, W) -> logits (N, gates).

    Attributes:
        features: from an image to a vector, (N, F).
        head: FC to `bottleneck`, BatchNorm if asked for (the paper has it, its released code does not), ReLU, FC.
    """

    def __init__(
        self, features: nn.Module, width: int, gates: int, *, bottleneck: int, head_norm: bool, gate_bias: float
    ) -> None:
        super().__init__()
        self.features = features
        self.head = decision_head(width, gates, bottleneck=bottleneck, head_norm=head_norm, gate_bias=gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ChosenLogits(nn.Module):
    """Return some of a gater's logits: (N, C, H, W) -> (N, len(chosen))."""

    chosen: Tensor

    def __init__(self, gater: nn.Module, chosen: list[int]) -> None:
        super().__init__()
        self.gater = gater
        self.register_buffer("chosen", torch.tensor(chosen), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gater(x)[:, self.chosen]


def keep_logits(gater: nn.Module, chosen: list[int]) -> nn.Module:
    """Return a gater that gives these logits only; one built by name has its last layer shrunk, in place."""
    if not isinstance(gater, Gater | LocalDecider):
        return ChosenLogits(gater, chosen)
    last: Any = gater.head.fc2
    last.weight, last.bias = (nn.Parameter(p.detach()[chosen], p.requires_grad) for p in (last.weight, last.bias))
    last.out_features = len(chosen)
    return gater


def decision_head(width: int, gates: int, *, bottleneck: int, head_norm: bool, gate_bias: float) -> nn.Sequential:
    """Return FC-b-(BatchNorm)-ReLU-FC from `width` features to `gates` logits whose bias starts at `gate_bias`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(fc1=nn.Linear(width, bottleneck))
    if head_norm:
        layers["norm"] = nn.BatchNorm1d(bottleneck)
    layers |= {"act": nn.ReLU(), "fc2": nn.Linear(bottleneck, gates)}
    nn.init.zeros_(layers["fc1"].bias)  # type: ignore[arg-type]  # pyright: ignore
    nn.init.constant_(layers["fc2"].bias, gate_bias)  # type: ignore[arg-type]  # pyright: ignore
    return nn.Sequential(layers)


def make_gater(
    gater: str | nn.Module | Callable[[int], nn.Module], gates: int, shape: tuple[int, ...], macs: int, **head: Any
) -> nn.Module:
    """Build a gater by name, or with a function of the number of gates, or take a module as it is.

    Args:
        gater: "resnet20" (GaterNet's official one), "light", a module (N, C, H, W) -> (N, gates), or a function that
            builds one.
        gates: how many logits it must give.
        shape: (C, H, W) of an image.
        macs: of the backbone, of which "light" takes at most 3 %.
        **head: bottleneck, head_norm and gate_bias of the gaters built by name.
    """
    if isinstance(gater, nn.Module):
        return gater
    if callable(gater):
        return gater(gates)
    _validation.check_one_of("gater", gater, GATERS)
    if gater == "resnet20":
        features: Any = build_backbone(ModelSpec("resnet20"), in_chans=shape[0])
        width: int = features.fc.in_features
        features.fc = nn.Identity()
        return Gater(features, width, gates, **head)
    features, width = _light(shape, LIGHT_SHARE * macs, gates, head["bottleneck"])
    return Gater(features, width, gates, **head)


def _light(shape: tuple[int, ...], macs: float, gates: int, bottleneck: int) -> tuple[nn.Module, int]:
    """Return three strided convolutions, as wide as `macs` multiply-adds allow, and their number of features."""
    channels, height, width = shape
    factor = max(1, math.ceil(max(height, width) / _LIGHT_SIDE))

    def cost(base: int) -> int:
        total, inputs, sides = bottleneck * (4 * base + gates), channels, [height // factor, width // factor]
        for outputs in (base, 2 * base, 4 * base):
            sides = [math.ceil(side / 2) for side in sides]
            total, inputs = total + 9 * inputs * outputs * sides[0] * sides[1], outputs
        return total

    base = max([1, *(base for base in range(1, 65) if cost(base) <= macs)])
    layers: list[nn.Module] = [nn.AvgPool2d(factor)] if factor > 1 else []
    inputs = channels
    for outputs in (base, 2 * base, 4 * base):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), inputs


class LocalDecider(nn.Module):
    """Decide a site's gates from the input of its own convolution: (N, C, *S) -> head(mean over positions), (N, gates).

    The way of ConvNet-AIG (Veit and Belongie, ECCV 2018, arXiv 1711.11503), with a gate for each filter instead of one
    for the whole block.
    """

    def __init__(self, channels: int, channel_axis: int, gates: int, **head: Any) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.head = decision_head(channels, gates, **head)

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self.head.fc1
        _validation.check_unchanged_width("local gates", first.in_features, x.shape[self.channel_axis])
        return self.head(self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """Return the mean over positions: (N, C, *S), or (N, *S, C) -> (N, C)."""
        axes = [axis for axis in range(1, x.dim()) if axis != self.channel_axis]
        return x.mean(axes, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
