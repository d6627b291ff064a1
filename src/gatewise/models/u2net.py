"""U²-Net: a U-Net whose blocks are U-Nets themselves (Qin et al., Pattern Recognition 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.gates.functional import at_least_float32

_HEIGHTS = (7, 6, 5, 4)  # heights of the first four stages; the last two use dilation instead of pooling


class REBNCONV(nn.Module):
    """3x3 convolution, BatchNorm and ReLU: (N, C_in, H, W) -> (N, C_out, H, W). Named as in the paper's code."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class ResidualU(nn.Module):
    """Residual U-block of the paper: U(F(x)) + F(x), (N, C_in, H, W) -> (N, C_out, H, W).

    Args:
        height: L of the paper's RSU-L: L encoder steps with pooling in between, the last with dilation 2 instead.
        inputs: C_in.
        middle: channels inside.
        outputs: C_out.
        dilated: RSU-LF: dilations 1, 2, 4, ... instead of pooling.
    """

    def __init__(self, height: int, inputs: int, middle: int, outputs: int, *, dilated: bool = False) -> None:
        super().__init__()
        dilations = [2**step for step in range(height)] if dilated else [1] * (height - 1) + [2]
        self.project = REBNCONV(inputs, outputs)
        widths = [outputs, *[middle] * height]
        self.down = nn.ModuleList(
            REBNCONV(a, b, dilation) for a, b, dilation in zip(widths, widths[1:], dilations, strict=False)
        )
        self.up = nn.ModuleList(
            REBNCONV(2 * middle, outputs if step == 0 else middle, dilations[step]) for step in range(height - 1)
        )
        self.pools = not dilated

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.project(x)
        skips: list[Tensor] = []
        for step, block in enumerate(self.down):
            if self.pools and 0 < step < len(self.down) - 1:
                x = _halved(x)
            x = block(x)
            skips.append(x)
        x = skips.pop()
        for block in reversed(self.up):
            skip = skips.pop()
            x = block(torch.cat([_resized(x, skip), skip], 1))
        return x + shortcut


@dataclass(frozen=True, kw_only=True)
class U2NetConfig:
    """Inner and output channels of each stage, from the first to the last."""

    encoder: tuple[tuple[int, int], ...]
    decoder: tuple[tuple[int, int], ...]  # from the deepest to the first

    def build(self, *, num_classes: int = 1, in_chans: int = 3) -> nn.Module:
        """Build the network; its weights are drawn from torch's global generator."""
        return U2Net(self, num_classes=num_classes, in_chans=in_chans)


FULL = U2NetConfig(
    encoder=((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)),
    decoder=((256, 512), (128, 256), (64, 128), (32, 64), (16, 64)),
)
SMALL = U2NetConfig(encoder=((16, 64),) * 6, decoder=((16, 64),) * 5)


class U2Net(nn.Module):
    """U²-Net: (N, in_chans, H, W) -> logits (N, num_classes, H, W), for any H and W.

    In training mode it returns (fused, side 1, ..., side 6), all with the size of the input, for deep supervision: the
    loss is the sum of the losses of all outputs. In eval mode it returns only the fused logits.

    Args:
        form: FULL or SMALL.
        num_classes: number of output maps; 1 for a binary segmenter.
        in_chans: channels of the image.

    Differs from the paper's code: returns logits instead of their sigmoid.

    >>> net = U2Net(SMALL).eval()
    >>> net(torch.zeros(1, 3, 33, 50)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([1, 1, 33, 50]), 1131181)
    """

    side_weight = 1.0  # weight of each side output in the loss

    def __init__(self, form: U2NetConfig, *, num_classes: int = 1, in_chans: int = 3) -> None:
        super().__init__()
        _validation.check_integer_at_least(1, num_classes=num_classes, in_chans=in_chans)
        widths = [in_chans, *(outputs for _, outputs in form.encoder)]
        self.encoder = nn.ModuleList(
            _stage(number, width, *stage)
            for number, (width, stage) in enumerate(zip(widths, form.encoder, strict=False))
        )
        decoder: list[nn.Module] = []
        deeper = widths[-1]
        for number, (middle, outputs) in zip(reversed(range(len(form.decoder))), form.decoder, strict=True):
            decoder.append(_stage(number, deeper + widths[number + 1], middle, outputs))
            deeper = outputs
        self.decoder = nn.ModuleList(decoder)
        sides = [*(outputs for _, outputs in reversed(form.decoder)), widths[-1]]
        self.sides = nn.ModuleList(nn.Conv2d(width, num_classes, 3, padding=1) for width in sides)
        self.fuse = nn.Conv2d(len(sides) * num_classes, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the fused logits; in training mode (fused, side 1, ..., side 6)."""
        image, skips = x, list[Tensor]()
        for number, stage in enumerate(self.encoder):
            x = stage(_halved(x) if number else x)
            skips.append(x)
        maps = [skips.pop()]
        for stage in self.decoder:
            skip = skips.pop()
            maps.append(stage(torch.cat([_resized(maps[-1], skip), skip], 1)))
        sides = [_resized(_precise(side(x)), image) for side, x in zip(self.sides, reversed(maps), strict=True)]
        fused = self.fuse(torch.cat(sides, 1))
        return (fused, *sides) if self.training else fused


def _stage(number: int, inputs: int, middle: int, outputs: int) -> ResidualU:
    """Return the block of one stage; stage 0 has full resolution."""
    if number < len(_HEIGHTS):
        return ResidualU(_HEIGHTS[number], inputs, middle, outputs)
    return ResidualU(4, inputs, middle, outputs, dilated=True)


def _precise(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: half-precision rounding would cause many ties."""
    return logits.to(at_least_float32(logits.dtype))


def _halved(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
