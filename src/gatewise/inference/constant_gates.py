"""Constant gates as a layer, with zeros for closed channels."""

import torch
from torch import Tensor, nn

from gatewise.core.hooks import change_map, changes_on, remove_change
from gatewise.insertion.attachment import CallGate, KeepAttached, attach

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


def call_last(layer: nn.Module, side: str) -> None:
    """Move the hook of the constant gates of a layer, if there are any, after all other hooks on that side."""
    for change in changes_on(layer, side):
        if isinstance(change, CallGate) and change.gate == _NAME:
            remove_change(layer, side, change)
            change_map(layer, side, change)


def hold_constant(backbone: nn.Module, path: str, side: str, source: list[int], channel_axis: int) -> None:
    """Add constant gates to one side of a layer, as a child module and a hook, and keep them attached."""
    layer = backbone.get_submodule(path)
    anchor = next(layer.parameters(), None)
    gates = ConstantGates(source, channel_axis)
    attachment = attach(layer, path, side, 1, _NAME, gates if anchor is None else gates.to(anchor.device))
    backbone.register_forward_pre_hook(KeepAttached((attachment,)))
