"""Networks with one to three spatial axes drawn at random: U-Nets, transposed layers, forwards that read layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw
from gatewise.core.layer_types import CONVOLUTIONS, NORMS, TRANSPOSED_CONVOLUTIONS
from gatewise.errors import InvalidValueError
from support.random_networks import Residual, Scripted

CHANNELS = 4  # between blocks
SIDES = (8, 8, 4)  # of a map, by number of spatial axes


class Layers:
    """The layers of torch for one number of spatial axes."""

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def conv(self, inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Module:
        return CONVOLUTIONS[self.axes - 1](inputs, outputs, kernel, **{"padding": kernel // 2, **options})

    def transposed(self, inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Module:
        return TRANSPOSED_CONVOLUTIONS[self.axes - 1](inputs, outputs, kernel, **{"padding": kernel // 2, **options})

    def up(self, inputs: int, outputs: int) -> nn.Module:
        return self.transposed(inputs, outputs, 2, stride=2, padding=0)

    def norm(self, channels: int) -> nn.Module:
        layer: Any = NORMS[self.axes - 1](channels)
        for parameter in (layer.weight, layer.running_var):
            nn.init.uniform_(parameter, 0.5, 1.5)
        for parameter in (layer.bias, layer.running_mean):
            nn.init.normal_(parameter, std=0.5)
        return layer


class UNet(nn.Module):
    """One level of a U-Net: down, up to the size of the shortcut, concatenated, and two convolutions."""

    def __init__(self, make: Layers, c: int, w: int) -> None:
        super().__init__()
        self.down = nn.Sequential(make.conv(c, w, stride=2), make.norm(w), nn.ReLU(), make.conv(w, w), nn.ReLU())
        self.up = make.transposed(w, c, stride=2)
        self.norm = make.norm(c)
        self.both = nn.Sequential(make.conv(2 * c, w), make.norm(w), nn.ReLU(), make.conv(w, c))

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.down(x), output_size=x.shape[2:])
        return self.both(torch.cat([x, torch.relu(self.norm(up))], 1))


class PadsByStride(nn.Module):
    """As transformers' MobileNetV2: pads by the kernel and the stride of its layers."""

    def __init__(self, make: Layers, c: int, w: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make.conv(c, w, padding=0), make.conv(w, c, padding=0)])
        self.norms = nn.ModuleList([make.norm(w), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            if isinstance(layer, CONVOLUTIONS):
                x = F.pad(
                    x, [(kernel - stride) // 2 for kernel in layer.kernel_size for stride in layer.stride[:1] * 2]
                )
            x = norm(layer(input=x)).relu()
        return x


class ReadsWidth(nn.Module):
    """Reshapes to the width of its layer."""

    def __init__(self, make: Layers, c: int, w: int) -> None:
        super().__init__()
        self.first, self.second = make.conv(c, w), make.conv(w, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y.reshape(len(x), self.first.weight.shape[0], *x.shape[2:]).relu()
        return self.second(y.reshape(len(x), self.second.in_channels, *x.shape[2:]))


class UsesWeights(nn.Module):
    """Uses the weights of its first layer again, transposed, and asks whether it has a bias."""

    def __init__(self, make: Layers, c: int, w: int) -> None:
        super().__init__()
        self.make = make
        self.first, self.norm, self.second = make.conv(c, w, bias=False), make.norm(w), make.conv(w, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        y = y.relu() if self.first.bias is None else y + 1
        back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.make.axes - 1]
        return self.second(y) + back(y, self.first.weight, padding=1)


class ReadsType(nn.Module):
    """Treats its layers by their class."""

    def __init__(self, make: Layers, c: int, w: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make.conv(c, w), make.norm(w), nn.PReLU(), make.conv(w, c)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if type(layer) in (*CONVOLUTIONS, nn.PReLU) else torch.tanh(layer(x) * layer.weight.mean())
        return x


def double(make: Layers, c: int, w: int) -> nn.Module:
    return nn.Sequential(make.conv(c, w), make.norm(w), nn.ReLU(), make.conv(w, c), make.norm(c))


def hourglass(make: Layers, c: int, w: int) -> nn.Module:
    return nn.Sequential(make.conv(c, w, stride=2), make.norm(w), nn.ReLU(), make.up(w, c), make.norm(c))


def transposed(make: Layers, c: int, w: int) -> nn.Module:
    return nn.Sequential(
        make.transposed(c, w, bias=False), make.norm(w), nn.ReLU(), make.transposed(w, w), nn.ReLU(), make.conv(w, c, 1)
    )


def grouped(make: Layers, c: int, w: int) -> nn.Module:
    return nn.Sequential(
        *(make.transposed(c, w, groups=2), make.norm(w), nn.ReLU()),
        *(make.transposed(w, w, groups=2), make.norm(w), nn.ReLU(), make.conv(w, c, groups=2)),
    )


def depthwise(make: Layers, c: int, w: int) -> nn.Module:
    return nn.Sequential(
        *(make.conv(c, w, 1), make.norm(w), nn.ReLU()),
        *(
            make.transposed(w, w, groups=w),
            make.norm(w),
            nn.ReLU(),
            make.conv(w, w, groups=w),
            make.transposed(w, c, 1),
        ),
    )


def other_norms(make: Layers, c: int, w: int) -> nn.Module:
    instance = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[make.axes - 1]
    return nn.Sequential(
        *(make.conv(c, w), instance(w, affine=True), nn.PReLU(w)),
        *(make.transposed(w, w), instance(w), nn.PReLU(), make.conv(w, w)),
        *(instance(w, track_running_stats=True), nn.ReLU(), make.conv(w, w), nn.GroupNorm(2, w), nn.ReLU()),
        make.conv(w, c),
    )


Block = Callable[[Layers, int, int], nn.Module]
BLOCKS: dict[str, Block] = {
    block.__name__: block
    for block in (
        *(double, hourglass, transposed, grouped, depthwise, other_norms),
        *(UNet, PadsByStride, ReadsWidth, UsesWeights, ReadsType),
    )
}


def unet(axes: int, blocks: Sequence[str], width: int = 4, *, residual: bool = False, seed: int = 0) -> nn.Module:
    """Return a network of these blocks for maps of 2 channels, in eval mode."""
    torch.manual_seed(seed)
    make = Layers(axes)
    bodies = [BLOCKS[name](make, CHANNELS, width) for name in blocks]
    wrapped = [Residual(body) if residual else body for body in bodies]
    return nn.Sequential(make.conv(2, CHANNELS), make.norm(CHANNELS), *wrapped, make.conv(CHANNELS, 3, 1)).eval()


def volumes(axes: int, count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, *[SIDES[axes - 1]] * axes, generator=torch.Generator().manual_seed(seed))


# Number of spatial axes, blocks in a row, the width inside, whether each is residual, seed of weights and gates.
drawn_unets = st.tuples(
    st.integers(1, 3),
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=2),
    st.sampled_from([4, 6]),
    st.booleans(),
    st.integers(0, 1000),
)
DrawnUNet = tuple[int, list[str], int, bool, int]


def gated_unet(drawn: DrawnUNet, letters: str) -> gw.GaterNet:
    """Return the GaterNet that was drawn, with scripted gates; the example is left out if it has nothing to gate."""
    axes, blocks, width, residual, seed = drawn

    try:
        backbone = unet(axes, blocks, width, residual=residual, seed=seed)
        return gw.GaterNet(backbone, gater=Scripted.of(letters, seed), example=volumes(axes, 2)).eval()
    except InvalidValueError as error:
        assume("no filters to gate" not in str(error))
        raise
