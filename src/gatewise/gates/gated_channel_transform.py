"""Gated channel transformation (GCT): each channel is scaled by a function of its normalised norm."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gates.functional import at_least_float32, spatial_axes
from gatewise.gates.inference_form import InferenceForm, InferencePattern
from gatewise.gates.kernels.backend import BACKENDS, takes_fused
from gatewise.gates.kernels.gated_channel_inference import FusedNormReluGate
from gatewise.gates.kernels.gated_channel_transform import fused_gated_channel_transform, why_not_fused
from gatewise.gates.registry import Gate, register_gate

_EPS = 1e-5

# Functions from the logit z to the factor. "relu" uses torch.where because its derivative at exactly 0 is 1. The
# derivative of torch.relu and (in torch 2.15) of clamp is 0 there, so a new gate, whose z is 0, would never learn.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda z: 1 + torch.tanh(z),
    "sigmoid": torch.sigmoid,
    "relu": lambda z: 1 + torch.where(z < 0, 0.0, z),
    "elu": lambda z: 1 + nn.functional.elu(z),
}


def channel_norms(x: Tensor, mode: str | float, eps: float, after_relu: bool) -> Tensor:
    """Return one norm per channel: (N, C, *S) -> (N, C, 1, ...), in float32 for half-precision input."""
    axes, dtype = spatial_axes(x), at_least_float32(x.dtype)
    if mode == "l1":
        return (x if after_relu else x.abs()).sum(axes, keepdim=True, dtype=dtype)
    if mode == "l2" and torch.compiler.is_compiling():  # the compiler fuses the squares, and their gradient is simpler
        return (x.to(dtype).square().sum(axes, keepdim=True) + eps).sqrt()
    if mode == "l2":
        return (torch.linalg.vector_norm(x, 2, axes, keepdim=True, dtype=dtype).square() + eps).sqrt()  # pyright: ignore
    p = float(mode)
    size = x.to(dtype) if after_relu else x.to(dtype).abs()
    # Divide by the maximum first: equal in exact arithmetic, and size**p stays finite for large p.
    scale = size.detach().amax(axes, keepdim=True).clamp(min=1)
    return scale * ((size / scale).pow(p).sum(axes, keepdim=True) + eps * scale.pow(-p)).pow(1 / p)


def pooled_channel_norms(x: Tensor, mode: str | float, eps: float, after_relu: bool) -> Tensor:
    """Return `channel_norms` for "l1" and "l2" from means over positions, which runtimes compute in their own layout.

    >>> x = torch.randn(2, 3, 4, 5)
    >>> bool(torch.allclose(pooled_channel_norms(x, "l2", 1e-5, False), channel_norms(x, "l2", 1e-5, False)))
    True
    """
    axes = spatial_axes(x)
    positions = math.prod(x.shape[2:])
    if mode == "l1":
        return (x if after_relu else x.abs()).mean(axes, keepdim=True) * positions
    return ((x * x).mean(axes, keepdim=True) * positions + eps).sqrt()


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
        x: feature map, (N, C, *S).
        alpha: weight of each channel norm, (1, C, 1, ...).
        gamma: weight of the normalised norm, (1, C, 1, ...): competition if positive, cooperation if negative.
        beta: bias of the gate, (1, C, 1, ...).
        mode: "l2" as above; "l1" uses s = alpha * sum |x| and the divisor mean_c |s| + eps; a number p >= 1 uses
            s = alpha * (sum |x|^p + eps)^(1/p) and the divisor of "l2".
        eps: added inside both roots, so that an all-zero map has finite gradients.
        after_relu: x is known to be non-negative, so absolute values are omitted ("l2" has none).
        activation: "tanh", "sigmoid", "relu" or "elu": 1 + tanh(z), sigmoid(z), 1 + relu(z), 1 + elu(z).

    Two channels with norms 3 and 4. Their mean square is 12.5, so the normalised norms are 0.85 and 1.13:

    >>> x = torch.tensor([[[3.0], [4.0]]])
    >>> one, zero = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    >>> gated_channel_transform(x, one, zero, zero).flatten()  # gamma = beta = 0: the identity
    tensor([3., 4.])
    >>> (gated_channel_transform(x, one, one, zero) / x - 1).atanh().flatten()
    tensor([0.8485, 1.1314])
    """
    norms = channel_norms(x, mode, eps, after_relu)
    return _scaled_by_norms(x, norms, alpha, gamma, beta, mode=mode, eps=eps, activation=activation)


def _scaled_by_norms(
    x: Tensor,
    norms: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str | float,
    eps: float,
    activation: str,
) -> Tensor:
    """Return `gated_channel_transform` of a map with these norms of its channels, (N, C, 1, ...)."""
    norms = alpha * norms
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
        "backend": "selects the implementation of the same function",
    },
    guidance="For fine-tuning trained networks: a new gate does not change the output and adds three parameters per "
    "channel. It is placed before every convolution, so its cost is memory traffic (every map is read and written "
    "once more), not multiply-adds. Do not apply weight decay to `beta` (`parameter_groups` sets this up). In small "
    "networks also try `gct@stage_end`, which is cheaper.",
)
class GatedChannelTransform(Gate):
    """Scale each channel: y_c = x_c (1 + tanh(gamma_c s_c / rms(s) + beta_c)), where s_c = alpha_c ||x_c||.

    The parameters `alpha`, `gamma` and `beta` have shape (1, C, 1, ...) and start at 1, 0 and 0, so a new gate is
    exactly the identity (except with `activation="sigmoid"`, whose factor starts at 0.5). As in the paper, `beta` has
    no weight decay. A state dict of the official module loads.

    Args:
        channels: number of channels, C.
        mode: "l2", "l1", or a number p >= 1; see `gated_channel_transform`.
        eps: added inside both roots.
        after_relu: the input is known to be non-negative, so absolute values are omitted.
        activation: "tanh", "sigmoid", "relu" or "elu"; see `gated_channel_transform`.
        spatial_dims: number of spatial axes, 1 to 3.
        epsilon: the official module's name of `eps`.
        backend: "reference" is the definition; "fused" is one operation that saves only the map and one number per
            channel for backward (ValueError with the reason if it cannot run); "auto" uses "fused" where it can.

    Raises:
        InvalidValueError: an unknown mode or activation, p < 1, eps <= 0, or both eps and epsilon, which differ; in
            `forward`, the map has a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from the paper: follows the official code where the two disagree (the mean over channels, not the sum, is
    inside the second root, so eps is not scaled by C). General p uses |x|^p, because odd p without absolute values is
    not a norm. Norms of half-precision maps are computed in float32.

    Note that "GCT" is also the abbreviation of the Gaussian Context Transformer (CVPR 2021), a different mechanism.

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
            if eps not in (_EPS, epsilon):  # a stored spec has the default of eps, too
                raise errors.InvalidValueError(
                    f"eps and epsilon are two names of one option, got {eps} and {epsilon}. Give only eps."
                )
            eps = epsilon
        if isinstance(mode, str) and mode not in {"l1", "l2"}:
            raise errors.InvalidValueError(
                f"unknown mode {_validation.safe_repr(mode)}; expected one of 'l1', 'l2', or a number p >= 1 for the "
                f"l_p norm, such as mode=3."
            )
        if not isinstance(mode, str):
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

    def inference_form(self, pattern: InferencePattern) -> InferenceForm | None:
        if self.backend == "reference" or not isinstance(self.mode, str):
            return None
        owned = pattern.owned and pattern.norm is None
        fused = FusedNormReluGate(self, gated_channel_transform, pattern.norm, pattern.relu, owned)
        return InferenceForm(fused, owned, pattern.relu, pattern.norm is not None, fused.factors)

    def export_form(self) -> Callable[[Tensor], Tensor] | None:
        return self._with_pooled_norms if isinstance(self.mode, str) else None

    def _with_pooled_norms(self, x: Tensor) -> Tensor:
        norms = pooled_channel_norms(x, self.mode, self.eps, self.after_relu)
        return _scaled_by_norms(x, norms, *self.numbers, mode=self.mode, eps=self.eps, activation=self.activation)

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, gamma and beta."""
        return self.alpha, self.gamma, self.beta

    @property
    def channel_options(self) -> dict[str, Any]:
        """Keyword arguments for `gated_channel_transform`."""
        return {"mode": self.mode, "eps": self.eps, "after_relu": self.after_relu, "activation": self.activation}

    def why_not_fused(self, x: Tensor) -> str | None:
        """Return the reason why a fused kernel cannot replace this gate for `x`, or None."""
        return why_not_fused(x, *self.numbers, mode=self.mode, after_relu=self.after_relu)

    def extra_repr(self) -> str:
        return f"{self.channels}, mode={self.mode!r}"
