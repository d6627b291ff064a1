"""Residual networks for small images (He et al., 2016, section 4.2): basic and bottleneck units, two kinds of shortcut.

Shapes: N samples, C channels, H x W positions.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from gatewise import errors
from gatewise.core import _validation

EXPANSION = 4  # output width of a bottleneck unit over its inner width


class ChannelPadding(nn.Module):
    """Subsample positions by `stride` and append `channels` zero channels: the paper's option A, without parameters.

    (N, C, H, W) -> (N, C + channels, ceil(H / stride), ceil(W / stride))

    >>> import torch
    >>> ChannelPadding(2, channels=1)(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
    tensor([0., 0.])
    """

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels={self.channels}"


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _padding(inputs: int, outputs: int, stride: int) -> nn.Module:
    if outputs < inputs:
        raise errors.InvalidValueError(
            f"shortcut='padding' cannot reduce {inputs} channels to {outputs}. Choose shortcut='projection'."
        )
    return ChannelPadding(stride, outputs - inputs)


SHORTCUTS = {"projection": _projection, "padding": _padding}


def _shortcut(kind: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the identity if width and resolution do not change, or else a shortcut of this kind."""
    return nn.Sequential() if stride == 1 and inputs == outputs else SHORTCUTS[kind](inputs, outputs, stride)


class BasicBlock(nn.Module):
    """Return relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), both convolutions 3x3, the first with the stride.

    (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "projection") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(shortcut, inputs, outputs, stride)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """Return relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x)): 1x1, 3x3 with the stride, 1x1.

    (N, inputs, H, W) -> (N, outputs, H / stride, W / stride); the inner width is outputs / 4, so `outputs` must be a
    multiple of 4.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "projection") -> None:
        super().__init__()
        if outputs % EXPANSION:
            raise errors.InvalidValueError(
                f"the output width of a bottleneck unit must be a multiple of {EXPANSION}, got {outputs}. "
                f"Its inner width is a quarter of it."
            )
        inner = outputs // EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(shortcut, inputs, outputs, stride)
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        return self.act3(self.bn3(self.conv3(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for small images: 3x3 stem, stages of residual units, global average pooling, one linear layer.

    (N, in_chans, H, W) -> (N, num_classes); every stage but the first halves the resolution.

    Args:
        blocks: number of units of each stage.
        widths: output width of each stage.
        stem: width of the stem; None means that of the first stage.
        bottleneck: use units of three convolutions, with an inner width of a quarter of the output width, not of two.
        shortcut: kind of shortcut where width or resolution changes: "projection", a 1x1 convolution with BatchNorm
            (the paper's option B), or "padding", subsampling and zero channels (option A, no parameters). All other
            shortcuts are the identity.
        num_classes: outputs of the classifier.
        in_chans: channels of the image.

    Attributes:
        input_size: default (channels, height, width) of the input; other sizes work.

    Raises:
        InvalidValueError: a width, num_classes or in_chans is below 1, the shortcut is unknown, the width of a
            bottleneck unit is not a multiple of 4, or "padding" would have to reduce the number of channels.

    Paper: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.

    Differs from the paper: the default shortcut is the projection, as in GaterNet's official code.

    >>> import torch
    >>> net = CifarResNet([3, 3, 3], [16, 32, 64])
    >>> sum(p.numel() for p in net.parameters()), net(torch.zeros(2, 3, 32, 32)).shape
    (272474, torch.Size([2, 10]))
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        stem: int | None = None,
        bottleneck: bool = False,
        shortcut: str = "projection",
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        inputs = widths[0] if stem is None else stem
        _validation.check_integer_at_least(1, num_classes=num_classes, in_chans=in_chans, width=min(inputs, *widths))
        _validation.check_one_of("shortcut", shortcut, SHORTCUTS)
        block = BottleneckBlock if bottleneck else BasicBlock
        self.input_size = (in_chans, 32, 32)
        self.conv1 = nn.Conv2d(in_chans, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            units = [block(inputs if i == 0 else width, width, s, shortcut) for i, s in enumerate(strides)]
            stages.append(nn.Sequential(*units))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.act1(self.bn1(self.conv1(x))))
        return self.fc(self.pool(x).flatten(1))
