"""`gct` for the CPU: what its kernels are called with.

The definition to match: `gatewise.gates.gated_channel_transform`.
"""

import math
from dataclasses import dataclass

from torch import Tensor, empty_like

from gatewise.kernels.cpu.gated_channel_kernels import ACTIVATIONS, STATISTICS, backward_kernel, forward_kernel
from gatewise.kernels.cpu.scheduling import Layout, match_memory_format


@dataclass(frozen=True)
class Reading:
    """Values read as max(x_c * stretch_c + shift_c, floor).

    Attributes:
        affine: stretch and shift, (2, C), of a batch norm in eval mode; None for 1 and 0.
        lower_bound: 0 for a ReLU.
    """

    affine: Tensor | None = None
    lower_bound: float = -math.inf


_AS_IT_IS = Reading()


def forward(
    x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, *, mode: str, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Return the gated map and the norms (N, C) of the channels of x.

    Args:
        x: (N, C, *S), dense.
        alpha: (C,), as gamma and beta float32 (float64 for a map of float64).
        gamma: (C,).
        beta: (C,).
        mode: "l2", "l1", or "sum", which is l1 for maps that are known not to be negative.
        eps: of both roots.
        activation: which factor.
    """
    y = empty_like(x)
    return y, _run_forward(x, y, (alpha, gamma, beta), mode, eps, activation, _AS_IT_IS, None)


def infer(
    x: Tensor,
    y: Tensor | None,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str,
    eps: float,
    activation: str,
    reading: Reading,
    factors: Tensor | None = None,
) -> None:
    """Gate a map that is read through a norm and a ReLU which nobody has run.

    Args:
        x: (N, C, *S), dense.
        y: takes the result, may be x; None writes none.
        alpha: as the following options those of `forward`.
        gamma: (C,).
        beta: (C,).
        mode: of the gate.
        eps: of the gate.
        activation: of the gate.
        reading: what x is read through.
        factors: (N, C), takes the factors; y is then what was read, not multiplied by them.
    """
    _run_forward(x, y, (alpha, gamma, beta), mode, eps, activation, reading, factors)


def _run_forward(
    x: Tensor,
    y: Tensor | None,
    parameters: tuple[Tensor, Tensor, Tensor],
    mode: str,
    eps: float,
    activation: str,
    reading: Reading,
    factors: Tensor | None,
) -> Tensor:
    layout = Layout.of(x)
    norms = parameters[0].new_empty(layout.samples, layout.channels)
    totals = layout.totals(1)
    maps = x, y, *parameters, norms, totals
    options = STATISTICS[mode], ACTIVATIONS[activation], reading.affine, factors
    forward_kernel(x, *layout, *maps, *options, reals=(eps, reading.lower_bound))
    return norms


def backward(
    grad_output: Tensor,
    x: Tensor,
    norms: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str,
    eps: float,
    activation: str,
    needs_map: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x (None unless asked for) and of the parameters for each sample, (3, N, C)."""
    layout = Layout.of(x)
    grad_output = match_memory_format(grad_output, x)
    gradient = empty_like(x) if needs_map else None
    parameters = alpha.new_empty(3, layout.samples, layout.channels)
    totals = layout.totals(2)
    maps = x, grad_output, alpha, gamma, beta, norms, totals
    options = STATISTICS[mode], ACTIVATIONS[activation], parameters, gradient
    backward_kernel(x, *layout, *maps, *options, reals=(eps,))
    return gradient, parameters
