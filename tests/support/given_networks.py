"""Small networks as users give them: without a run."""

import torch
from torch import nn

import gatewise as gw


def plain_network(classes: int, *, normalised: bool = False) -> nn.Sequential:
    """Return two convolutions and a classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *([nn.BatchNorm2d(8)] if normalised else []),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def gater_network(side: int, classes: int, *, normalised: bool = False) -> gw.GaterNet:
    """Return the same network in a GaterNet for images of side x side pixels."""
    return gw.GaterNet(plain_network(classes, normalised=normalised), gate_bias=0.0, image_size=(side, side))
