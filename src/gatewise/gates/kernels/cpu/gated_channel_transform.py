"""Call the kernels of `gct` for the CPU.

Reference implementation: `gatewise.gates.gated_channel_transform`.
"""

import math
from dataclasses import dataclass

from torch import Tensor, empty_like

from gatewise.gates.kernels.cpu.gated_channel_kernels import ACTIVATIONS, STATISTICS, backward_kernel, forward_kernel
from gatewise.gates.kernels.cpu.scheduling import Layout, match_memory_format


@dataclass(frozen=True)
class Reading:
    """Preprocessing of the input: max(x_c * scale_c + shift_c, lower_bound).

    Attributes:
        affine: scale and shift, (2, C), of a batch norm in eval mode; None for 1 and 0.
        lower_bound: 0 for a ReLU, -inf for none.
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
        alpha: (C,), float32 like gamma and beta (float64 for a float64 map).
        gamma: (C,).
        beta: (C,).
        mode: "l2", "l1", or "sum", which is l1 for non-negative maps.
        eps: added in both roots.
        activation: "tanh" or "sigmoid".
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
    """Apply norm, ReLU and gate to a map in one call.

    Args:
        x: (N, C, *S), dense.
        y: output, may be x; None writes no map.
        alpha: like the following parameters and options, as in `forward`.
        gamma: (C,).
        beta: (C,).
        mode: "l2", "l1" or "sum".
        eps: added in both roots.
        activation: "tanh" or "sigmoid".
        reading: norm and ReLU before the gate.
        factors: (N, C), output for the factors; y is then the map after norm and ReLU, not multiplied by them.
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
    """Return the gradient of x (None if not needed) and the parameters' gradients per sample, (3, N, C)."""
    layout = Layout.of(x)
    grad_output = match_memory_format(grad_output, x)
    gradient = empty_like(x) if needs_map else None
    parameters = alpha.new_empty(3, layout.samples, layout.channels)
    totals = layout.totals(2)
    maps = x, grad_output, alpha, gamma, beta, norms, totals
    options = STATISTICS[mode], ACTIVATIONS[activation], parameters, gradient
    backward_kernel(x, *layout, *maps, *options, reals=(eps,))
    return gradient, parameters
