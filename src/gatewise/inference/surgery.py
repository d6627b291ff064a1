"""Replace layers of a network with dynamic layers, and fold batch norms into convolutions."""

# pyright: basic

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core.hooks import share_hooks
from gatewise.core.layer_types import CONVOLUTIONS, NORMS
from gatewise.core.types import Example
from gatewise.gaternet import Site
from gatewise.gates.registry import Gate
from gatewise.graph import ChannelDependency, Graph, change_map, followed_by_norm
from gatewise.inference.active_filters import ActiveFilters
from gatewise.inference.constant_gates import ConstantGates, call_last
from gatewise.inference.dynamic_layers import OpenDepthwise, OpenNorm, dynamic_layer
from gatewise.inference.fold import can_fold, folded_weights, is_plain_convolution, without_norm
from gatewise.insertion.mixins import own_class

_WEIGHTED = (*CONVOLUTIONS, nn.Linear)


def why_not_skippable(backbone: nn.Module, dependency: ChannelDependency, folds: dict[str, str]) -> str | None:
    """Return why the filters of a site cannot be skipped, or None if they can."""
    if not dependency.possible:
        return dependency.reason
    layers = dict(backbone.named_modules())
    for path in (*dependency.producers, *dependency.consumers):
        layer: Any = layers[path]
        if own_class(layer) not in _WEIGHTED:
            return f"{path} is a {type(layer).__name__}, which cannot run a part of its filters"
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
    return is_plain_convolution(layer)


def foldable(backbone: nn.Module, followed: dict[str, str]) -> dict[str, str]:
    """Return the paths of convolutions that can absorb the batch norm after them, with the path of the norm."""
    layers = dict(backbone.named_modules())
    return {path: norm for path, norm in followed.items() if _folds(layers[path], layers[norm])}


def _folds(convolution: nn.Module, norm: nn.Module) -> bool:
    has_gate = any(isinstance(child, Gate) for child in norm.children())  # the activation's Sequential would run it
    return can_fold(convolution, norm) and (own_class(norm) in NORMS or not has_gate)


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


def replace_with_dynamic_layers(
    backbone: nn.Module,
    sites: Sequence[Site],
    dependencies: Sequence[ChannelDependency],
    folds: dict[str, str],
    active_filters: ActiveFilters,
) -> None:
    """Replace the gated layers of `backbone`, in eval mode, with dynamic layers, in place.

    Args:
        backbone: the backbone of a GaterNet, with its hooks.
        sites: the sites of the GaterNet.
        dependencies: channel dependency of each site; layers of impossible ones are not replaced.
        folds: batch norm to fold into each convolution, by path.
        active_filters: the active filters that the dynamic layers read.
    """
    _make_channels_last(backbone)
    layers: dict[str, Any] = dict(backbone.named_modules())
    reads = {path: number for number, dependency in enumerate(dependencies) for path in dependency.consumers}
    writes = {path: number for number, dependency in enumerate(dependencies) for path in dependency.producers}
    passes = {path: number for number, dependency in enumerate(dependencies) for path in dependency.elementwise}
    for path, layer in layers.items():
        norm = layers[folds[path]] if path in folds else None
        picked: Any = (layer.weight, layer.bias) if own_class(layer) in _WEIGHTED else None
        if norm is not None:
            picked = folded_weights(layer.weight, layer.bias, norm)
        if path in passes and own_class(layer) in CONVOLUTIONS:
            _exchange(backbone, path, OpenDepthwise(layer, picked[0], picked[1], active_filters, passes[path]))
        elif path in reads or path in writes or path in folds:
            _exchange(backbone, path, dynamic_layer(layer, picked, active_filters, reads.get(path), writes.get(path)))
        if norm is not None:
            _exchange(backbone, folds[path], without_norm(norm))
        elif path in passes and own_class(layer) in NORMS and path not in folds.values():
            _exchange(backbone, path, OpenNorm(layer, active_filters, passes[path]))
    for number, (site, dependency) in enumerate(zip(sites, dependencies, strict=True)):
        if dependency.zero_fill:
            layer = backbone.get_submodule(site.layer)
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
        layer, norm = layers[path], layers[norm_path]
        weight, bias = folded_weights(layer.weight, layer.bias, norm)
        layer.weight, layer.bias = nn.Parameter(weight.detach(), False), nn.Parameter(bias.detach(), False)  # type: ignore[union-attr]  # pyright: ignore
        _exchange(backbone, norm_path, without_norm(norm))


def folded(network: nn.Module, example: Example = None) -> nn.Module:
    """Return a copy in eval mode with batch norms folded into the convolutions before them.

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    >>> folded(net)
    Sequential(
      (0): Conv2d(3, 2, kernel_size=(1, 1), stride=(1, 1))
      (1): Identity()
    )
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    fold_norms(copied, foldable(copied, followed_by_norm(Graph(copied, example))))
    return copied


def _exchange(backbone: nn.Module, path: str, new: nn.Module) -> None:
    """Replace a layer, and keep its hooks and the gates that they call."""
    parent, _, name = path.rpartition(".")
    owner = backbone.get_submodule(parent)
    old = getattr(owner, name)
    share_hooks(old, new)
    for child, gate in old.named_children():
        if isinstance(gate, Gate | ConstantGates):
            new.add_module(child, gate)
    setattr(owner, name, new)
