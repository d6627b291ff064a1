"""Gather-excite (GE): pool each channel over a neighbourhood or the full map, and scale each position by the result."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.layer_types import CONVOLUTIONS, NORMS
from gatewise.gates.functional import at_least_float32, average_pool
from gatewise.gates.registry import Gate, bottleneck_width, register_gate

# Indexed by the number of spatial axes minus one.
_AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def gather_excite(
    x: Tensor, gather: Callable[[Tensor], Tensor] | None = None, mlp: nn.Module | None = None, *, extent: int = 0
) -> Tensor:
    """Return x * sigmoid(up(mlp(gather(x)))), where up is nearest-neighbour interpolation to the size of the map.

    Args:
        x: feature map, (N, C, *S).
        gather: maps x to (N, C, 1, ...) for extent 0, else to (N, C, ceil(S / extent), ...). None is average pooling:
            over all positions, or with window 2 * extent - 1 and stride `extent`, padding not counted.
        mlp: maps the gathered map to logits of the same shape; None is the identity.
        extent: ratio of the sizes of x and of the gathered map; 0 pools over all positions.

    >>> x = torch.tensor([[[1.0, 3.0, 8.0]]])
    >>> gather_excite(x)  # mean 4, sigmoid(4) = 0.9820
    tensor([[[0.9820, 2.9460, 7.8561]]])
    >>> gather_excite(x, extent=2)  # (1 + 3) / 2 = 2 and (3 + 8) / 2 = 5.5: sigmoid(2), sigmoid(2), sigmoid(5.5)
    tensor([[[0.8808, 2.6424, 7.9674]]])
    """
    if gather is None:
        gather = functools.partial(neighbourhood_means, extent=extent) if extent else average_pool
    gathered = gather(x)
    factors = (gathered if mlp is None else mlp(gathered)).sigmoid().to(x.dtype)
    return x * (F.interpolate(factors, x.shape[2:], mode="nearest") if extent else factors)


def neighbourhood_means(x: Tensor, extent: int) -> Tensor:
    """Return average pooling with window 2 * extent - 1 and stride `extent`; padding is not counted.

    >>> neighbourhood_means(torch.tensor([[[1.0, 3.0, 8.0]]]), 2)
    tensor([[[2.0000, 5.5000]]])
    """
    pool, margin = _AVERAGE_POOLS[x.dim() - 3], (extent - 1,) * 2 * (x.dim() - 2)
    wide = x.to(at_least_float32(x.dtype))
    # Pad here and divide by the fraction inside the map: avg_pool3d raises if the map is smaller than the window.
    inside = F.pad(wide.new_ones((1, 1, *x.shape[2:])), margin)
    sums, shares = (pool(padded, 2 * extent - 1, extent) for padded in (F.pad(wide, margin), inside))
    return (sums / shares).to(x.dtype)


@register_gate(
    "ge",
    function=gather_excite,
    title="Gather-excite",
    paper="Hu et al., Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks, NeurIPS 2018, "
    "arXiv 1810.12348",
    place="residual_end",
    variants={
        "extent2": {"extent": 2},
        "extent3": {"extent": 3},
        "learned2": {"extent": 2, "learned": True},
        "learned4": {"extent": 4, "learned": True},
        "learned_map": {"learned": True, "map_size": (5, 6)},
        "mlp": {"mlp": True},
        "learned_mlp": {"extent": 2, "learned": True, "mlp": True},
        "mlp_channels": {"mlp": True, "rd_channels": 3},
        "mlp_divisor": {"mlp": True, "rd_divisor": 8},
        "1d": {"spatial_dims": 1, "extent": 2},
        "3d": {"spatial_dims": 3, "extent": 2, "learned": True},
    },
    no_effect_at_init={
        "spatial_dims": "chooses the rank of the input",
        "map_size": "fixes the size of the maps; any other size raises an error",
    },
    guidance="When a gate must not add parameters (the default form), or should use a neighbourhood instead of the "
    "full map (`extent`). The default form has nothing to learn. A new gate is not the identity.",
)
class GatherExcite(Gate):
    """Scale x by sigmoid(up(gather(x))): gather downsamples each channel, up is nearest-neighbour interpolation back.

    `extent` e is the ratio of the two sizes; 0 means the full map. The paper's three forms:

    - theta-minus (default): average pooling with window 2e - 1 and stride e. No parameters.
    - theta (`learned`): log2(e) depthwise 3x3 convolutions of stride 2, each with batch norm, with ReLU in between; for
      extent 0 one depthwise convolution with kernel size `map_size`, with batch norm.
    - theta-plus (`learned` and `mlp`): then 1x1 convolutions C -> R -> C with ReLU in between. R is `rd_channels`, or
      C * rd_ratio rounded down to a multiple of rd_divisor. With extent 0, `mlp` without `learned` is an SE block.

    Sizes need not be divisible: the gathered size is ceil(size / e). A new gate is not the identity: its factors are
    about 0.5. With learned extent 0, batch norm gets one value per sample and channel, so training needs a batch of at
    least two. Without parameters the number of channels cannot be read from weights: rebuild the default form after
    pruning.

    Args:
        channels: number of channels, C.
        extent: e; with `learned`, 0 or a power of two.
        learned: gather with depthwise convolutions instead of average pooling.
        mlp: add the two 1x1 convolutions.
        map_size: size of the input map, one integer or one per axis; required for learned=True with extent=0 (such a
            gate fits one resolution: insert it stage by stage with include=), and invalid otherwise.
        rd_ratio: R / C.
        rd_channels: R; overrides rd_ratio.
        rd_divisor: R is a multiple of it.
        spatial_dims: number of spatial axes, 1 to 3.

    Raises:
        InvalidValueError: a learned extent that is not 0 or a power of two, `map_size` missing or not allowed, or a
            width without `mlp`; in `forward`, the map has a different number of channels or axes, or not the size
            `map_size`.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from the paper: no known difference. timm's module of this name fails to build or run in most of these
    forms; module names follow timm's (`gather.conv1`, `gather.norm1`, `mlp.fc1`, `mlp.fc2`).

    >>> gate = GatherExcite(1, extent=2, spatial_dims=1)
    >>> gate(torch.tensor([[[1.0, 3.0, 8.0]]]))  # means 2 and 5.5: sigmoid(2), sigmoid(2), sigmoid(5.5)
    tensor([[[0.8808, 2.6424, 7.9674]]])
    >>> sum(p.numel() for p in GatherExcite(64, learned=True, map_size=7).parameters())  # 64 * (7*7 + 2)
    3264
    """

    def __init__(
        self,
        channels: int,
        *,
        extent: int = 0,
        learned: bool = False,
        mlp: bool = False,
        map_size: int | Sequence[int] | None = None,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_dims: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        _validation.check_integer_at_least(0, extent=extent)
        _validation.check_bool(learned=learned, mlp=mlp)
        for name, value in (("rd_ratio", rd_ratio), ("rd_channels", rd_channels), ("rd_divisor", rd_divisor)):
            if not isinstance(value, int | float | None):
                raise errors.InvalidTypeError(f"{name} must be a number, got {_validation.safe_repr(value)}.")
        if not mlp and (rd_ratio, rd_channels, rd_divisor) != (1 / 16, None, 1):
            raise errors.InvalidValueError(
                "rd_ratio, rd_channels and rd_divisor set the width of the MLP. Give mlp=True with them, or omit them."
            )
        self.extent = extent
        self.map_size = self._checked_map_size(learned, map_size)
        width = bottleneck_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.gather = self._gather(channels, device, dtype) if learned else None
        self.mlp = None
        if mlp:
            fc1, fc2 = (self.pointwise(*ends, device, dtype) for ends in ((channels, width), (width, channels)))
            self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.ReLU(inplace=True), fc2=fc2))

    def _checked_map_size(self, learned: bool, map_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if learned and (self.extent == 1 or self.extent & (self.extent - 1)):
            raise errors.InvalidValueError(
                f"a learned extent must be 0, 2, 4, 8 or a larger power of two, got {self.extent}: it is a sequence of "
                f"convolutions of stride 2. Choose such an extent, or learned=False."
            )
        if map_size is None:
            if learned and self.extent == 0:
                raise errors.InvalidValueError(
                    "learned=True with extent=0 is a convolution over the full map and needs map_size, its height and "
                    "width, for example map_size=14. Give it, or choose an extent of 2, 4 or 8, which fits every map."
                )
            return None
        if not (learned and self.extent == 0):
            raise errors.InvalidValueError(
                f"map_size is for learned=True with extent=0 only, got map_size={_validation.safe_repr(map_size)} with "
                f"learned={learned} "
                f"and extent={self.extent}. Omit it: this gate accepts maps of any size."
            )
        sizes = tuple(map_size) if isinstance(map_size, Sequence) else (map_size,) * self.spatial_dims
        for size in sizes:
            _validation.check_integer_at_least(1, map_size=size)
        if len(sizes) != self.spatial_dims:
            raise errors.InvalidValueError(
                f"map_size must be one integer, or one for each of the {self.spatial_dims} axes, got "
                f"{_validation.safe_repr(map_size)}."
            )
        return sizes

    def _gather(self, channels: int, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Sequential:
        """Return the depthwise convolutions, each with batch norm, with ReLU in between."""
        rank = self.spatial_dims - 1
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        steps = self.extent.bit_length() - 1 if self.extent else 1
        for step in range(1, steps + 1):
            window: dict[str, Any] = (
                {"kernel_size": 3, "stride": 2, "padding": 1} if self.extent else {"kernel_size": self.map_size}
            )
            layers[f"conv{step}"] = CONVOLUTIONS[rank](
                channels, channels, **window, groups=channels, bias=False, device=device, dtype=dtype
            )
            layers[f"norm{step}"] = NORMS[rank](channels, device=device, dtype=dtype)
            if step < steps:
                layers[f"act{step}"] = nn.ReLU(inplace=True)
        return nn.Sequential(layers)

    def reset_parameters(self) -> None:
        """Reinitialise all convolutions and batch norms with torch's defaults."""
        for layer in (*(self.gather or ()), *(self.mlp or ())):
            if isinstance(layer, CONVOLUTIONS + NORMS):
                layer.reset_parameters()

    @property
    def channels(self) -> int:
        weight = next(self.parameters(), None)
        if weight is None:
            return self._channels
        return weight.shape[0 if self.gather is not None else 1]  # depthwise convolution, or fc1

    def check_input(self, x: Tensor) -> None:
        """Raise also if the map does not have the size `map_size`."""
        super().check_input(x)
        if self.map_size is not None and tuple(x.shape[2:]) != self.map_size:
            size = tuple(x.shape[2:])
            raise errors.InvalidValueError(
                f"GatherExcite was built for maps of map_size={self.map_size}, got {size}. "
                f"Build it with map_size={size}, or pass images of the size it was built for."
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return gather_excite(x, self.gather, self.mlp, extent=self.extent)

    def extra_repr(self) -> str:
        size = "" if self.map_size is None else f", map_size={self.map_size}"
        return f"{self.channels}, extent={self.extent}{size}"
