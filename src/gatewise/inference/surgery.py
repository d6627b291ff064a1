"""Let layers of a network run their active filters, and fold batch norms into convolutions."""

# pyright: basic

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core.layer_types import ANY_CONVOLUTIONS, INSTANCE_NORMS, NORMS
from gatewise.core.types import Example
from gatewise.gaternet import Site
from gatewise.graph import ChannelDependency, Graph, change_map, followed_by_norm
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.active_filters import ActiveFilters
from gatewise.inference.constant_gates import call_last
from gatewise.inference.dynamic_layers import hold_norm, open_layer, open_per_channel, pass_through
from gatewise.inference.fold import can_fold, is_plain_convolution
from gatewise.insertion.mixins import own_class

_WEIGHTED = (*ANY_CONVOLUTIONS, nn.Linear)


def why_not_skippable(backbone: nn.Module, dependency: ChannelDependency, folds: dict[str, str]) -> str | None:
    """Return why the filters of a site cannot be skipped, or None if they can."""
    if not dependency.possible:
        return dependency.reason
    layers = dict(backbone.named_modules())
    for path in (*dependency.producers, *dependency.consumers):
        layer: Any = layers[path]
        if own_class(layer) not in _WEIGHTED:
            return f"{path} is a {type(layer).__name__}, which cannot run a part of its filters"
        if "weight" not in dict(layer.named_parameters(recurse=False)):
            return f"{path} computes its weight at each call, and cannot run a part of its filters"
        if getattr(layer, "groups", 1) > 1:
            return f"{path} is a grouped convolution, which cannot run a part of its filters"
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return f"{path} has padding_mode={layer.padding_mode!r}, and cannot run a part of its filters"
    for path in dependency.elementwise:
        layer = layers[path]
        if path not in folds.values() and not _passes(layer):
            return f"{path} ({type(layer).__name__}) needs all channels"
    return None


def _passes(layer: nn.Module) -> bool:
    if own_class(layer) in NORMS:
        return layer.running_mean is not None  # type: ignore[union-attr]
    return own_class(layer) in (*INSTANCE_NORMS, nn.PReLU) or is_plain_convolution(layer)


def foldable(backbone: nn.Module, followed: dict[str, str]) -> dict[str, str]:
    """Return the paths of convolutions that can absorb the batch norm after them, with the path of the norm."""
    layers = dict(backbone.named_modules())
    return {path: norm for path, norm in followed.items() if can_fold(layers[path], layers[norm])}


class ScatterChannels:
    """Scatter the active channels into a map of zeros, for later layers that need all channels."""

    def __init__(self, active_filters: ActiveFilters, number: int, site: Site) -> None:
        self.active_filters, self.number, self.site = active_filters, number, site

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG002
        chosen = self.active_filters.chosen.get(self.number)
        if chosen is None:
            return x
        axis = self.site.channel_axis
        shape = list(x.shape)
        shape[axis] = self.site.filters
        format_ = torch.channels_last if x.dim() == 4 and axis == 1 else torch.contiguous_format
        whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_)
        return whole.zero_().index_copy_(axis, chosen.channels, x)


def open_layers(
    backbone: nn.Module,
    sites: Sequence[Site],
    dependencies: Sequence[ChannelDependency],
    folds: dict[str, str],
    active_filters: ActiveFilters,
) -> None:
    """Let the gated layers of `backbone`, in eval mode, run their active filters, in place.

    Args:
        backbone: the backbone of a GaterNet, with its hooks.
        sites: the sites of the GaterNet.
        dependencies: channel dependency of each site; layers of impossible ones are not changed.
        folds: batch norm to fold into each convolution, by path.
        active_filters: the active filters that the layers read.
    """
    _make_channels_last(backbone)
    layers: dict[str, Any] = dict(backbone.named_modules())
    reads = {path: number for number, dependency in enumerate(dependencies) for path in dependency.consumers}
    writes = {path: number for number, dependency in enumerate(dependencies) for path in dependency.producers}
    passes = {path: number for number, dependency in enumerate(dependencies) for path in dependency.elementwise}
    for path, layer in layers.items():
        norm = layers[folds[path]] if path in folds else None
        if path in folds.values():
            pass_through(layer)
        elif path in passes:
            open_per_channel(layer, norm, active_filters, passes[path])
        elif path in reads or path in writes or norm is not None:
            open_layer(layer, norm, active_filters, reads.get(path), writes.get(path))
    for number, (site, dependency) in enumerate(zip(sites, dependencies, strict=True)):
        if dependency.zero_fill:
            layer = layers[site.layer]
            change_map(layer, site.side, ScatterChannels(active_filters, number, site))
            call_last(layer, site.side)


def _make_channels_last(backbone: nn.Module) -> None:
    for tensor in itertools.chain(backbone.parameters(), backbone.buffers()):
        if tensor.dim() == 4:  # module.to(memory_format=channels_last) fails for Conv3d
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def fold_norms(backbone: nn.Module, folds: dict[str, str]) -> None:
    """Fold batch norms into the convolutions before them, in place; for eval mode."""
    layers: dict[str, Any] = dict(backbone.named_modules())
    for path, norm_path in folds.items():
        hold_norm(layers[path], layers[norm_path])
        pass_through(layers[norm_path])


def folded(network: nn.Module, example: Example = None) -> nn.Module:
    """Return a copy in eval mode with batch norms folded into the convolutions before them.

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    >>> x = torch.randn(1, 3, 4, 4)
    >>> bool((folded(net)(x) - net(x)).abs().max() < 1e-5)
    True
    """
    copied = full_copy(network).eval().requires_grad_(False)
    fold_norms(copied, foldable(copied, followed_by_norm(Graph(copied, example))))
    return copied
