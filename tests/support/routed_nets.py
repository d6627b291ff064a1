"""Small networks with routes, and images for them."""

from typing import Any

import torch
from torch import Tensor, nn

import gatewise as gw


def backbone() -> nn.Sequential:
    """Return three convolutions with batch norms for 8x8 images; two of them can be gated."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def routed(routes: int = 3, **options: Any) -> gw.GaterNet:
    return gw.GaterNet(backbone(), routes=routes, image_size=(8, 8), **options)


def images(count: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
