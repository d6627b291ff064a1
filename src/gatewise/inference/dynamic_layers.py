"""Layers for inference that compute only their active filters from their active inputs."""

# pyright: basic

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from gatewise.inference.active_filters import ActiveFilters, Picked
from gatewise.inference.fold import CONVOLVE, scale_and_shift
from gatewise.inference.packed import can_pack, pack, packed_convolution


class _OpenLayer(nn.Module):
    """A layer that holds the weights of all filters and runs the active ones.

    Args:
        active_filters: the active filters of all sites.
        reads: index of the site with its inputs, or None.
        writes: index of the site with its outputs, or None.
    """

    weight: Tensor
    bias: Tensor | None
    options: tuple[Any, ...] = ()
    passes: int | None = None
    channel_axis = 1

    def __init__(self, active_filters: ActiveFilters, reads: int | None, writes: int | None) -> None:
        super().__init__()
        self.active_filters, self.reads, self.writes = active_filters, reads, writes

    def _hold(self, weight: Tensor, bias: Tensor | None) -> None:
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def _weights(self) -> Picked:
        inputs, outputs = self._chosen()
        if inputs is None and outputs is None:
            return self.weight, self.bias
        return self.active_filters.picked((self, inputs, outputs), lambda: self._pick(inputs, outputs))

    def _chosen(self) -> tuple[Any, Any]:
        chosen: dict[Any, Any] = self.active_filters.chosen
        return chosen.get(self.reads), chosen.get(self.writes)

    def _pick(self, inputs: Any, outputs: Any) -> Picked:
        """Return weight, (outputs, inputs, ...), and bias of the active filters."""
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight = outputs.pick(weight, 0)
            bias = None if bias is None else outputs.pick(bias, 0)
        if inputs is not None:
            weight = inputs.pick(weight, 1)
        return weight, bias


class OpenLinear(_OpenLayer):
    """A linear layer: (..., inputs) -> (..., outputs)."""

    channel_axis = -1

    def __init__(self, weight: Tensor, bias: Tensor | None, *sites: Any) -> None:
        super().__init__(*sites)
        self._hold(weight.contiguous(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self._weights())


class OpenConvolution(_OpenLayer):
    """A convolution; its weight is stored as (outputs, *kernel, inputs), to slice inputs in contiguous runs."""

    def __init__(self, layer: Any, weight: Tensor, bias: Tensor | None, *sites: Any) -> None:
        super().__init__(*sites)
        self.convolve = CONVOLVE[type(layer)]
        self.options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self._hold(weight.movedim(1, -1).contiguous(), bias)

    def _pick(self, inputs: Any, outputs: Any) -> Picked:
        weight, bias = super()._pick(None, outputs)
        return (weight if inputs is None else inputs.pick(weight, weight.dim() - 1)), bias

    def forward(self, x: Tensor) -> Tensor:
        if self.active_filters.packs and can_pack(x, self.weight, self.options):
            inputs, outputs = self._chosen()
            remembered = self.active_filters.whole if inputs is outputs is None else self.active_filters.picked
            weights = remembered((self, inputs, outputs, x.shape), lambda: self._pack(inputs, outputs, x))
            return packed_convolution(x, *weights, self.options)
        weight, bias = self._weights()
        return self.convolve(x, weight.movedim(-1, 1), bias, *self.options)

    def _pack(self, inputs: Any, outputs: Any, x: Tensor) -> Picked:
        weight, bias = self._pick(inputs, outputs)
        return pack(weight.movedim(-1, 1), tuple(x.shape), self.options), bias


class OpenDepthwise(_OpenLayer):
    """A depthwise convolution of the active channels."""

    def __init__(
        self, layer: Any, weight: Tensor, bias: Tensor | None, active_filters: ActiveFilters, passes: int
    ) -> None:
        super().__init__(active_filters, None, passes)
        self.passes = passes
        self.convolve = CONVOLVE[type(layer)]
        self.options = (layer.stride, layer.padding, layer.dilation)
        self._hold(weight.contiguous(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, *self._weights(), *self.options, x.shape[1])


class OpenNorm(_OpenLayer):
    """A batch norm in eval mode that cannot be folded into a convolution: x * scale + shift per channel."""

    def __init__(self, norm: Any, active_filters: ActiveFilters, passes: int) -> None:
        super().__init__(active_filters, None, passes)
        self.passes = passes
        self._hold(*scale_and_shift(norm))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._weights()
        shape = [1, -1] + [1] * (x.dim() - 2)
        return x * scale.view(shape) + shift.view(shape)  # type: ignore[union-attr]


def dynamic_layer(
    layer: Any, picked: Picked, active_filters: ActiveFilters, reads: int | None, writes: int | None
) -> nn.Module:
    """Return the dynamic layer that replaces `layer`, with these weights; see `replace_with_dynamic_layers`."""
    if isinstance(layer, nn.Linear):
        return OpenLinear(*picked, active_filters, reads, writes)
    return OpenConvolution(layer, *picked, active_filters, reads, writes)
