"""Replicas of nn.DataParallel, on the CPU."""

import importlib
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

replicate: Any = importlib.import_module("torch.nn.parallel.replicate")  # the package has a function of this name


def on_cpu(net: nn.Module, count: int = 2) -> list[Any]:
    """Return replicas of a network as nn.DataParallel makes them for several GPUs."""

    def copied(tensors: list[Tensor], devices: list[Any], detach: bool = False) -> list[list[Tensor]]:
        return [[tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices]

    with (
        mock.patch.object(replicate, "_broadcast_coalesced_reshape", copied),
        mock.patch.object(replicate, "_get_device_index", lambda device, _: device),
    ):
        return replicate.replicate(net, [torch.device("cpu")] * count, detach=not torch.is_grad_enabled())
