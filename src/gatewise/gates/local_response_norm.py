"""Local response normalisation (LRN) over neighbouring channels, as in AlexNet; it has no parameters."""

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.gates.functional import at_least_float32
from gatewise.gates.registry import Gate, register_gate


def local_response_norm(x: Tensor, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    """Return x / (k + alpha * s)^beta, where s is the sum of x^2 over a window of `size` channels, (N, C, *S).

    Channels are padded with zeros. Squares and sums of half-precision maps are computed in float32.

    Three channels at one position, a window of three: sums of squares 1 + 4, 1 + 4 + 9 and 4 + 9.

    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> local_response_norm(x, size=3, alpha=1.0, beta=1.0, k=0.5).flatten()  # 1 / 5.5, 2 / 14.5, 3 / 13.5
    tensor([0.1818, 0.1379, 0.2222])
    """
    squares = x.to(at_least_float32(x.dtype)).square()
    reach = (size - 1) // 2
    padded = nn.functional.pad(squares, (0, 0) * (x.dim() - 2) + (reach, reach))  # (N, C + size - 1, *S)
    sums = padded.unfold(1, size, 1).sum(-1)  # (N, C, *S)
    return (x / (k + alpha * sums).pow(beta)).to(x.dtype)


@register_gate(
    "lrn",
    function=local_response_norm,
    title="Local response normalisation",
    paper="Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NeurIPS 2012",
    place="inner",
    variants={
        "narrow": {"size": 3},
        "strong": {"alpha": 0.1, "k": 1.0},
        "root": {"alpha": 0.1, "beta": 0.5},
        "1d": {"spatial_dims": 1},
        "3d": {"spatial_dims": 3},
    },
    no_effect_at_init={"spatial_dims": "chooses the rank of the input"},
    guidance="As a historical baseline, in networks without batch norm: it has no parameters. A new gate is not the "
    "identity: the paper's `k=2` divides every value by at least 1.68, which changes the output of a trained network.",
)
class LocalResponseNorm(Gate):
    """Divide x_c by (k + alpha s_c)^beta, where s_c is the sum of x^2 over a window of `size` channels centred on c.

    There are no parameters, so the number of channels cannot be read from weights: rebuild the gate after pruning. The
    paper normalises after the ReLU of a convolution and before the next one: the place "inner". A new gate is not the
    identity (except with beta 0, or with k 1 and alpha 0): the paper's k = 2 divides every value by at least
    2^0.75 = 1.68.

    Args:
        channels: number of channels, C.
        size: number of channels in the window, odd.
        alpha: weight of the sum of squares.
        beta: exponent.
        k: constant term.
        spatial_dims: number of spatial axes, 1 to 3.

    Raises:
        InvalidValueError: size is even (the paper's formula would sum size + 1 channels), alpha or beta is below 0, or
            k is below 1e-6 (an all-zero map would divide by zero); in `forward`, the map has a different number of
            channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from torch.nn.LocalResponseNorm, which divides alpha by size and has k = 1 by default: the two are equal
    with alpha_torch = size * alpha and k = 2. AlexNet's alpha = 1e-4 is alpha_torch = 5e-4.

    >>> gate = LocalResponseNorm(3, size=3, alpha=1.0, beta=1.0, k=0.5)
    >>> gate(torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]])).flatten()  # 1 / 5.5, 2 / 14.5, 3 / 13.5
    tensor([0.1818, 0.1379, 0.2222])
    """

    def __init__(
        self,
        channels: int,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        spatial_dims: int = 2,
        device: torch.device | str | None = None,  # noqa: ARG002  (every gate has it; this one has no parameters)
        dtype: torch.dtype | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        _validation.check_odd(size=size)
        _validation.check_number_between(0, 1e6, alpha=alpha, beta=beta)
        _validation.check_number_between(1e-6, 1e6, k=k)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def reset_parameters(self) -> None:
        """Do nothing: there are no parameters."""

    @property
    def identity_at_init(self) -> bool:
        return self.beta == 0 or (self.alpha == 0 and self.k == 1)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return local_response_norm(x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k)

    def extra_repr(self) -> str:
        return f"{self.channels}, size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
