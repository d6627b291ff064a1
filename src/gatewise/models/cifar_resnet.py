"""Residual networks for small images (He et al., 2016, section 4.2), with projection shortcuts."""

from collections.abc import Sequence

from torch import Tensor, nn

from gatewise import _checks


class BasicBlock(nn.Module):
    """Return relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).

    The shortcut is the identity, or a 1x1 convolution with BatchNorm where width or resolution changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, mean over positions, one linear layer.

    (N, in_chans, H, W) -> (N, num_classes); every stage but the first halves the resolution.

    Attributes:
        input_size: (channels, height, width) that the network was designed for; other sizes work.

    Paper: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.

    Differs from the paper: shortcuts that change the width are projections with BatchNorm (the paper's option B),
    as in GaterNet's official code, instead of zero padding.

    >>> import torch
    >>> net = CifarResNet([3, 3, 3], [16, 32, 64])
    >>> sum(p.numel() for p in net.parameters()), net(torch.zeros(2, 3, 32, 32)).shape
    (272474, torch.Size([2, 10]))
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], *, num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__()
        _checks.integer_at_least(1, num_classes=num_classes, in_chans=in_chans, width=min(widths))
        self.input_size = (in_chans, 32, 32)
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        inputs, stages = widths[0], []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            stages.append(
                nn.Sequential(*(BasicBlock(inputs if i == 0 else width, width, s) for i, s in enumerate(strides)))
            )
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
