"""Gated channel transformation (GCT): channels compete or cooperate through a normalised norm."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.functional import at_least_float32, spatial_axes
from gatewise.kernels.backend import BACKENDS, takes_fused
from gatewise.kernels.gated_channel_transform import fused_gated_channel_transform, why_not_fused
from gatewise.registry import Gate, register_gate

_EPS = 1e-5  # compared by identity: whoever passes 1e-5 passes another object

# Each maps the gate's logit z to its factor. "relu" is written with where, whose derivative at exactly 0 is 1: that of
# torch.relu and (in torch 2.15) of clamp is 0 there, where a fresh gate sits, which would never start to learn.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda z: 1 + torch.tanh(z),
    "sigmoid": torch.sigmoid,
    "relu": lambda z: 1 + torch.where(z < 0, 0.0, z),
    "elu": lambda z: 1 + nn.functional.elu(z),
}


def channel_norms(x: Tensor, mode: str | float, eps: float, after_relu: bool) -> Tensor:
    """Return one norm per channel: (N, C, *S) -> (N, C, 1, ...), in float32 for half types."""
    axes, dtype = spatial_axes(x), at_least_float32(x.dtype)
    if mode == "l1":
        return (x if after_relu else x.abs()).sum(axes, keepdim=True, dtype=dtype)
    if mode == "l2" and torch.compiler.is_compiling():  # squares cost nothing there, and have the simpler gradient
        return (x.to(dtype).square().sum(axes, keepdim=True) + eps).sqrt()
    if mode == "l2":
        return (torch.linalg.vector_norm(x, 2, axes, keepdim=True, dtype=dtype).square() + eps).sqrt()  # pyright: ignore
    p = float(mode)
    size = x.to(dtype) if after_relu else x.to(dtype).abs()
    # Dividing by the largest entry first changes nothing in exact arithmetic and keeps size**p finite for large p.
    scale = size.detach().amax(axes, keepdim=True).clamp(min=1)
    return scale * ((size / scale).pow(p).sum(axes, keepdim=True) + eps * scale.pow(-p)).pow(1 / p)


def gated_channel_transform(
    x: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str | float = "l2",
    eps: float = 1e-5,
    after_relu: bool = False,
    activation: str = "tanh",
) -> Tensor:
    """Return x * (1 + tanh(gamma * s / sqrt(mean_c s^2 + eps) + beta)) with s = alpha * sqrt(sum x^2 + eps).

    Args:
        x: the map, (N, C, *S).
        alpha: weight of each channel's norm, (1, C, 1, ...).
        gamma: sign and strength of the reaction to it: competition if positive, cooperation if negative.
        beta: bias of the gate.
        mode: "l2" as above; "l1" takes s = alpha * sum |x| and divides by mean_c |s| + eps; a number p >= 1 takes
            s = alpha * (sum |x|^p + eps)^(1/p) with the divisor of "l2".
        eps: keeps both roots away from zero; inside them, so an all-zero map has finite gradients.
        after_relu: x is known to be non-negative, so absolute values are left out ("l2" has none).
        activation: "tanh", "sigmoid", "relu" or "elu": 1 + tanh(z), sigmoid(z), 1 + relu(z), 1 + elu(z).

    Two channels with norms 3 and 4 (after the mean of their squares, 12.5, is divided out: 0.85 and 1.13):

    >>> x = torch.tensor([[[3.0], [4.0]]])
    >>> one, zero = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    >>> gated_channel_transform(x, one, zero, zero).flatten()  # gamma = beta = 0: the identity
    tensor([3., 4.])
    >>> (gated_channel_transform(x, one, one, zero) / x - 1).atanh().flatten()
    tensor([0.8485, 1.1314])
    """
    norms = alpha * channel_norms(x, mode, eps, after_relu)  # (N, C, 1, ...)
    if mode == "l1":
        divisor = norms.abs().mean(1, keepdim=True) + eps
    else:
        divisor = (norms.square().mean(1, keepdim=True) + eps).sqrt()
    return x * ACTIVATIONS[activation](norms * (gamma / divisor) + beta).to(x.dtype)


@register_gate(
    "gct",
    function=gated_channel_transform,
    title="Gated channel transformation",
    paper="Yang et al., Gated Channel Transformation for Visual Recognition, CVPR 2020, arXiv 1909.11519",
    place="before_conv",
    variants={
        "l1": {"mode": "l1"},
        "l1_after_relu": {"mode": "l1", "after_relu": True},
        "l1.5": {"mode": 1.5},
        "l3": {"mode": 3.0},
        "sigmoid": {"activation": "sigmoid"},
        "relu": {"activation": "relu"},
        "elu": {"activation": "elu"},
        "1d": {"spatial_dims": 1},
        "3d": {"spatial_dims": 3},
    },
    no_effect_at_init={
        "spatial_dims": "chooses the rank of the input",
        "backend": "chooses how the same numbers are computed",
    },
    guidance="Where trained weights are to be kept: a fresh gate changes no output and brings three numbers for each "
    "channel. It sits before every convolution, so its price is time for reading and writing every map again, "
    "not multiply-adds. Keep weight decay off `beta` (`parameter_groups` does); in small networks compare "
    "`gct@stage_end`, which is cheaper.",
)
class GatedChannelTransform(Gate):
    """Gate each channel by y_c = x_c (1 + tanh(gamma_c s_c / rms(s) + beta_c)), where s_c = alpha_c ||x_c||.

    Parameters `alpha`, `gamma` and `beta` have shape (1, C, 1, ...) and start at 1, 0 and 0, so a fresh gate is
    the identity bit for bit (`activation="sigmoid"` is not: it starts at a factor of 0.5). The paper's recipe
    does not decay `beta`.

    `backend` chooses how the same numbers are computed: "reference" is the definition, "fused" one operation that keeps
    only the map and a number for each channel (ValueError with the reason where it cannot run), "auto" either.

    `epsilon` is the official module's name of `eps`.

    Refuses, with ValueError: an unknown mode or activation, p < 1, eps <= 0, eps and epsilon together; at run time a
    map of other channels or rank; with TypeError: integer maps. A state dict of the official module loads.

    Differs from the paper: follows the official code where the two disagree (the mean over channels, not the sum,
    stands inside the second root, so eps is not scaled by C); general p takes |x|^p, without which odd p is no
    norm; norms of half-precision maps are computed in float32.

    Note that "GCT" also names the Gaussian Context Transformer (CVPR 2021), which is another mechanism.

    >>> gate = GatedChannelTransform(2)
    >>> x = torch.tensor([[[[3.0]], [[4.0]]]])
    >>> bool((gate(x) == x).all())
    True
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("beta",)

    def __init__(
        self,
        channels: int,
        *,
        mode: str | float = "l2",
        eps: float = _EPS,
        after_relu: bool = False,
        activation: str = "tanh",
        spatial_dims: int = 2,
        epsilon: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        if epsilon is not None:
            if eps is not _EPS:
                raise errors.InvalidValueError(
                    f"eps and epsilon are two names of one option, got {eps} and {epsilon}. Give eps alone."
                )
            eps = epsilon
        if isinstance(mode, str):
            _validation.check_one_of("mode", mode, ["l1", "l2"])
        else:
            _validation.check_number_between(1, 1e6, mode=mode)
        _validation.check_number_between(1e-30, 1, eps=eps)
        _validation.check_bool(after_relu=after_relu)
        self.mode, self.eps, self.after_relu = mode, eps, after_relu
        self.activation = _validation.check_one_of("activation", activation, ACTIVATIONS)
        self.backend = _validation.check_one_of("backend", backend, BACKENDS)
        shape = (1, channels) + (1,) * self.spatial_dims
        self.alpha = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.gamma = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to 1, gamma and beta to 0."""
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    @property
    def channels(self) -> int:
        return self.alpha.shape[1]

    @property
    def identity_at_init(self) -> bool:
        return self.activation != "sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        numbers, options = self.numbers, self.channel_options
        why_not_fusible = why_not_fused(x, *numbers, mode=self.mode, after_relu=self.after_relu)
        if takes_fused(self.backend, "gct", why_not_fusible):
            return fused_gated_channel_transform(x, *numbers, definition=gated_channel_transform, **options)
        return gated_channel_transform(x, *numbers, **options)

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, gamma and beta."""
        return self.alpha, self.gamma, self.beta

    @property
    def channel_options(self) -> dict[str, Any]:
        """The options that the function takes."""
        return {"mode": self.mode, "eps": self.eps, "after_relu": self.after_relu, "activation": self.activation}

    def why_not_fused(self, x: Tensor) -> str:
        """Return why no kernel can stand in for this gate now, or ''."""
        return why_not_fused(x, *self.numbers, mode=self.mode, after_relu=self.after_relu)

    def extra_repr(self) -> str:
        return f"{self.channels}, mode={self.mode!r}"
