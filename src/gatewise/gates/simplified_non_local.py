"""Simplified non-local block (SNL): a non-local block whose attention is the same for every query."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatewise.core.hooks import count_hooks
from gatewise.gates.functional import attention_pool, attention_product, attention_weights
from gatewise.gates.registry import Gate, register_gate


def simplified_non_local(x: Tensor, mask: nn.Module, value: nn.Module) -> Tensor:
    """Return x + value(sum_j softmax_j(mask(x)) x_j) over positions j, the same offset at every position.

    Args:
        x: feature map, (N, C, *S).
        mask: maps x to attention logits (N, 1, *S).
        value: maps the pooled map (N, C, 1, ...) to an offset of the same shape.

    >>> x = torch.tensor([[[1.0, 3.0]]])
    >>> simplified_non_local(x, lambda x: 0 * x, nn.Identity())  # equal attention: the mean, 2
    tensor([[[3., 5.]]])
    """
    return x + value(attention_pool(x, mask(x))).to(x.dtype)


@register_gate(
    "snl",
    function=simplified_non_local,
    title="Simplified non-local block",
    paper="Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCVW 2019, "
    "arXiv 1904.11492",
    place="residual_end",
    variants={"1d": {"spatial_dims": 1}, "3d": {"spatial_dims": 3}},
    no_effect_at_init={"spatial_dims": "chooses the rank of the input"},
    guidance="As an ablation between nl and gc: one attention map for all positions, as in gc, followed by a full "
    "C x C matrix. If it helps, try gc, which needs an eighth of the parameters.",
)
class SimplifiedNonLocal(Gate):
    """Add W_v sum_j softmax_j(w_k x_j) x_j to every position: z_i = x_i + W_v c with one context c per image.

    Compared with the non-local block, the query and W_z are dropped and W_v is applied after the sum, where it costs
    C^2 multiply-adds instead of C^2 per position. Compared with the global context block, W_v is one full C x C matrix
    instead of a bottleneck. `conv_mask` is w_k, named as in mmcv's ContextBlock, and `conv_value` is W_v; both are 1x1
    convolutions with bias. `conv_value` starts at zero, so a new gate is exactly the identity.

    Args:
        channels: number of channels, C.
        spatial_dims: number of spatial axes, 1 to 3.

    Raises:
        InvalidValueError: in `forward`, the map has a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from the paper: no known difference. The paper gives no initial values; those of its global context block
    are used.

    >>> gate = SimplifiedNonLocal(64)
    >>> x = torch.randn(1, 64, 2, 2)
    >>> bool((gate(x) == x).all()), sum(p.numel() for p in gate.parameters())  # 64*64 + 64 + 64 + 1
    (True, 4225)
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.conv_mask = self.pointwise(channels, 1, device, dtype)
        self.conv_value = self.pointwise(channels, channels, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the attention weights, and set W_v and its bias to zero."""
        self.conv_mask.reset_parameters()
        nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
        for parameter in self.conv_value.parameters():
            nn.init.zeros_(parameter)

    @property
    def channels(self) -> int:
        return self.conv_value.weight.shape[1]

    @property
    def identity_at_init(self) -> bool:
        return True

    @property
    def is_additive(self) -> bool:
        return True

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        return attention_weights(self.conv_mask(x)).expand(-1, len(queries), *x.shape[2:])  # the same for all queries

    def export_form(self) -> Callable[[Tensor], Tensor] | None:
        return None if count_hooks(self.conv_mask) else self._with_product

    def _with_product(self, x: Tensor) -> Tensor:
        return x + self.conv_value(attention_product(x, self.conv_mask.weight))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return simplified_non_local(x, self.conv_mask, self.conv_value)
