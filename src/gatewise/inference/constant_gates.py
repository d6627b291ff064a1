"""Constant gates as a layer, with zeros for closed channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise.graph import change_map, remove_changes

_NAME = "constant_gates"


class ConstantGates(nn.Module):
    """Gather the channels in `source`, and set all others to zero.

    (N, k, *S) -> (N, channels, *S), with the channels on axis `channel_axis`.

    Args:
        source: for each output channel the index of the input channel, or -1 if it is closed.
        channel_axis: channel axis of the map.

    >>> gates = ConstantGates([1, -1, 0])
    >>> gates(torch.tensor([[[5.0], [7.0]]]))
    tensor([[[7.],
             [0.],
             [5.]]])
    """

    source: Tensor

    def __init__(self, source: list[int], channel_axis: int = 1) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.register_buffer("source", torch.tensor(source), persistent=False)
        self.is_mask = all(channel in {-1, place} for place, channel in enumerate(source))

    def forward(self, x: Tensor) -> Tensor:
        axis = self.channel_axis
        if self.is_mask and x.shape[axis] == len(self.source):
            shape = [1] * x.dim()
            shape[axis] = -1
            return x * (self.source >= 0).to(x.dtype).view(shape)
        padded = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, 1))], axis)  # -1 counts from the end
        return padded.index_select(axis, self.source % padded.shape[axis])

    def extra_repr(self) -> str:
        return f"channels={len(self.source)}, closed={int((self.source < 0).sum())}"


@dataclass(frozen=True, eq=False)
class _Call:
    """Call the constant gates of the layer, by name, so that a copied layer calls its own."""

    name: str = _NAME

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        return getattr(layer, self.name)(x)


def call_last(layer: nn.Module, side: str) -> None:
    """Move the hook of the constant gates of a layer, if there are any, after all other hooks on that side."""
    if hasattr(layer, _NAME):
        remove_changes(layer, (_Call,))
        change_map(layer, side, _Call())


def hold_constant(layer: nn.Module, side: str, source: list[int], channel_axis: int) -> None:
    """Add constant gates to one side of a layer, as a child module and a hook."""
    anchor = next(layer.parameters(), None)
    gates = ConstantGates(source, channel_axis)
    layer.add_module(_NAME, gates if anchor is None else gates.to(anchor.device))
    change_map(layer, side, _Call())
