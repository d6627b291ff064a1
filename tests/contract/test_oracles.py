"""Modules against independent versions: slow loops, the official formulas, mmcv's and timm's modules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw
from support import oracles
from support.tolerance import TOLERANCE

DOUBLE = TOLERANCE[torch.float64]
LAYOUTS = ("contiguous", "channels_last", "every second value", "channels and rows swapped")

# Odd and even sizes, a single position, a single channel; one to three spatial axes.
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6)).flatmap(
    lambda head: st.lists(st.integers(1, 5), min_size=1, max_size=3).map(lambda sides: (*head, *sides))
)
maps_of_two_axes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**31)
# Down to 1e-4, where the place of each eps shows.
scales = st.sampled_from([1e-4, 1e-2, 1.0, 30.0])


def random_map(shape: tuple[int, ...], layout: str = "contiguous", scale: float = 1.0, seed: int = 0) -> Tensor:
    """Return a float64 map whose channels have different means, laid out in memory as named."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(shape[:2] + (1,) * (len(shape) - 2), generator=generator, dtype=torch.float64)
    x = scale * (means + torch.randn(shape, generator=generator, dtype=torch.float64))
    if layout == "channels_last" and len(shape) > 3:
        return x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    if layout == "every second value":
        wide = x.new_full((*shape[:-1], 2 * shape[-1]), 7.0)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "channels and rows swapped":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x


def randomised(gate: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values, in float64: a parameter without effect would show."""
    generator = torch.Generator().manual_seed(seed)
    gate.double()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return gate


def with_statistics(gate: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms running statistics that differ by channel, and return the gate in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in gate.named_buffers():
        if buffer.is_floating_point():
            drawn = torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
            buffer.copy_(drawn.abs() + 0.1 if name.endswith("running_var") else drawn)
    return gate.eval()


@settings(max_examples=150)  # seven modes times four activations
@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    mode=st.sampled_from(["l2", "l1", 1, 1.5, 2.0, 3.0, 7.5]),
    after_relu=st.booleans(),
    activation=st.sampled_from(sorted(oracles.FACTORS)),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_gct_equals_loop_form(
    shape: tuple[int, ...],
    layout: str,
    scale: float,
    seed: int,
    mode: str | float,
    after_relu: bool,
    activation: str,
    eps: float,
) -> None:
    x = random_map(shape, layout, scale, seed)
    if after_relu and not isinstance(mode, str):
        x = x.abs()  # a general p is defined for non-negative maps only if absolute values are left out
    options = {"mode": mode, "after_relu": after_relu, "activation": activation, "eps": eps}
    gate = randomised(gw.make_gate("gct", shape[1], spatial_dims=len(shape) - 2, **options), seed)
    assert_close(gate(x), oracles.gct(x, gate.alpha, gate.gamma, gate.beta, **options), **DOUBLE)


@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    pooling=st.sampled_from(["attention", "average"]),
    fusion=st.sampled_from(["add", "multiply", "both"]),
    width=st.sampled_from([None, 2, 3, 5]),
)
def test_gc_equals_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, pooling: str, fusion: str, width: int | None
) -> None:
    x = random_map(shape, layout, scale, seed)
    options = {"pooling": pooling, "fusion": fusion}
    gate = randomised(gw.make_gate("gc", shape[1], spatial_dims=len(shape) - 2, rd_channels=width, **options), seed)
    assert_close(gate(x), oracles.gc(x, gate.state_dict(), **options), **DOUBLE)


@given(shape=shapes, layout=st.sampled_from(LAYOUTS), scale=scales, seed=seeds, width=st.sampled_from([None, 1, 2, 5]))
def test_se_equals_loop_form(shape: tuple[int, ...], layout: str, scale: float, seed: int, width: int | None) -> None:
    x = random_map(shape, layout, scale, seed)
    gate = randomised(gw.make_gate("se", shape[1], spatial_dims=len(shape) - 2, rd_channels=width), seed)
    assert_close(gate(x), oracles.se(x, gate.state_dict()), **DOUBLE)


@given(shape=shapes, layout=st.sampled_from(LAYOUTS), scale=scales, seed=seeds)
def test_snl_equals_loop_form(shape: tuple[int, ...], layout: str, scale: float, seed: int) -> None:
    x = random_map(shape, layout, scale, seed)
    gate = randomised(gw.make_gate("snl", shape[1], spatial_dims=len(shape) - 2), seed)
    assert_close(gate(x), oracles.snl(x, gate.state_dict()), **DOUBLE)


@settings(max_examples=100)  # four forms
@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    pairwise=st.sampled_from(["embedded_gaussian", "gaussian", "dot_product", "concatenation"]),
    width=st.sampled_from([None, 1, 2, 5]),
)
def test_nl_equals_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, pairwise: str, width: int | None
) -> None:
    x = random_map(shape, layout, scale, seed)
    options = {"pairwise": pairwise, "rd_channels": width}
    gate = randomised(gw.make_gate("nl", shape[1], spatial_dims=len(shape) - 2, **options), seed)
    expected = oracles.nl(x, gate.state_dict(), pairwise=pairwise)
    # Logits go up to 1e4 here, so their rounding shows in what the softmax makes of them.
    size = expected.abs().max().item()
    assert_close(gate(x), expected, rtol=DOUBLE["rtol"], atol=DOUBLE["atol"] * max(1.0, size))


@settings(max_examples=150)  # two kinds of gathering times the extents, and the bottleneck
@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    extent=st.sampled_from([0, 1, 2, 3, 4, 8]),
    learned=st.booleans(),
    mlp=st.booleans(),
    width=st.sampled_from([None, 1, 3]),
)
def test_ge_equals_loop_form(
    shape: tuple[int, ...],
    layout: str,
    scale: float,
    seed: int,
    extent: int,
    learned: bool,
    mlp: bool,
    width: int | None,
) -> None:
    x = random_map(shape, layout, scale, seed)
    learned = learned and extent not in {1, 3}
    options = {"extent": extent, "learned": learned, "mlp": mlp}
    map_size = shape[2:] if learned and extent == 0 else None
    dims = len(shape) - 2
    bottleneck = {"rd_channels": width} if mlp else {}
    gate = gw.make_gate("ge", shape[1], spatial_dims=dims, map_size=map_size, **bottleneck, **options)
    gate = with_statistics(randomised(gate, seed), seed)
    assert_close(gate(x), oracles.ge(x, gate.state_dict(), **options), **DOUBLE)


@pytest.mark.parametrize(("extent", "learned"), [(e, False) for e in (2, 3, 4, 5, 8)] + [(e, True) for e in (2, 4, 8)])
@pytest.mark.parametrize("side", [7, 9, 13, 14, 28])
def test_ge_equals_loop_form_with_uneven_extent(extent: int, learned: bool, side: int) -> None:
    options = {"extent": extent, "learned": learned}
    gate = with_statistics(randomised(gw.make_gate("ge", 2, **options)))
    x = random_map((1, 2, side, 11))
    assert_close(gate(x), oracles.ge(x, gate.state_dict(), **options), **DOUBLE)


@given(
    shape=maps_of_two_axes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    no_spatial=st.booleans(),
)
def test_triplet_equals_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, kernel_size: int, no_spatial: bool
) -> None:
    x = random_map(shape, layout, scale, seed)
    gate = gw.make_gate("triplet", shape[1], kernel_size=kernel_size, no_spatial=no_spatial)
    gate = with_statistics(randomised(gate, seed), seed)
    assert_close(gate(x), oracles.triplet(x, gate.state_dict(), no_spatial=no_spatial), **DOUBLE)


@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    kernel_size=st.sampled_from([None, 1, 3, 5, 9]),
)
def test_eca_equals_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, kernel_size: int | None
) -> None:
    x = random_map(shape, layout, scale, seed)
    gate = randomised(gw.make_gate("eca", shape[1], spatial_dims=len(shape) - 2, kernel_size=kernel_size), seed)
    assert_close(gate(x), oracles.eca(x, gate.conv.weight), **DOUBLE)


@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    scale=scales,
    seed=seeds,
    size=st.sampled_from([1, 3, 5, 9]),
    alpha=st.sampled_from([1e-4, 0.5, 0.0]),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
    k=st.sampled_from([2.0, 1.0, 0.1]),
)
def test_lrn_equals_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, size: int, alpha: float, beta: float, k: float
) -> None:
    x = random_map(shape, layout, scale, seed)
    options = {"size": size, "alpha": alpha, "beta": beta, "k": k}
    gate = gw.make_gate("lrn", shape[1], spatial_dims=len(shape) - 2, **options)
    assert_close(gate(x), oracles.lrn(x, **options), **DOUBLE)


def test_loop_forms_match_hand_computed_values() -> None:
    two_channels = torch.tensor([[[3.0], [4.0]]])  # norms 3 and 4, root of their mean square 3.5355
    one, zero = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    gct = oracles.gct(two_channels, one, one, zero)
    assert gct.flatten().tolist() == pytest.approx([3 * 1.6902998, 4 * 1.8114879], rel=1e-6)

    one_channel = torch.tensor([[[1.0, 3.0]]])  # mean 2
    unit = {"fc1.weight": one[:, :1], "fc1.bias": zero[0, 0], "fc2.weight": one[:, :1], "fc2.bias": zero[0, 0]}
    assert oracles.se(one_channel, unit).flatten().tolist() == pytest.approx([0.8807971, 2.6423913])  # sigmoid(2)

    state = {  # hidden (2, -2), normalised (1, -1), rectified (1, 0), summed 1
        "conv_mask.weight": torch.zeros(1, 1, 1),
        "conv_mask.bias": torch.ones(1),
        "channel_add_conv.0.weight": torch.tensor([[[1.0]], [[-1.0]]]),
        "channel_add_conv.0.bias": torch.zeros(2),
        "channel_add_conv.1.weight": torch.ones(2, 1),
        "channel_add_conv.1.bias": torch.zeros(2, 1),
        "channel_add_conv.3.weight": torch.ones(1, 2, 1),
        "channel_add_conv.3.bias": torch.zeros(1),
    }
    assert oracles.gc(one_channel, state).flatten().tolist() == pytest.approx([2.0, 4.0], rel=1e-5)

    state = {  # attention logits 0 and ln 3 for values 1 and 3: weights 1/4 and 3/4, context 2.5, times 2
        "conv_mask.weight": torch.full((1, 1, 1), math.log(3) / 2),
        "conv_mask.bias": torch.ones(1),
        "conv_value.weight": torch.full((1, 1, 1), 2.0),
        "conv_value.bias": torch.zeros(1),
    }
    assert oracles.snl(one_channel, state).flatten().tolist() == pytest.approx([6.0, 8.0], rel=1e-6)

    eca = oracles.eca(one_channel.expand(1, 3, 2), torch.tensor([[[1.0, 0.0, -1.0]]]))  # logits -2, 0, 2
    assert eca[0, :, 0].tolist() == pytest.approx([0.1192029, 0.5, 0.8807971])
    lrn = oracles.lrn(torch.tensor([[[1.0], [2.0], [3.0]]]), size=3, alpha=1.0, beta=1.0, k=0.5)
    assert lrn.flatten().tolist() == pytest.approx([1 / 5.5, 2 / 14.5, 3 / 13.5])


@pytest.mark.parametrize(
    ("pairwise", "expected"),
    [
        ("dot_product", [1 + 5, 3 + 15]),  # (1 * 1 + 3 * 3) / 2 = 5 times the query
        ("concatenation", [1 + 7, 3 + 11]),  # ((1 + 1) * 1 + (1 + 3) * 3) / 2 and ((3 + 1) * 1 + (3 + 3) * 3) / 2
        ("gaussian", [1 + 2.7615942, 3 + 2.9950547]),  # weights 1 and e^2, then 1 and e^6
        ("embedded_gaussian", [1 + 2.7615942, 3 + 2.9950547]),
    ],
)
def test_loop_form_of_nl_matches_hand_computed_values(pairwise: str, expected: list[float]) -> None:
    state = {f"{name}.conv.weight": torch.ones(1, 1, 1) for name in ("g", "theta", "phi", "conv_out")}
    state |= {f"{name}.conv.bias": torch.zeros(1) for name in ("g", "theta", "phi", "conv_out")}
    state["concat_project.conv.weight"] = torch.ones(1, 2, 1)
    y = oracles.nl(torch.tensor([[[1.0, 3.0]]]), state, pairwise=pairwise)
    assert y.flatten().tolist() == pytest.approx(expected)


def test_loop_forms_of_ge_and_triplet_match_hand_computed_values() -> None:
    x = torch.tensor([[[1.0, 3.0, 8.0]]])
    assert (oracles.ge(x, {}) / x).flatten().tolist() == pytest.approx([0.9820138] * 3)  # sigmoid(4)
    halved = oracles.ge(x, {}, extent=2) / x  # means 2 and 5.5
    assert halved.flatten().tolist() == pytest.approx([0.8807971, 0.8807971, 0.9959299])
    norm = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1 - 1e-5}
    state = {f"gather.norm1.{key}": torch.tensor([value], dtype=torch.float64) for key, value in norm.items()}
    state["gather.conv1.weight"] = torch.tensor([[[1.0, 0.0, -1.0]]])  # at 0: 0 - 3, at 2: 3 - 0
    learned = oracles.ge(x, state, extent=2, learned=True) / x
    assert learned.flatten().tolist() == pytest.approx([0.0474259, 0.0474259, 0.9525741])

    state = {}
    for plane in ("cw", "hc"):
        state |= {f"{plane}.conv.bn.{key}": torch.tensor([value], dtype=torch.float64) for key, value in norm.items()}
        state[f"{plane}.conv.conv.weight"] = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)  # the maximum alone
    y = oracles.triplet(torch.tensor([[[[1.0, 3.0]]]]), state, no_spatial=True)
    assert y.flatten().tolist() == pytest.approx([0.8418166, 3 * 0.9525741])  # sigmoids of 1 and 3, and of 3 and 3


def official_gct(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, mode: str, eps: float) -> Tensor:
    """Return what the authors' released layer computes on (N, C, H, W), in its order of operations."""
    if mode == "l2":
        embedding = (x.pow(2).sum((2, 3), keepdim=True) + eps).pow(0.5) * alpha
        norm = gamma / (embedding.pow(2).mean(dim=1, keepdim=True) + eps).pow(0.5)
    else:
        embedding = x.abs().sum((2, 3), keepdim=True) * alpha
        norm = gamma / (embedding.abs().mean(dim=1, keepdim=True) + eps)
    return x * (1.0 + torch.tanh(embedding * norm + beta))


@pytest.mark.parametrize("mode", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gct_equals_official_formula(mode: str, scale: float, dtype: torch.dtype, backend: str) -> None:
    gate = randomised(gw.make_gate("gct", 32, mode=mode, backend=backend)).to(dtype)
    x = random_map((2, 32, 7, 5), scale=scale).to(dtype)
    tolerance = {**TOLERANCE[dtype], "atol": TOLERANCE[dtype]["atol"] * scale}
    assert_close(gate(x), official_gct(x, gate.alpha, gate.gamma, gate.beta, mode, 1e-5), **tolerance)


def test_official_gct_state_dict_loads_and_is_used() -> None:
    official = {name: torch.randn(1, 6, 1, 1) for name in ("alpha", "beta", "gamma")}
    gate = gw.make_gate("gct", 6)
    gate.load_state_dict(official, strict=True)
    x = torch.randn(2, 6, 5, 3)
    expected = official_gct(x, official["alpha"], official["gamma"], official["beta"], "l2", 1e-5)
    assert_close(gate(x), expected, **TOLERANCE[torch.float32])


class ContextBlock(nn.Module):
    """The GC block for (N, C, H, W) maps with mmcv's parameter names and shapes, pooled by a matrix product."""

    def __init__(self, channels: int, planes: int, pooling: str, fusion: str) -> None:
        super().__init__()
        self.conv_mask = nn.Conv2d(channels, 1, 1) if pooling == "attention" else None
        self.channel_add_conv = self._transform(channels, planes) if fusion != "multiply" else None
        self.channel_mul_conv = self._transform(channels, planes) if fusion != "add" else None

    @staticmethod
    def _transform(channels: int, planes: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, planes, 1), nn.LayerNorm([planes, 1, 1]), nn.ReLU(), nn.Conv2d(planes, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.conv_mask is None:
            context = nn.functional.adaptive_avg_pool2d(x, 1)
        else:
            attention = self.conv_mask(x).reshape(n, h * w, 1).softmax(dim=1)
            context = (x.reshape(n, c, h * w) @ attention).reshape(n, c, 1, 1)
        y = x if self.channel_mul_conv is None else x * torch.sigmoid(self.channel_mul_conv(context))
        return y if self.channel_add_conv is None else y + self.channel_add_conv(context)


@pytest.mark.parametrize("pooling", ["attention", "average"])
@pytest.mark.parametrize("fusion", ["add", "multiply", "both"])
@pytest.mark.parametrize(("channels", "planes"), [(64, 4), (32, 2), (48, 3)])
def test_gc_loads_mmcv_weights_and_agrees(pooling: str, fusion: str, channels: int, planes: int) -> None:
    theirs = randomised(ContextBlock(channels, planes, pooling, fusion))
    ours = gw.make_gate("gc", channels, pooling=pooling, fusion=fusion, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random_map((2, channels, 5, 7))
    assert_close(ours(x), theirs(x), **DOUBLE)


def test_gc_weights_load_back_under_mmcv_names() -> None:
    assert {name: tuple(p.shape) for name, p in gw.make_gate("gc", 64).state_dict().items()} == {
        "conv_mask.weight": (1, 64, 1, 1),
        "conv_mask.bias": (1,),
        "channel_add_conv.0.weight": (4, 64, 1, 1),
        "channel_add_conv.0.bias": (4,),
        "channel_add_conv.1.weight": (4, 1, 1),
        "channel_add_conv.1.bias": (4, 1, 1),
        "channel_add_conv.3.weight": (64, 4, 1, 1),
        "channel_add_conv.3.bias": (64,),
    }


@pytest.mark.parametrize(("channels", "width"), [(16, 1), (33, 8), (64, 4)])
def test_se_loads_timm_weights_and_agrees(channels: int, width: int) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs = randomised(layers.SEModule(channels, rd_channels=width))
    ours = gw.make_gate("se", channels, rd_channels=width, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random_map((2, channels, 5, 7))
    assert_close(ours(x), theirs(x), **DOUBLE)


@pytest.mark.parametrize(
    ("options", "rd_ratio"), [({"rd_divisor": 8}, 1 / 4), ({"rd_channels": 3}, 1 / 16), ({"rd_divisor": 1}, 1 / 16)]
)
def test_se_accepts_timm_width_options(options: dict[str, int], rd_ratio: float) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs = layers.SEModule(96, rd_ratio=rd_ratio, **options)
    assert gw.make_gate("se", 96, rd_ratio=rd_ratio, **options).fc1.weight.shape == theirs.fc1.weight.shape


# ---- the other gates against modules of other projects ---------------------------------------------------------------


@pytest.mark.parametrize("channels", [8, 16, 33, 64, 256, 1024, 2048])
def test_eca_loads_timm_weights_and_agrees(channels: int) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs = randomised(layers.EcaModule(channels))
    ours = gw.make_gate("eca", channels, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random_map((2, channels, 5, 7))
    assert_close(ours(x), theirs(x), **DOUBLE)


@pytest.mark.parametrize(("gamma", "beta"), [(1, 1), (2, 4), (1.5, 0)])
def test_eca_accepts_timm_kernel_options(gamma: float, beta: float) -> None:
    layers = pytest.importorskip("timm.layers")
    for channels in (32, 100, 512, 4096):
        theirs = layers.EcaModule(channels, gamma=gamma, beta=beta)
        assert gw.make_gate("eca", channels, gamma=gamma, beta=beta).conv.kernel_size == theirs.conv.kernel_size


@pytest.mark.parametrize(
    ("channels", "kernel_size"), [(1, 1), (4, 1), (8, 3), (32, 3), (64, 3), (128, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_eca_kernel_is_odd_number_nearest_to_formula(channels: int, kernel_size: int) -> None:
    assert gw.make_gate("eca", channels).conv.kernel_size == (kernel_size,)
    assert abs((math.log2(channels) + 1) / 2 - kernel_size) <= 1


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("sides", [(7,), (5, 6), (3, 4, 5)])
def test_lrn_equals_torch_with_alpha_times_size(size: int, scale: float, sides: tuple[int, ...]) -> None:
    theirs = nn.LocalResponseNorm(size, alpha=size * 1e-4, beta=0.75, k=2.0)
    x = random_map((2, 9, *sides), scale=scale)
    assert_close(gw.make_gate("lrn", 9, size=size, spatial_dims=len(sides))(x), theirs(x), **DOUBLE)


def test_lrn_defaults_are_those_of_alexnet() -> None:
    x = random_map((2, 96, 5, 5), scale=100)
    assert_close(gw.make_gate("lrn", 96)(x), nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(x), **DOUBLE)


class OfficialTriplet(nn.Module):
    """Triplet attention by permuting the map and pooling over its second axis, with the released parameter names."""

    def __init__(self, kernel_size: int, no_spatial: bool) -> None:
        super().__init__()
        self.planes = {"cw": (0, 2, 1, 3), "hc": (0, 3, 2, 1)} | ({} if no_spatial else {"hw": (0, 1, 2, 3)})
        for name in self.planes:
            inner = nn.Module()
            inner.conv = nn.Conv2d(2, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
            inner.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)
            branch = nn.Module()
            branch.conv = inner
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        gated = []
        for name, order in self.planes.items():
            turned, inner = x.permute(order), getattr(self, name).conv
            pooled = torch.cat([turned.max(1, keepdim=True)[0], turned.mean(1, keepdim=True)], 1)
            gated.append((turned * inner.bn(inner.conv(pooled)).sigmoid()).permute(order))
        return sum(gated) / len(gated)


@pytest.mark.parametrize("no_spatial", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("training", [False, True])
def test_triplet_loads_official_weights_and_agrees(no_spatial: bool, kernel_size: int, training: bool) -> None:
    theirs = with_statistics(randomised(OfficialTriplet(kernel_size, no_spatial))).train(training)
    options = {"kernel_size": kernel_size, "no_spatial": no_spatial}
    ours = gw.make_gate("triplet", 6, **options, dtype=torch.float64).train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random_map((3, 6, 5, 7))
    assert_close(ours(x), theirs(x), **DOUBLE)
    assert_close(ours.state_dict(), theirs.state_dict(), **DOUBLE)  # the running statistics after one step


class NonLocal2d(nn.Module):
    """The non-local block for (N, C, H, W) maps with mmcv's parameter names, all pairs in one matrix."""

    def __init__(self, channels: int, width: int, pairwise: str) -> None:
        super().__init__()
        self.pairwise = pairwise
        embeds = [] if pairwise == "gaussian" else ["theta", "phi"]
        for name in ["g", *embeds]:
            self.add_module(name, self._named(nn.Conv2d(channels, width, 1)))
        if pairwise == "concatenation":
            self.concat_project = self._named(nn.Conv2d(2 * width, 1, 1, bias=False))
        self.conv_out = self._named(nn.Conv2d(width, channels, 1))

    @staticmethod
    def _named(conv: nn.Module) -> nn.Module:
        module = nn.Module()
        module.conv = conv
        return module

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = (x if self.pairwise == "gaussian" else m.conv(x) for m in self._embeddings())
        queries, keys, values = (y.flatten(2) for y in (queries, keys, self.g.conv(x)))
        if self.pairwise == "concatenation":
            many = queries.shape[2]
            pairs = [queries.unsqueeze(3).expand(-1, -1, -1, many), keys.unsqueeze(2).expand(-1, -1, many, -1)]
            weights = self.concat_project.conv(torch.cat(pairs, 1)).relu().squeeze(1) / many
        else:
            products = queries.transpose(1, 2) @ keys
            weights = {
                "dot_product": lambda: products / products.shape[2],
                "gaussian": lambda: products.softmax(2),
                "embedded_gaussian": lambda: (products / queries.shape[1] ** 0.5).softmax(2),
            }[self.pairwise]()
        mixed = torch.einsum("nij,ncj->nci", weights, values).unflatten(2, x.shape[2:])
        return x + self.conv_out.conv(mixed)

    def _embeddings(self) -> tuple[nn.Module, nn.Module]:
        return (self.g, self.g) if self.pairwise == "gaussian" else (self.theta, self.phi)


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(("channels", "width"), [(64, 32), (9, 4), (6, 10)])
def test_nl_loads_mmcv_weights_and_agrees(pairwise: str, channels: int, width: int) -> None:
    theirs = randomised(NonLocal2d(channels, width, pairwise))
    ours = gw.make_gate("nl", channels, pairwise=pairwise, rd_channels=width, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random_map((2, channels, 5, 7))
    assert_close(ours(x), theirs(x), **DOUBLE)


def test_nl_weights_have_mmcv_names_and_shapes() -> None:
    assert {
        name: tuple(p.shape) for name, p in gw.make_gate("nl", 8, pairwise="concatenation").state_dict().items()
    } == {
        "g.conv.weight": (4, 8, 1, 1),
        "g.conv.bias": (4,),
        "theta.conv.weight": (4, 8, 1, 1),
        "theta.conv.bias": (4,),
        "phi.conv.weight": (4, 8, 1, 1),
        "phi.conv.bias": (4,),
        "concat_project.conv.weight": (1, 8, 1, 1),
        "conv_out.conv.weight": (8, 4, 1, 1),
        "conv_out.conv.bias": (8,),
    }


def test_global_ge_with_bottleneck_equals_se() -> None:
    ge, se = randomised(gw.make_gate("ge", 16, mlp=True, rd_channels=3)), gw.make_gate("se", 16, rd_channels=3).double()
    se.load_state_dict({name.removeprefix("mlp."): value for name, value in ge.state_dict().items()}, strict=True)
    x = random_map((2, 16, 5, 7))
    assert_close(ge(x), se(x), **DOUBLE)


# ---- number of parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "options", "count"),
    [
        ("nl", 1024, {}, 2_099_712),  # GCNet's table: one NL adds 2.100 M at 1024 channels, one SNL 1.051 M
        ("snl", 1024, {}, 1_050_625),
        ("gc", 1024, {}, 133_313),
        ("triplet", 8, {}, 300),
        ("triplet", 2048, {}, 300),
        ("triplet", 64, {"kernel_size": 3, "no_spatial": True}, 40),
        ("eca", 512, {}, 5),
        ("lrn", 64, {}, 0),
        ("ge", 64, {}, 0),
        ("ge", 64, {"extent": 8}, 0),
        ("ge", 64, {"extent": 8, "learned": True}, 3 * 64 * (9 + 2)),
    ],
)
def test_number_of_parameters_matches_papers(name: str, channels: int, options: dict[str, int], count: int) -> None:
    gate = gw.make_gate(name, channels, **options, device="meta")
    assert sum(p.numel() for p in gate.parameters()) == count


@pytest.mark.parametrize(("mlp", "millions"), [(False, 5.550), (True, 8.081)])
def test_ge_adds_published_parameters_to_resnet50(mlp: bool, millions: float) -> None:
    """25.56 M become 31.12 M for theta and about 33.6 M for theta-plus."""
    stages = [(256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3)]  # channels, map size, blocks
    count = 0
    for channels, size, blocks in stages:
        gate = gw.make_gate("ge", channels, learned=True, map_size=size, mlp=mlp, device="meta")
        count += blocks * sum(p.numel() for p in gate.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-4)
