"""Forwards of layers that compute only their active filters from their active inputs, or hold a folded norm.

Such a forward is set as an attribute of the layer, which keeps its class, attributes and weights: a network's forward
that reads them finds those of the original network. What is computed with is held in buffers of the layer.
"""

# pyright: basic

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from gatewise.core.layer_types import INSTANCE_NORMS, NORMS, TRANSPOSED_CONVOLUTIONS
from gatewise.inference.active_filters import ActiveFilters, Picked
from gatewise.inference.fold import WithoutNorm, convolve, folded_weights, scale_and_shift
from gatewise.inference.packed import can_pack, pack, packed_convolution
from gatewise.insertion.mixins import own_class


class _Held:
    """The forward of a layer with other weights than its own.

    Args:
        layer: the layer; the weights move with it to another device or dtype.
        weight: the weight, for example with a norm folded in.
        bias: the bias, or None.
    """

    def __init__(self, layer: Any, weight: Tensor | None, bias: Tensor | None) -> None:
        for name, held in (("held_weight", weight), ("held_bias", bias)):
            layer.register_buffer(name, None if held is None else held.detach(), persistent=False)
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.held_weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.held_bias


class HeldConvolution(_Held):
    """A convolution with other weights."""

    def __call__(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return convolve(self.layer, input, self.weight, self.bias, output_size=output_size)


class OpenLayer(_Held):
    """A layer that holds the weights of all filters and runs the active ones.

    Args:
        layer: the layer.
        weight: the weight of all filters, in the order in which it is selected from.
        bias: the bias of all filters, or None.
        active_filters: the active filters of all sites.
        reads: index of the site with its inputs, or None.
        writes: index of the site with its outputs, or None.
    """

    channel_axis = 1  # of its input and output
    outputs_axis, inputs_axis = 0, 1  # of its weight

    def __init__(
        self,
        layer: Any,
        weight: Tensor | None,
        bias: Tensor | None,
        active_filters: ActiveFilters,
        reads: int | None,
        writes: int | None,
    ) -> None:
        super().__init__(layer, weight, bias)
        self.active_filters, self.reads, self.writes = active_filters, reads, writes

    @property
    def takes(self) -> int | None:
        """Index of the site that its input depends on."""
        return self.reads

    def weights(self) -> Picked:
        """Return weight and bias of the active filters."""
        inputs, outputs = self.chosen()
        if inputs is None and outputs is None:
            return self.weight, self.bias
        return self.active_filters.picked((self, inputs, outputs), lambda: self.pick(inputs, outputs))

    def chosen(self) -> tuple[Any, Any]:
        """Return the active inputs and outputs, None for all."""
        chosen: dict[Any, Any] = self.active_filters.chosen
        return chosen.get(self.reads), chosen.get(self.writes)

    def pick(self, inputs: Any, outputs: Any) -> Picked:
        """Return weight and bias of these inputs and outputs."""
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight = outputs.pick(weight, self.outputs_axis)
            bias = None if bias is None else outputs.pick(bias, 0)
        if inputs is not None:
            weight = inputs.pick(weight, self.inputs_axis)
        return weight, bias


class OpenLinear(OpenLayer):
    """A linear layer: (..., inputs) -> (..., outputs)."""

    channel_axis = -1

    def __call__(self, input: Tensor) -> Tensor:
        return F.linear(input, *self.weights())


class OpenConvolution(OpenLayer):
    """A convolution; its weight is stored as (outputs, *kernel, inputs), to slice inputs in contiguous runs."""

    inputs_axis = -1

    def __call__(self, input: Tensor) -> Tensor:
        layer = self.layer
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        if self.active_filters.packs and can_pack(input, self.weight, options):
            inputs, outputs = self.chosen()
            remembered = self.active_filters.whole if inputs is outputs is None else self.active_filters.picked

            def packed() -> Picked:
                weight, bias = self.pick(inputs, outputs)
                return pack(weight.movedim(-1, 1), tuple(input.shape), options), bias

            return packed_convolution(input, *remembered((self, inputs, outputs, input.shape), packed), options)
        weight, bias = self.weights()
        return convolve(layer, input, weight.movedim(-1, 1), bias)


class OpenTransposed(OpenLayer):
    """A transposed convolution; its weight is (inputs, outputs, *kernel)."""

    outputs_axis, inputs_axis = 1, 0

    def __call__(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return convolve(self.layer, input, *self.weights(), output_size=output_size)


class _PerChannel(OpenLayer):
    """A layer that acts on each channel of a site separately."""

    def __init__(
        self, layer: Any, weight: Tensor | None, bias: Tensor | None, active_filters: ActiveFilters, passes: int
    ) -> None:
        super().__init__(layer, weight, bias, active_filters, None, passes)

    @property
    def takes(self) -> int | None:
        return self.writes


class OpenDepthwise(_PerChannel):
    """A depthwise convolution of the active channels, also a transposed one."""

    def __call__(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return convolve(self.layer, input, *self.weights(), groups=input.shape[1], output_size=output_size)


class OpenInstanceNorm(_PerChannel):
    """An instance norm with the statistics of its input."""

    def pick(self, inputs: Any, outputs: Any) -> Picked:
        return (None, None) if self.weight is None else super().pick(inputs, outputs)  # type: ignore[return-value]

    def __call__(self, input: Tensor) -> Tensor:
        weight, bias = self.weights()
        return F.instance_norm(input, weight=weight, bias=bias, eps=self.layer.eps)


class OpenPReLU(_PerChannel):
    """A PReLU with one slope for each channel."""

    def __call__(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weights()[0])


class OpenNorm(_PerChannel):
    """A norm with running statistics that cannot be folded into a convolution: x * scale + shift per channel."""

    def __call__(self, input: Tensor) -> Tensor:
        scale, shift = self.weights()
        shape = [1, -1] + [1] * (input.dim() - 2)
        return input * scale.view(shape) + shift.view(shape)  # type: ignore[union-attr]


def open_layer(layer: Any, norm: Any | None, active_filters: ActiveFilters, reads: Any, writes: Any) -> None:
    """Let a convolution or linear layer run its active filters, with `norm` folded in; see `OpenLayer`."""
    weight, bias = _with_norm(layer, norm)
    form = OpenTransposed
    if isinstance(layer, nn.Linear):
        form, weight = OpenLinear, weight.contiguous()
    elif own_class(layer) not in TRANSPOSED_CONVOLUTIONS:
        form, weight = OpenConvolution, weight.movedim(1, -1).contiguous()
    layer.__dict__["forward"] = form(layer, weight, bias, active_filters, reads, writes)


def open_per_channel(layer: Any, norm: Any | None, active_filters: ActiveFilters, passes: int) -> None:
    """Let a norm, a PReLU or a depthwise convolution, with `norm` folded in, run the active channels of a site."""
    kind = own_class(layer)
    if kind is nn.PReLU:
        if layer.weight.numel() == 1:
            return
        form, held = OpenPReLU, (layer.weight, None)
    elif kind in NORMS + INSTANCE_NORMS and layer.running_mean is not None:
        form, held = OpenNorm, scale_and_shift(layer)
    elif kind in INSTANCE_NORMS:
        form, held = OpenInstanceNorm, (layer.weight, layer.bias)
    else:
        form, held = OpenDepthwise, _with_norm(layer, norm)
    layer.__dict__["forward"] = form(layer, *held, active_filters, passes)


def hold_norm(convolution: Any, norm: Any) -> None:
    """Let a convolution compute with the weights that have the norm after it folded in."""
    convolution.__dict__["forward"] = HeldConvolution(convolution, *folded_weights(convolution, norm))


def pass_through(norm: Any) -> None:
    """Let a norm that was folded into the convolution before it only run the activation that is part of it."""
    norm.__dict__["forward"] = WithoutNorm(norm)


def _with_norm(layer: Any, norm: Any | None) -> Picked:
    return (layer.weight, layer.bias) if norm is None else folded_weights(layer, norm)
