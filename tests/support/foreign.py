"""Networks of other projects, written from their formulas and file formats, to test loading their weights."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set every parameter and statistic to a random value, so that a lost one is detected; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            positive = name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight"))
            tensor.copy_(
                0.5 + noise.abs() if positive else noise * (0.5 if tensor.dim() < 2 else tensor[0].numel() ** -0.5)
            )
    return model.eval()


class Gct(nn.Module):
    """x (1 + tanh(gamma s / sqrt(mean s^2 + eps) + beta)), s = alpha sqrt(sum x^2 + eps)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for n in range(len(x)):
            s = self.alpha.flatten() * torch.stack([(m * m).sum().add(1e-5).sqrt() for m in x[n]])
            rest = torch.tanh(self.gamma.flatten() * s / ((s * s).mean() + 1e-5).sqrt() + self.beta.flatten())
            out[n] = x[n] * (1 + rest)[:, None, None]
        return out


def _gated(gate: nn.Module, conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(gate, conv)


class GctBottleneck(nn.Module):
    """The released block: a gate before every convolution, the stride in the first one."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = _gated(Gct(inputs), nn.Conv2d(inputs, width, 1, stride, bias=False))
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _gated(Gct(width), nn.Conv2d(width, width, 3, 1, 1, bias=False))
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _gated(Gct(width), nn.Conv2d(width, outputs, 1, bias=False))
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: Any = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                Gct(inputs), nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class GctResNet50(nn.Module):
    """The released GCT ResNet-50 (3, 4, 6, 3 blocks), whose stem has a different name."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = _gated(Gct(3), nn.Conv2d(3, 64, 7, 2, 3, bias=False))
        self.stem.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            units = []
            for unit in range(count):
                units.append(GctBottleneck(inputs, width, 2 if stage and not unit else 1))
                inputs = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem.bn1(self.stem.conv1(x))), 3, 2, 1)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class MmcvContext(nn.Module):
    """Attention pooling, then layer norm in a bottleneck, added (and multiplied)."""

    def __init__(self, channels: int, ratio: float, *, multiply: bool = False) -> None:
        super().__init__()
        width = int(channels * ratio)
        self.conv_mask = nn.Conv2d(channels, 1, 1)

        def transform() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, width, 1), nn.LayerNorm([width, 1, 1]), nn.ReLU(), nn.Conv2d(width, channels, 1)
            )

        self.channel_add_conv = transform()
        self.channel_mul_conv = transform() if multiply else None

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for image in x:
            attention = torch.softmax(self.conv_mask(image[None]).flatten(), 0)
            context = (image.flatten(1) * attention).sum(1)[None, :, None, None]
            own = image[None]
            if self.channel_mul_conv is not None:
                own = own * torch.sigmoid(self.channel_mul_conv(context))
            out.append(own + self.channel_add_conv(context))
        return torch.cat(out)


def _module(conv: nn.Module, bn: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(OrderedDict([("conv", conv)] + ([("bn", bn)] if bn is not None else [])))


class MmcvNonLocal(nn.Module):
    """x + W softmax(theta phi / sqrt(inner)) g, with an optional batch norm after W."""

    def __init__(self, channels: int, *, norm: bool = False) -> None:
        super().__init__()
        inner = channels // 2
        for name in ("g", "theta", "phi"):
            setattr(self, name, _module(nn.Conv2d(channels, inner, 1)))
        bn = nn.BatchNorm2d(channels) if norm else None
        self.conv_out = _module(nn.Conv2d(inner, channels, 1, bias=not norm), bn)

    def forward(self, x: Tensor) -> Tensor:
        g, theta, phi = (getattr(self, name)(x).flatten(2) for name in ("g", "theta", "phi"))
        weights = torch.softmax(theta.transpose(1, 2) @ phi / theta.shape[1] ** 0.5, -1)
        y = (weights @ g.transpose(1, 2)).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        return x + self.conv_out(y)


class TripletBranch(nn.Module):
    """x sigmoid(BN(conv([max, mean] over the first axis of the three)))."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner = name
        basic = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(2, 1, 7, padding=3, bias=False), bn=nn.BatchNorm2d(1, momentum=0.01))
        )
        setattr(self, name, basic)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.amax(1), x.mean(1)], 1)
        return x * torch.sigmoid(getattr(self, self.inner)(pooled))


class Triplet(nn.Module):
    """The mean of three branches, each pooled over another axis; the names differ between the two layouts."""

    def __init__(self, *, old: bool) -> None:
        super().__init__()
        self.names = ("ChannelGateH", "ChannelGateW", "SpatialGate") if old else ("cw", "hc", "hw")
        for name in self.names:
            setattr(self, name, TripletBranch("spatial" if old else "conv"))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (getattr(self, name) for name in self.names)
        over_height = first(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        over_width = second(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        return (over_height + over_width + third(x)) / 3


class GatedUnit(nn.Module):
    """A unit of the released GaterNet's backbone (with gates) or gater (without)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu((y if gates is None else y * gates[:, :, None, None]) + self.shortcut(x))


class GaterResNet(nn.Module):
    """A ResNet of 6n + 2 layers for 32 x 32 images; its last layer is called `head`."""

    def __init__(self, depth: int, outputs: int, head: str) -> None:
        super().__init__()
        self.conv, self.bn, self.head_name = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), head
        inputs = 16
        for stage, width in enumerate((16, 32, 64)):
            units: OrderedDict[str, nn.Module] = OrderedDict()
            for unit in range((depth - 2) // 6):
                units[f"block{unit + 1}"] = GatedUnit(inputs, width, 2 if stage and not unit else 1)
                inputs = width
            setattr(self, f"stage{stage + 1}", nn.Sequential(units))
        setattr(self, head, nn.Linear(64, outputs))

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        x, at = F.relu(self.bn(self.conv(x))), 0
        for stage in (self.stage1, self.stage2, self.stage3):
            for unit in stage:  # pyright: ignore
                width = unit.conv2.out_channels
                x = unit(x, None if gates is None else gates[:, at : at + width])
                at += width
        return getattr(self, self.head_name)(x.mean((2, 3)))


class ReleasedGaterNet(nn.Module):
    """backbone(x, gates), gates = [clamp(1.2 sigmoid(FC(relu(FC(features)))) - 0.1, 0, 1) > 0.49999]."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.backbone = GaterResNet(depth, 10, "fc")
        gates = (depth - 2) // 6 * (16 + 32 + 64)
        self.gater = nn.ModuleDict({"resnet": GaterResNet(20, 8, "newfc"), "fnn": nn.Module()})
        self.gater["fnn"].fc = nn.Sequential(nn.Linear(8, gates))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gater["fnn"].fc(F.relu(self.gater["resnet"](x)))  # pyright: ignore
        gates = ((1.2 * torch.sigmoid(logits) - 0.1).clamp(0, 1) > 0.49999).float()
        return self.backbone(x, gates), gates

    def checkpoint(self) -> dict[str, Any]:
        """Return the content of their file: two dictionaries, with the prefix of DataParallel."""
        parts = {"backbone_state_dict": self.backbone, "gater_state_dict": self.gater}
        return {name: {f"module.{k}": v for k, v in part.state_dict().items()} for name, part in parts.items()}
