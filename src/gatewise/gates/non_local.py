"""Non-local block (NL): add a weighted mean over all positions to each position (self-attention over positions)."""

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.gates.functional import at_least_float32
from gatewise.gates.registry import Gate, bottleneck_width, register_gate

PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


def non_local(
    x: Tensor,
    g: nn.Module,
    conv_out: nn.Module,
    theta: nn.Module | None = None,
    phi: nn.Module | None = None,
    concat_project: nn.Module | None = None,
    *,
    pairwise: str = "embedded_gaussian",
) -> Tensor:
    """Return x + conv_out(y) with y_i = sum_j f(theta(x)_i, phi(x)_j) g(x)_j over positions j.

    Args:
        x: feature map, (N, C, *S) with P positions.
        g: maps x to values, (N, R, *S).
        conv_out: maps y, (N, R, *S), to the offset, (N, C, *S).
        theta: maps x to queries, (N, R, *S); None uses x.
        phi: maps x to keys, (N, R, *S); None uses x.
        concat_project: linear; maps a query and a key, concatenated to (N, 2 R, *S), to the logit of "concatenation".
        pairwise: f(q, k), one of "embedded_gaussian": softmax_j(q.k / sqrt(R)); "gaussian": softmax_j(q.k);
            "dot_product": q.k / P; "concatenation": relu(concat_project([q, k])) / P.

    >>> x, same = torch.tensor([[[1.0, 3.0]]]), nn.Identity()
    >>> non_local(x, same, same, pairwise="dot_product")  # (1*1 + 3*3) / 2 = 5 times the query
    tensor([[[ 6., 18.]]])
    >>> non_local(x, same, same, phi=lambda x: 0 * x)  # equal attention: the mean, 2
    tensor([[[3., 5.]]])
    """
    queries, keys, values = (x if layer is None else layer(x) for layer in (theta, phi, g))  # (N, R, *S)
    if pairwise == "concatenation" and concat_project is not None:
        mixed = _concatenated(queries, keys, values, concat_project)
    else:
        queries, keys, values = (y.flatten(2).mT for y in (queries, keys, values))  # (N, P, R)
        if pairwise == "dot_product":
            mixed = _multiplied(queries, keys, values)
        else:
            mixed = _attended(queries, keys, values, scale=1.0 if pairwise == "gaussian" else queries.shape[2] ** -0.5)
    return x + conv_out(mixed.mT.unflatten(2, x.shape[2:])).to(x.dtype)


def _attended(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * queries keys^T) values, (N, P, R), without allocating (N, P, P) where torch can."""
    # The fused kernels require a head axis, contiguous rows, and values as wide as queries.
    width, missing = values.shape[2], queries.shape[2] - values.shape[2]
    values = nn.functional.pad(values, (0, missing)) if missing > 0 else values
    q, k, v = (rows.unsqueeze(1).contiguous() for rows in (queries, keys, values))
    return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)[..., :width]


def _multiplied(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return queries (keys^T values) / P, (N, P, R), in float32 for half types: no softmax bounds these sums."""
    with torch.autocast(values.device.type, enabled=False):
        q, k, v = (rows.to(at_least_float32(rows.dtype)) for rows in (queries, keys, values))
        return (q @ (k.mT @ v / v.shape[1])).to(values.dtype)


def _concatenated(queries: Tensor, keys: Tensor, values: Tensor, project: nn.Module) -> Tensor:
    """Return sum_j relu(project([q_i, k_j])) v_j / P, (N, P, R), from maps (N, R, *S); in float32 for half types.

    `project` is linear, so it is applied to each query and each key once, instead of to every pair.
    """
    of_queries = project(torch.cat([queries, 0 * keys], 1)).flatten(2).mT  # (N, P, 1)
    of_keys = project(torch.cat([0 * queries, keys], 1)).flatten(2)  # (N, 1, P)
    rows = values.flatten(2).mT
    with torch.autocast(values.device.type, enabled=False):
        q, k, v = (y.to(at_least_float32(y.dtype)) for y in (of_queries, of_keys, rows))
        return (torch.relu(q + k) @ v / v.shape[1]).to(values.dtype)


class Projection(nn.Module):
    """A convolution named `conv`, as in mmcv's weights."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@register_gate(
    "nl",
    function=non_local,
    title="Non-local block",
    paper="Wang et al., Non-local Neural Networks, CVPR 2018, arXiv 1711.07971",
    place="residual_end",
    variants={
        "gaussian": {"pairwise": "gaussian"},
        "dot_product": {"pairwise": "dot_product"},
        "concatenation": {"pairwise": "concatenation"},
        "wide": {"rd_ratio": 1},
        "channels": {"rd_channels": 3, "pairwise": "dot_product"},
        "divisor": {"rd_divisor": 24, "pairwise": "dot_product"},
        "1d": {"spatial_dims": 1, "pairwise": "dot_product"},
        "3d": {"spatial_dims": 3, "pairwise": "dot_product"},
    },
    no_effect_at_init={"spatial_dims": "chooses the rank of the input"},
    guidance="When positions of one image need different context. Time grows with the square of the number of "
    "positions, so insert it after a late stage or at `@context` of a segmenter. Check with `gatewise explain` whether "
    "its attention depends on the query position; if it does not, gc does the same at lower cost.",
)
class NonLocal(Gate):
    """Add a weighted mean over all positions: z_i = x_i + W_z sum_j f(x_i, x_j) W_g x_j.

    Modules have the names and shapes of mmcv's NonLocal1d to NonLocal3d without sub-sampling (`g.conv`, `theta.conv`,
    `phi.conv`, `concat_project.conv`, `conv_out.conv`); mmcv's weights load. `conv_out` starts at zero, so a new gate
    is exactly the identity; the other convolutions start with a standard deviation of 0.01, as in mmcv.

    Time grows with P^2, except for "dot_product". The softmax forms do not allocate a P x P matrix where torch has a
    fused kernel; "concatenation" does: 630 MB in float32 for one map of 112 x 112.

    Args:
        channels: number of channels, C.
        pairwise: f, with q_i = W_theta x_i and k_j = W_phi x_j of R channels, and P positions: "embedded_gaussian":
            softmax_j(q_i.k_j / sqrt(R)); "gaussian": softmax_j(x_i.x_j); "dot_product": q_i.k_j / P;
            "concatenation": relu(w.[q_i, k_j]) / P.
        rd_ratio: R is C * rd_ratio, rounded down to a multiple of rd_divisor.
        rd_channels: R; overrides rd_ratio.
        rd_divisor: R is a multiple of it.
        spatial_dims: number of spatial axes, 1 to 3.

    Raises:
        InvalidValueError: an unknown pairwise, rd_ratio not in (0, 1], or rd_channels or rd_divisor below 1; in
            `forward`, the map has a different number of channels or axes.
        InvalidTypeError: in `forward`, the map is not floating-point.

    Differs from the paper: its formula of the embedded Gaussian has no division by sqrt(R), but its code divides (the
    copy of mmcv's block in the released GCNet multiplies by sqrt(R), an error). Keys and values are not sub-sampled.

    >>> gate = NonLocal(64)
    >>> x = torch.randn(1, 64, 2, 2)
    >>> bool((gate(x) == x).all()), sum(p.numel() for p in gate.parameters())  # 3 * (64*32 + 32) + 32*64 + 64
    (True, 8352)
    """

    def __init__(
        self,
        channels: int,
        *,
        pairwise: str = "embedded_gaussian",
        rd_ratio: float = 1 / 2,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_dims: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.pairwise = _validation.check_one_of("pairwise", pairwise, PAIRWISE)
        width = bottleneck_width(channels, rd_ratio, rd_channels, rd_divisor)

        def projection(inputs: int, outputs: int) -> Projection:
            return Projection(self.pointwise(inputs, outputs, device, dtype))

        embeds, concatenates = pairwise != "gaussian", pairwise == "concatenation"
        self.g = projection(channels, width)
        self.theta = projection(channels, width) if embeds else None
        self.phi = projection(channels, width) if embeds else None
        self.concat_project = projection(2 * width, 1) if concatenates else None
        if self.concat_project is not None:
            self.concat_project.conv.bias = None
        self.conv_out = projection(width, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise all weights, and set the last convolution and all biases to zero."""
        for layer in self.modules():
            if isinstance(layer, Projection):
                layer.conv.reset_parameters()  # the loops below overwrite all but concat_project
        for layer in (self.g, self.theta, self.phi):
            for parameter in layer.parameters() if layer is not None else ():
                nn.init.normal_(parameter, std=0.01) if parameter.dim() > 1 else nn.init.zeros_(parameter)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    @property
    def channels(self) -> int:
        return self.conv_out.conv.weight.shape[0]

    @property
    def identity_at_init(self) -> bool:
        return True

    @property
    def is_additive(self) -> bool:
        return True

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Return f(x_i, x_j) for the positions i in `queries` and all j: (N, Q, *S).

        With "dot_product" the weights can be negative; with "dot_product" and "concatenation" they need not sum to 1.
        """
        q, k = (x if layer is None else layer(x) for layer in (self.theta, self.phi))
        if self.concat_project is not None:
            q = self.concat_project(torch.cat([q, 0 * k], 1))
            k = self.concat_project(torch.cat([0 * q.expand_as(k), k], 1))
            logits = q.flatten(2)[:, :, queries].mT + k.flatten(2)  # (N, Q, P)
        else:
            logits = q.flatten(2)[:, :, queries].mT @ k.flatten(2)
        logits = logits.to(at_least_float32(logits.dtype))
        if self.pairwise == "dot_product":
            weights = logits / logits.shape[2]
        elif self.pairwise == "concatenation":
            weights = logits.relu() / logits.shape[2]
        else:
            weights = (logits * (1.0 if self.pairwise == "gaussian" else q.shape[1] ** -0.5)).softmax(2)
        return weights.unflatten(2, x.shape[2:])  # pyright: ignore[reportUnknownVariableType]

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return non_local(x, self.g, self.conv_out, self.theta, self.phi, self.concat_project, pairwise=self.pairwise)

    def extra_repr(self) -> str:
        return f"pairwise={self.pairwise!r}"
