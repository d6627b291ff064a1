"""Optimised `forward` functions of layers, used while their network is optimised for inference.

An optimised forward is set as an attribute of the layer, so the layer keeps its class, name, hooks and parameters.
Undoing only removes the attribute. Folded weights belong to the optimised forward, not to the layer.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatewise.core.hooks import count_hooks
from gatewise.gates.inference_form import InferenceForm
from gatewise.gates.registry import Gate
from gatewise.graph.measure import interleaved_latency
from gatewise.inference.fold import convolve, folded_weights, per_input, scale_and_shift


def pass_on(input: Tensor) -> Tensor:
    """Return the input: the forward of a layer that another one applies."""
    return input


@dataclass(frozen=True)
class NormOnly:
    """A batch norm in eval mode, without the activation that timm's `BatchNormAct2d` adds; see `ChannelAffine`."""

    norm: Any

    def __call__(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)

    def terms(self, dtype: torch.dtype) -> Tensor:
        """Return scale and shift of each channel, (2, C)."""
        return torch.stack(scale_and_shift(self.norm, dtype))


class FactorSlot(threading.local):
    """Pass a gate's factors (1, C) to the weights of the convolution after it, separately in each thread.

    The factors belong to one feature map: after a failure they cannot be applied to a different map.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FactorSlot, ()

    def give(self, x: Tensor, factors: Tensor) -> None:
        """Store the factors of the map x."""
        self._kept = x, factors

    def take(self, x: Tensor) -> Tensor | None:
        """Return the factors of the map x once, and clear the slot."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] is x else None


class FoldedConvolution:
    """Run a convolution with the next batch norm folded into its weights, and with a gate's factors."""

    def __init__(self, layer: Any, norm: Any | None, factor_slot: FactorSlot | None = None) -> None:
        self.layer = layer
        weight, bias = (layer.weight, layer.bias) if norm is None else folded_weights(layer, norm)
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.factor_slot = factor_slot

    def __call__(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        weight = self.weight
        factors = None if self.factor_slot is None else self.factor_slot.take(input)
        if factors is not None:
            weight = gated_weight(self.layer, weight, factors)
        return convolve(self.layer, input, weight, self.bias, output_size=output_size)


def gated_weight(layer: Any, weight: Tensor, factors: Tensor) -> Tensor:
    """Return the weights of a convolution times factors (1, inputs), which equals scaling the input's channels."""
    return weight * per_input(layer, factors.to(weight.dtype))


@dataclass
class GateBeforeConvolution:
    """Run a gate that scales channels, or for a single image let the next convolution scale its weights instead.

    Attributes:
        form: the gate's form, which has `factors`.
        gate: the gate.
        reader: the convolution after the gate.
        pays: for each map shape, whether scaling the weights was faster than scaling the map.
    """

    form: InferenceForm
    gate: Gate
    reader: FoldedConvolution
    pays: dict[tuple[int, ...], bool] = field(default_factory=dict[tuple[int, ...], bool])

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) == 1 and not torch.compiler.is_compiling() and not self._observed and self._pays(x):
            handed_on = self.form.factors(x)  # type: ignore[misc]
            if handed_on is not None:
                self.reader.factor_slot.give(*handed_on)  # type: ignore[union-attr]
                return handed_on[0]
        return self.form.run(x)

    @property
    def _observed(self) -> bool:
        """Whether a hook would see the unscaled map."""
        return count_hooks(self.gate, "output") > 0 or count_hooks(self.reader.layer, "input") > 1

    def _pays(self, x: Tensor) -> bool:
        if x.shape not in self.pays:
            if self.form.factors(x.clone()) is None:  # type: ignore[misc]
                return False
            self.pays[x.shape] = self._weights_pay(x)
        return self.pays[x.shape]

    def _weights_pay(self, x: Tensor) -> bool:
        """Return whether scaling the weights is faster than scaling the map, timed on a copy with the convolution."""
        convolution: Any = self.reader
        if convolution.weight.numel() >= 4 * x.numel():
            return False
        copy = x.clone()  # the gate may overwrite it, and the timed function runs many times
        run, factors = self.form.run, self.form.factors

        def by_map() -> Tensor:
            return convolution(run(copy.copy_(x)))

        def by_weights() -> Tensor:
            y, scale = factors(copy.copy_(x))  # type: ignore[misc]
            convolution.factor_slot.give(y, scale)
            return convolution(y)

        took = interleaved_latency({"map": by_map, "weights": by_weights}, rounds=5, seconds_per_turn=0.002)
        return took["weights"].median_s < took["map"].median_s
