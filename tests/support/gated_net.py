"""A small network with gates that are not at their start, and a batch for it."""

import torch
from torch import nn

import gatewise as gw


def net(gate: str) -> nn.Module:
    torch.manual_seed(0)
    model = gw.make_model(f"resnet20+{gate}", num_classes=3, seed=0)
    for found in gw.gates_in(model).values():
        for parameter in found.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 3)]
