"""Optimised `forward` functions of layers and gates, used while their network is optimised for inference.

An optimised forward is set as an attribute of the layer, so the layer keeps its class, name, hooks and parameters.
Undoing only removes the attribute. Folded weights belong to the optimised forward, not to the layer.
"""

import math
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_weights

from gatewise import errors
from gatewise.core.hooks import count_hooks
from gatewise.gates.gated_channel_transform import GatedChannelTransform, gated_channel_transform
from gatewise.gates.global_context import GlobalContext
from gatewise.gates.kernels.backend import kernels_for
from gatewise.gates.kernels.channels import SharedGradient, scale_channels
from gatewise.gates.kernels.gated_channel_transform import kernel_options, kernel_parameters
from gatewise.gates.squeeze_excite import SqueezeExcite
from gatewise.graph.measure import interleaved_latency
from gatewise.insertion.mixins import own_class

CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def pass_on(x: Tensor) -> Tensor:
    """Return x: the forward of a layer that is folded into another one."""
    return x


@dataclass
class ActivationOnly:
    """Apply the activation of timm's `BatchNormAct2d`, whose norm is folded into another layer."""

    layer: Any

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer.act(self.layer.drop(x))


class FactorSlot(threading.local):
    """Pass a gate's factors (1, C) to the weights of the convolution after it, separately in each thread.

    The factors belong to one feature map: after a failure they cannot be applied to a different map.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FactorSlot, ()

    def give(self, x: Tensor, factors: Tensor | None) -> None:
        """Store the factors of the map x."""
        self._kept = x, factors

    def take(self, x: Tensor) -> Tensor | None:
        """Return the factors of the map x once, and clear the slot."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] is x else None


class FoldedConvolution:
    """Run a convolution with the next batch norm folded into its weights, and with a gate's factors."""

    def __init__(self, layer: Any, norm: Any | None, factor_slot: FactorSlot | None = None) -> None:
        self.layer, self.convolve = layer, CONVOLUTIONS[own_class(layer)]
        self.options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            weight, bias = fuse_conv_bn_weights(weight, bias, *statistics)
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.factor_slot = factor_slot

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.weight
        factors = None if self.factor_slot is None else self.factor_slot.take(x)
        if factors is not None:
            weight = gated_weight(weight, factors)
        return self.convolve(x, weight, self.bias, *self.options)


def gated_weight(weight: Tensor, factors: Tensor) -> Tensor:
    """Return the weights (outputs, C, ...) multiplied by factors (1, C), which equals scaling the input's channels."""
    return weight * factors.to(weight.dtype).view(1, -1, *[1] * (weight.dim() - 2))


def check_no_gradients(x: Tensor) -> None:
    """Raise if x requires a gradient: optimised layers overwrite maps that the backward pass would need."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise errors.InvalidValueError(
            "a network that is optimised for inference has no gradients. Take it back with undo(), or run it under "
            "torch.no_grad()."
        )


class InplacePooledGate:
    """Run `se` or `gc` in place."""

    def __init__(self, gate: SqueezeExcite | GlobalContext) -> None:
        self.gate = gate

    def __call__(self, x: Tensor) -> Tensor:
        check_no_gradients(x)
        if self.gate.why_not_fused(x) or x.device.type != "cpu":
            forward: Any = type(self.gate).forward
            return forward(self.gate, x)
        x, factors, offsets = self.gate.channel_terms(x, SharedGradient(x))
        return scale_channels(x, factors, offsets, out=x)


@dataclass
class FusedNormReluGate:
    """Run `gct` together with the batch norm and the ReLU before it, whose own forwards are then skipped.

    Attributes:
        gate: the gate whose parameters are used.
        norm: the batch norm that is applied here, or None.
        activates: whether a ReLU is applied here.
        owned: whether the input map may be overwritten; otherwise a new map is allocated.
        reader: the convolution after the gate if it can take the factors of a single image, else None.
        pays: for each map shape, whether scaling the weights was faster than scaling the map.
    """

    gate: GatedChannelTransform
    norm: Any | None
    activates: bool
    owned: bool
    reader: FoldedConvolution | None = None
    pays: dict[tuple[int, ...], bool] = field(default_factory=dict[tuple[int, ...], bool])

    def __call__(self, x: Tensor) -> Tensor:
        gate = self.gate
        check_no_gradients(x)
        gate.check_input(x)
        if gate.why_not_fused(x) or x.device.type != "cpu":
            return self._defined(x)
        factor_slot = self._factor_slot if len(x) == 1 else None
        if factor_slot is not None:
            if x.shape not in self.pays:
                self.pays[x.shape] = self._weights_pay(x)
            if self.pays[x.shape]:
                x, factors = self._run(x, hand_on=True)
                factor_slot.give(x, factors)
                return x
        return self._run(x)[0]

    @property
    def _factor_slot(self) -> FactorSlot | None:
        """Return the slot from which the next convolution takes factors, or None.

        None also if a hook would see the unscaled map.
        """
        if self.reader is None or count_hooks(self.gate, "output") or count_hooks(self.reader.layer, "input") > 1:
            return None
        return self.reader.factor_slot

    @property
    def _lower_bound(self) -> float:
        return 0.0 if self.activates else -math.inf

    def _defined(self, x: Tensor) -> Tensor:
        """Return the result computed by the reference implementations of norm, ReLU and gate."""
        if self.norm is not None:
            x = self.norm_alone(x)
        if self.activates:
            x = x.relu()
        return gated_channel_transform(x, *self.gate.numbers, **self.gate.channel_options)

    def norm_alone(self, x: Tensor) -> Tensor:
        """Apply the norm to x without its activation."""
        norm: Any = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)

    def _run(self, x: Tensor, *, hand_on: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return (gated map, None), or (map after norm and ReLU, the gate's factors) if hand_on is set."""
        kernels = kernels_for(x.device, "gated_channel_transform")
        numbers = kernel_parameters((x, *self.gate.numbers))
        factors = numbers[0].new_empty(x.shape[:2]) if hand_on else None
        changes = not hand_on or self.activates or self.norm is not None
        y = None if not changes else x if self.owned else torch.empty_like(x)
        reading = kernels.Reading(self._affine(numbers[0].dtype), self._lower_bound)
        options = self.gate.channel_options
        kernels.infer(x.detach(), y, *numbers, **kernel_options(**options), reading=reading, factors=factors)
        return x if y is None else y, factors

    def _affine(self, dtype: torch.dtype) -> Tensor | None:
        """Return scale and shift of each channel of the norm, (2, C)."""
        if self.norm is None:
            return None
        weight = 1 if self.norm.weight is None else self.norm.weight.detach().to(dtype)
        scale_c = weight * (self.norm.running_var.to(dtype) + self.norm.eps).rsqrt()
        shift = -self.norm.running_mean.to(dtype) * scale_c
        return torch.stack([scale_c, shift if self.norm.bias is None else shift + self.norm.bias.detach().to(dtype)])

    def _weights_pay(self, x: Tensor) -> bool:
        """Return whether scaling the weights is faster than scaling the map, timed on a copy with the convolution."""
        convolution: Any = self.reader
        if convolution.weight.numel() >= 4 * x.numel():
            return False
        copy = x.clone()  # the gate may overwrite it, and the timed function runs many times

        def by_map() -> Tensor:
            return convolution(self._run(copy.copy_(x))[0])

        def by_weights() -> Tensor:
            y, factors = self._run(copy.copy_(x), hand_on=True)
            convolution.factor_slot.give(y, factors)
            return convolution(y)

        took = interleaved_latency({"map": by_map, "weights": by_weights}, rounds=5, seconds_per_turn=0.002)
        return took["weights"].median_s < took["map"].median_s
