"""The registered gates as test cases, with default options and in each variant; new gates are included."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.gates.registry import Gate

CHANNELS = 8

every_gate = pytest.mark.parametrize("name", gw.gate_names())


def cases(*slow: str) -> pytest.MarkDecorator:
    """Return a mark that runs a test with each gate in each variant; those that take long are named, as in its ids."""
    ids = {
        f"{name}-{variant}": (name, dict(options))
        for name in gw.gate_names()
        for variant, options in {"defaults": {}, **gw.gate_spec(name).variants}.items()
    }
    assert set(slow) <= set(ids)
    return pytest.mark.parametrize(
        ("name", "options"),
        [
            pytest.param(*values, id=case, marks=[pytest.mark.slow] if case in slow else [])
            for case, values in ids.items()
        ],
    )


every_case = cases()


def random_map(gate: Gate, samples: int = 2, side: int = 5, **kwargs: Any) -> Tensor:
    """Return a map with unequal sides (5, 6, 7), or of the one size that the gate was built for."""
    sides = getattr(gate, "map_size", None) or [side + axis for axis in range(gate.spatial_dims)]
    return torch.randn(samples, gate.channels, *sides, **kwargs)


def perturbed(gate: Gate) -> Gate:
    """Move every parameter away from its initial value, so that no zero hides the layers after it."""
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return gate


def settled(gate: Gate) -> Gate:
    """Set running statistics to those of some maps of positive values, as training would; return in eval mode.

    With fresh ones, a batch norm after perturbed weights passes logits of any size on.
    """
    norms = [layer for layer in gate.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        gate.train()(10 * random_map(gate, samples=8, dtype=next(gate.parameters()).dtype).sigmoid())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return gate.eval()


def make(name: str, options: dict[str, Any], **kwargs: Any) -> Gate:
    return gw.make_gate(name, CHANNELS, **options, **kwargs)


def gradients(gate: nn.Module, x: Tensor, grad_output: Tensor) -> list[Tensor | None]:
    """Return the gradients of the input and of every parameter."""
    x = x.detach().clone().requires_grad_()
    return list(torch.autograd.grad(gate(x), [x, *gate.parameters()], grad_output, allow_unused=True))
