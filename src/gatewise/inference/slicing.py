"""Remove outputs, inputs or channels of one layer, in place."""

# pyright: basic

from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core.layer_types import CHANNEL_NORMS, TRANSPOSED_CONVOLUTIONS


def output_count(layer: Any) -> int:
    """Return the number of outputs of a convolution or linear layer, from its weight.

    >>> output_count(nn.Linear(4, 3)), output_count(nn.ConvTranspose2d(8, 6, 2, groups=2))
    (3, 6)
    """
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        return layer.weight.shape[1] * layer.groups
    return layer.weight.shape[0]


def keep_outputs(layer: Any, kept: Tensor) -> None:
    """Keep these outputs of a convolution or linear layer; an equal number per group of a grouped convolution.

    >>> layer = nn.Conv2d(2, 3, 1)
    >>> second = layer.weight[1].clone()
    >>> keep_outputs(layer, torch.tensor([1]))
    >>> layer, bool((layer.weight[0] == second).all())
    (Conv2d(2, 1, kernel_size=(1, 1), stride=(1, 1)), True)
    """
    select = _columns if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else _rows
    _replace(layer, "weight", select(layer, kept))
    if layer.bias is not None:
        _replace(layer, "bias", layer.bias[kept])
    _resize(layer, outputs=len(kept))


def keep_inputs(layer: Any, kept: Tensor) -> None:
    """Keep these inputs of a convolution or linear layer; an equal number per group of a grouped convolution.

    >>> layer = nn.Linear(4, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, 2, 3, 4]])
    >>> keep_inputs(layer, torch.tensor([1, 3]))
    >>> layer.weight.data
    tensor([[2., 4.]])
    """
    select = _rows if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else _columns
    _replace(layer, "weight", select(layer, kept))
    _resize(layer, inputs=len(kept))


def _rows(layer: Any, kept: Tensor) -> Tensor:
    """Return the weight with these entries of its first axis, over which the groups are concatenated."""
    return layer.weight[kept]


def _columns(layer: Any, kept: Tensor) -> Tensor:
    """Return the weight with these entries of its second axis, each of which belongs to one group."""
    groups = getattr(layer, "groups", 1)
    width = layer.weight.shape[1]
    of_group = kept.view(groups, -1) - width * torch.arange(groups, device=kept.device)[:, None]
    blocks = [block[:, own] for block, own in zip(layer.weight.chunk(groups), of_group, strict=True)]
    return torch.cat(blocks)


def silence_inputs(layer: Any, closed: Tensor) -> None:
    """Zero the weights of these inputs of a convolution or linear layer; the inputs are kept.

    >>> layer = nn.Linear(3, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, 2, 3]])
    >>> silence_inputs(layer, torch.tensor([0]))
    >>> layer.weight.data
    tensor([[0., 2., 3.]])
    """
    with torch.no_grad():
        if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
            layer.weight[closed] = 0
            return
        width = layer.weight.shape[1]
        blocks = layer.weight.chunk(getattr(layer, "groups", 1))
        for channel in closed.tolist():
            blocks[channel // width][:, channel % width] = 0


def keep_channels(layer: Any, kept: Tensor) -> None:
    """Keep these channels of a depthwise convolution, a batch or instance norm, or a PReLU.

    >>> norm = nn.BatchNorm2d(3)
    >>> keep_channels(norm, torch.tensor([0, 2]))
    >>> norm.num_features, norm.weight.shape, norm.running_var.shape
    (2, torch.Size([2]), torch.Size([2]))
    """
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(layer, name, None)
        if value is not None and value.shape[0] > 1:  # a PReLU may have one parameter for all channels
            _replace(layer, name, value[kept])
    if isinstance(layer, CHANNEL_NORMS):
        layer.num_features = len(kept)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.numel()
    else:
        layer.groups = len(kept)
        _resize(layer, inputs=len(kept), outputs=len(kept))


def _replace(layer: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(layer, name)
    value = value.detach().clone()
    setattr(layer, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def _resize(layer: Any, **sizes: int) -> None:
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    for name, size in sizes.items():
        setattr(layer, f"{'in' if name == 'inputs' else 'out'}_{kind}", size)
