"""Gates that are the same for every image, as a layer: zeros for what is closed, whether still computed or not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise.places import change_map, remove_changes

_NAME = "constant_gates"


class ConstantGates(nn.Module):
    """Return a map of `channels` channels: those that `source` names, and zeros elsewhere.

    (N, k, *S) -> (N, channels, *S), with the channels on axis `channel_axis`.

    Args:
        source: for each channel the channel of the input it is, or -1 where it is closed.
        channel_axis: of the map.

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
    """Calls the constant gates that are a child of the layer; it holds their name, so that copies call their own."""

    name: str = _NAME

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        return getattr(layer, self.name)(x)


def call_last(layer: nn.Module, side: str) -> None:
    """Let the constant gates of a layer, if it has some, act behind everything else on that side."""
    if hasattr(layer, _NAME):
        remove_changes(layer, (_Call,))
        change_map(layer, side, _Call())


def hold_constant(layer: nn.Module, side: str, source: list[int], channel_axis: int) -> None:
    """Put constant gates on one side of a layer, as its child."""
    anchor = next(layer.parameters(), None)
    gates = ConstantGates(source, channel_axis)
    layer.add_module(_NAME, gates if anchor is None else gates.to(anchor.device))
    change_map(layer, side, _Call())
