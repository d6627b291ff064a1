"""Global context block (GC): add one context vector per image, pooled by attention, to every position."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.core.hooks import count_hooks
from gatewise.core.layer_types import CONVOLUTIONS
from gatewise.gates.channel_scaling import ChannelScaling
from gatewise.gates.functional import attention_pool, attention_product, attention_weights, average_pool
from gatewise.gates.kernels.attention_pool import pool_by_attention
from gatewise.gates.kernels.backend import BACKENDS, takes_fused, why_not_fusible
from gatewise.gates.kernels.channels import SharedGradient, mean_of_channels, scale_channels
from gatewise.gates.registry import bottleneck_width, register_gate

POOLINGS = ("attention", "average")
FUSIONS = ("add", "multiply", "both")


def global_context(
    x: Tensor,
    mask: nn.Module | None = None,
    add: nn.Module | None = None,
    multiply: nn.Module | None = None,
) -> Tensor:
    """Return x * sigmoid(multiply(c)) + add(c) with c = sum_j softmax_j(mask(x)) x_j over positions j.

    Args:
        x: feature map, (N, C, *S).
        mask: maps x to attention logits (N, 1, *S); None uses the mean over positions instead.
        add: maps the context (N, C, 1, ...) to an offset of the same shape; None adds nothing.
        multiply: maps the context to the logits of a factor of the same shape; None multiplies by nothing.

    >>> x = torch.tensor([[[1.0, 3.0]]])  # mean 2
    >>> global_context(x, add=nn.Identity())
    tensor([[[3., 5.]]])
    """
    return _with_context(x, average_pool(x) if mask is None else attention_pool(x, mask(x)), add, multiply)


def _with_context(x: Tensor, context: Tensor, add: nn.Module | None, multiply: nn.Module | None) -> Tensor:
    if multiply is not None:
        x = x * multiply(context).sigmoid().to(x.dtype)
    if add is not None:
        x = x + add(context).to(x.dtype)
    return x


@register_gate(
    "gc",
    function=global_context,
    title="Global context block",
    paper="Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCVW 2019, "
    "arXiv 1904.11492",
    place="residual_end",
    variants={
        "average": {"pooling": "average"},
        "multiply": {"fusion": "multiply"},
        "both": {"fusion": "both"},
        "wide": {"rd_ratio": 1 / 4},
        "channels": {"rd_channels": 3},
        "divisor": {"rd_divisor": 8},
        "eps": {"eps": 1e-2},
        "1d": {"spatial_dims": 1},
        "3d": {"spatial_dims": 3},
    },
    no_effect_at_init={
        "spatial_dims": "chooses the rank of the input",
        "backend": "selects the implementation of the same function",
    },
    guidance="When positions need global context, as in segmentation and detection, and for fine-tuning trained "
    "networks: a new gate does not change the output. In narrow networks the default bottleneck is only two to four "
    "channels wide; use `rd_ratio=1/4` there.",
)
class GlobalContext(ChannelScaling):
    """Add W2 relu(LN(W1 c)) to every position, where c = sum_j softmax_j(w x_j) x_j is the context of the image.

    Modules have the names and shapes of mmcv's ContextBlock (`conv_mask`, `channel_add_conv`, `channel_mul_conv`);
    mmcv's weights load. The last convolution of each transform starts at zero, so with fusion "add" a new gate is
    exactly the identity; with "multiply" and "both" its factor starts at 0.5.

    Args:
        channels: number of channels, C.
        rd_ratio: the width R of the bottleneck is C * rd_ratio, rounded down to a multiple of rd_divisor.
        rd_channels: R, at least 2; overrides rd_ratio.
        rd_divisor: R is a multiple of it.
        pooling: "attention" as above, or "average" for the mean over positions.
        fusion: "add" as above; "multiply" multiplies by sigmoid(W2 relu(LN(W1 c))); "both" does both.
        eps: of the layer norm (timm uses 1e-6).
        spatial_dims: number of spatial axes, 1 to 3.
        backend: "reference" is the definition, "fused" a kernel (ValueError with the reason if it cannot run), "auto"
            uses "fused" where it can.

    Raises:
        InvalidValueError: an unknown pooling or fusion, rd_ratio not in (0, 1], rd_channels below 2, or eps not in
            [0, 1]; in `forward`, the map has a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from the paper: if C * rd_ratio is below 2, R is 4, because a layer norm over one value is constant and one
    over two values keeps only a sign. At 2 and 3 mmcv's width is kept. For networks as narrow as those for CIFAR (16,
    32, 64 channels) pass rd_ratio=1/4 or rd_channels.

    >>> gate = GlobalContext(64)
    >>> x = torch.randn(1, 64, 2, 2)
    >>> bool((gate(x) == x).all()), gate.channel_add_conv[0].out_channels
    (True, 4)
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        pooling: str = "attention",
        fusion: str = "add",
        eps: float = 1e-5,
        spatial_dims: int = 2,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.pooling = _validation.check_one_of("pooling", pooling, POOLINGS)
        self.backend = _validation.check_one_of("backend", backend, BACKENDS)
        self.fusion = _validation.check_one_of("fusion", fusion, FUSIONS)
        if rd_channels is not None:
            _validation.check_integer_at_least(2, rd_channels=rd_channels)
        width = bottleneck_width(channels, rd_ratio, rd_channels, rd_divisor)
        width = width if width >= 2 else 4

        def transform() -> nn.Sequential:
            return nn.Sequential(
                self.pointwise(channels, width, device, dtype),
                nn.LayerNorm([width] + [1] * self.spatial_dims, eps, device=device, dtype=dtype),
                nn.ReLU(inplace=True),
                self.pointwise(width, channels, device, dtype),
            )

        _validation.check_number_between(0, 1, eps=eps)
        attends = pooling == "attention"
        self.conv_mask = self.pointwise(channels, 1, device, dtype) if attends else None
        self.channel_add_conv = transform() if fusion in {"add", "both"} else None
        self.channel_mul_conv = transform() if fusion in {"multiply", "both"} else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise all layers, and set the last convolution of each transform to zero."""
        if self.conv_mask is not None:
            self.conv_mask.reset_parameters()
            nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
        for transform in (self.channel_add_conv, self.channel_mul_conv):
            for layer in transform or ():
                if isinstance(layer, (nn.LayerNorm, *CONVOLUTIONS)):
                    layer.reset_parameters()
            for parameter in transform[-1].parameters() if transform is not None else ():
                nn.init.zeros_(parameter)

    @property
    def channels(self) -> int:
        transform: Any = self.channel_add_conv or self.channel_mul_conv
        first: Any = self.conv_mask or transform[0]
        return first.weight.shape[1]  # the first layer of every form takes all channels as input

    @property
    def identity_at_init(self) -> bool:
        return self.fusion == "add"

    @property
    def is_additive(self) -> bool:
        return self.channel_add_conv is not None

    def attention(self, x: Tensor, queries: Tensor) -> Tensor | None:
        if self.conv_mask is None:
            return None
        return attention_weights(self.conv_mask(x)).expand(-1, len(queries), *x.shape[2:])  # the same for all queries

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if takes_fused(self.backend, "gc", self.why_not_fused(x)):
            link = SharedGradient(x)
            return scale_channels(*self.channel_terms(x, link), link)
        return global_context(x, self.conv_mask, self.channel_add_conv, self.channel_mul_conv)

    def export_form(self) -> Callable[[Tensor], Tensor] | None:
        return None if self.conv_mask is None or count_hooks(self.conv_mask) else self._with_product

    def _with_product(self, x: Tensor) -> Tensor:
        context = attention_product(x, self.conv_mask.weight)  # type: ignore[union-attr]  # pyright: ignore
        return _with_context(x, context, self.channel_add_conv, self.channel_mul_conv)

    def why_not_fused(self, x: Tensor) -> str | None:
        """Return the reason why a fused kernel cannot replace this gate for `x`, or None."""
        if self.conv_mask is None:
            return why_not_fusible(x)
        if count_hooks(self.conv_mask):
            return "conv_mask has hooks, which a fused kernel would not call"
        return why_not_fusible(x, self.conv_mask.weight)

    def channel_terms(self, x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the arguments of `scale_channels`: x, the factor of each channel and the offset of each channel."""
        if self.conv_mask is None:
            x, context = mean_of_channels(x, link)
        else:
            x, context = pool_by_attention(x, self.conv_mask.weight, self.conv_mask.bias, link)
        factors = None if self.channel_mul_conv is None else self.channel_mul_conv(context).sigmoid()
        offsets = None if self.channel_add_conv is None else self.channel_add_conv(context)
        return x, factors, offsets
