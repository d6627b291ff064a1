"""Gates of several images for networks that skip filters."""

import torch

import gatewise as gw


def patterns(net: gw.GaterNet, seed: int) -> torch.Tensor:
    """Return the gates of five images: of the second and fourth the same, one all closed, one all open."""
    generator = torch.Generator().manual_seed(seed)
    gates = (torch.rand(5, net.gate_count, generator=generator) < 0.5).float()
    gates[3], gates[2], gates[4] = gates[1], 0, 1
    return gates
