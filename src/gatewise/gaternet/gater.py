"""Gaters, which compute the logits of all gates from an image, and local deciders for single sites."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.core.layer_types import CONVOLUTIONS, NORMS
from gatewise.core.merging import run_twice
from gatewise.core.registry import Registry

Features = Callable[[int], tuple[nn.Module, int]]  # image channels -> features (N, C, *S) -> (N, F), and F
_FEATURES: Registry[Features] = Registry("gater", filled_by="gatewise.models.build")  # see `register_gater`
LIGHT_SHARE = 0.03  # of the backbone's multiply-adds
_LIGHT_SIDES = (4096, 64, 32)  # by number of spatial axes; larger images are average-pooled to at most this
_POOLS: tuple[type[Any], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)  # by number of spatial axes
_HEAD_NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
HEAD_NORMS = ("auto", "batch", "layer", True, False)
_POOLS_TO_SIZE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


class Gater(nn.Module):
    """Compute W2 relu(norm(W1 features(x) + b1)) + b2: image (N, C, *S) -> logits (N, gates).

    Attributes:
        features: network from an image to a vector, (N, F).
        head: linear to `bottleneck`, a norm with head_norm (as in the paper, not in its code), ReLU, linear.
    """

    def __init__(
        self, features: nn.Module, width: int, gates: int, *, bottleneck: int, head_norm: bool | str, gate_bias: float
    ) -> None:
        super().__init__()
        self.features = features
        self.head = decision_head(width, gates, bottleneck=bottleneck, head_norm=head_norm, gate_bias=gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        alone = self.training and len(x) == 1
        return _decided(self.head, run_twice(self.features, x) if alone else self.features(x))


def register_gater(name: str) -> Callable[[Features], Features]:
    """Register a function that builds the features of a gater, so that `GaterNet(gater=name)` finds it."""

    def register(features: Features) -> Features:
        _FEATURES[name] = features
        return features

    return register


class ChosenLogits(nn.Module):
    """Select some logits of a gater: (N, C, *S) -> (N, len(chosen))."""

    chosen: Tensor

    def __init__(self, gater: nn.Module, chosen: list[int]) -> None:
        super().__init__()
        self.gater = gater
        self.register_buffer("chosen", torch.tensor(chosen), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gater(x)[:, self.chosen]


def keep_logits(gater: nn.Module, chosen: list[int]) -> nn.Module:
    """Return a gater with these logits only; the last layer of a gater built by name is sliced in place."""
    if not isinstance(gater, Gater | LocalDecider):
        return ChosenLogits(gater, chosen)
    last: Any = gater.head.fc2
    last.weight, last.bias = (nn.Parameter(p.detach()[chosen], p.requires_grad) for p in (last.weight, last.bias))
    last.out_features = len(chosen)
    return gater


def head_norm_of(head_norm: bool | str, gater: object) -> str:
    """Return the norm in a gater's head: "none", "batch" or "layer"; "auto" is none for the official gater.

    >>> [head_norm_of(norm, "light") for norm in (False, True, "auto", "layer")], head_norm_of("auto", "resnet20")
    (['none', 'batch', 'batch', 'layer'], 'none')
    """
    if head_norm == "auto":
        return "batch" if gater in ("light", "local") else "none"
    return {True: "batch", False: "none"}.get(head_norm, head_norm)  # type: ignore[call-overload]  # pyright: ignore


def decision_head(width: int, gates: int, *, bottleneck: int, head_norm: bool | str, gate_bias: float) -> nn.Sequential:
    """Return linear-(norm)-ReLU-linear, `width` features -> `gates` logits, with final bias `gate_bias`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(fc1=nn.Linear(width, bottleneck))
    if (norm := _HEAD_NORMS[head_norm_of(head_norm, None)]) is not None:
        layers["norm"] = norm(bottleneck)
    layers |= {"act": nn.ReLU(), "fc2": nn.Linear(bottleneck, gates)}
    nn.init.zeros_(layers["fc1"].bias)  # type: ignore[arg-type]  # pyright: ignore
    nn.init.constant_(layers["fc2"].bias, gate_bias)  # type: ignore[arg-type]  # pyright: ignore
    return nn.Sequential(layers)


def _decided(head: Any, features: Tensor) -> Tensor:
    """Return the logits of a head: (N, F) -> (N, gates).

    A batch norm rejects a single image in training, whose variance is 0; it then uses its running statistics.
    """
    norm: Any = getattr(head, "norm", None)
    if not (isinstance(norm, nn.BatchNorm1d) and norm.training and len(features) == 1):
        return head(features)
    statistics = norm.running_mean, norm.running_var
    hidden = nn.functional.batch_norm(head.fc1(features), *statistics, norm.weight, norm.bias, eps=norm.eps)
    return head.fc2(head.act(hidden))


def make_gater(
    gater: str | nn.Module | Callable[[int], nn.Module],
    logits: int,
    gates: int,
    shape: tuple[int, ...],
    macs: int,
    **head: Any,
) -> nn.Module:
    """Build a gater by name or with a function; return a module unchanged.

    Args:
        gater: "resnet20" (as in the paper), "light", a module (N, C, *S) -> (N, logits), or a function from the number
            of logits to such a module.
        logits: number of logits: that of the gates, or of the routes.
        gates: number of gates. The width of "light" depends on it, so that a net with routes has the same features as
            one without.
        shape: (C, *S) of an image, with one to three spatial axes S for "light".
        macs: multiply-adds of the backbone; "light" uses at most 3 % of them.
        **head: bottleneck, head_norm and gate_bias, for gaters built by name.
    """
    if isinstance(gater, nn.Module):
        return gater
    if callable(gater):
        return gater(logits)
    _validation.check_one_of("gater", gater, ("light", *_FEATURES.names(), "local"))
    if gater == "light":
        features, width = _light(shape, LIGHT_SHARE * macs, gates, head["bottleneck"])
    else:
        features, width = _FEATURES[gater](shape[0])
    return Gater(features, width, logits, **head)


def _light(shape: tuple[int, ...], macs: float, gates: int, bottleneck: int) -> tuple[nn.Module, int]:
    """Return three strided convolutions, as wide as `macs` multiply-adds allow, and the number of features."""
    channels, *sides = shape
    axes = len(sides) - 1  # index of the layers for this number of spatial axes
    factor = max(1, math.ceil(max(sides) / _LIGHT_SIDES[axes]))
    factors = [min(factor, side) for side in sides]  # a thin volume keeps at least one position on each axis

    def cost(base: int) -> int:
        total, inputs = bottleneck * (4 * base + gates), channels
        left = [side // factor for side, factor in zip(sides, factors, strict=True)]
        for outputs in (base, 2 * base, 4 * base):
            left = [math.ceil(side / 2) for side in left]
            total, inputs = total + 3 ** len(sides) * inputs * outputs * math.prod(left), outputs
        return total

    base = max([1, *(base for base in range(1, 65) if cost(base) <= macs)])
    layers: list[nn.Module] = [_POOLS[axes](tuple(factors))] if factor > 1 else []
    inputs = channels
    for outputs in (base, 2 * base, 4 * base):
        convolution = CONVOLUTIONS[axes](inputs, outputs, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, NORMS[axes](outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, _POOLS_TO_SIZE[axes](1), nn.Flatten()), inputs


class LocalDecider(nn.Module):
    """Compute the logits of a site from the input of its convolution: (N, C, *S) -> head(spatial mean), (N, gates).

    As in ConvNet-AIG (Veit and Belongie, ECCV 2018, arXiv 1711.11503), but with one gate for each filter instead of one
    for each block.
    """

    def __init__(self, channels: int, channel_axis: int, gates: int, **head: Any) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.head = decision_head(channels, gates, **head)

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self.head.fc1
        _validation.check_unchanged_width("local gates", first.in_features, x.shape[self.channel_axis])
        return _decided(self.head, self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """Return the mean over positions: (N, C, *S), or (N, *S, C) -> (N, C)."""
        axes = [axis for axis in range(1, x.dim()) if axis != self.channel_axis]
        return x.mean(axes, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
