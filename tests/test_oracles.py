"""The modules against independent versions: slow loops, the official formulas, mmcv's and timm's modules."""

import oracles
import pytest
import torch
from conftest import TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw

DOUBLE = TOLERANCE[torch.float64]
LAYOUTS = ("contiguous", "channels_last", "every second value", "channels and rows swapped")

# Odd and even sizes, a single position, a single channel; one to three spatial axes.
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6)).flatmap(
    lambda head: st.lists(st.integers(1, 5), min_size=1, max_size=3).map(lambda sides: (*head, *sides))
)
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
def test_gct_equals_its_loop_form(
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
def test_gc_equals_its_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, pooling: str, fusion: str, width: int | None
) -> None:
    x = random_map(shape, layout, scale, seed)
    options = {"pooling": pooling, "fusion": fusion}
    gate = randomised(gw.make_gate("gc", shape[1], spatial_dims=len(shape) - 2, rd_channels=width, **options), seed)
    assert_close(gate(x), oracles.gc(x, gate.state_dict(), **options), **DOUBLE)


@given(shape=shapes, layout=st.sampled_from(LAYOUTS), scale=scales, seed=seeds, width=st.sampled_from([None, 1, 2, 5]))
def test_se_equals_its_loop_form(
    shape: tuple[int, ...], layout: str, scale: float, seed: int, width: int | None
) -> None:
    x = random_map(shape, layout, scale, seed)
    gate = randomised(gw.make_gate("se", shape[1], spatial_dims=len(shape) - 2, rd_channels=width), seed)
    assert_close(gate(x), oracles.se(x, gate.state_dict()), **DOUBLE)


def test_the_loop_forms_give_answers_worked_by_hand() -> None:
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
def test_gct_equals_the_official_formula(mode: str, scale: float, dtype: torch.dtype) -> None:
    gate = randomised(gw.make_gate("gct", 32, mode=mode)).to(dtype)
    x = random_map((2, 32, 7, 5), scale=scale).to(dtype)
    tolerance = {**TOLERANCE[dtype], "atol": TOLERANCE[dtype]["atol"] * scale}
    assert_close(gate(x), official_gct(x, gate.alpha, gate.gamma, gate.beta, mode, 1e-5), **tolerance)


def test_a_state_dict_of_the_official_gct_loads_and_is_used() -> None:
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
def test_gc_loads_weights_with_mmcv_names_and_shapes_and_agrees(
    pooling: str, fusion: str, channels: int, planes: int
) -> None:
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
def test_se_loads_weights_of_timm_and_agrees(channels: int, width: int) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs = randomised(layers.SEModule(channels, rd_channels=width))
    ours = gw.make_gate("se", channels, rd_channels=width, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random_map((2, channels, 5, 7))
    assert_close(ours(x), theirs(x), **DOUBLE)


@pytest.mark.parametrize(
    ("options", "rd_ratio"), [({"rd_divisor": 8}, 1 / 4), ({"rd_channels": 3}, 1 / 16), ({"rd_divisor": 1}, 1 / 16)]
)
def test_se_takes_the_width_options_of_timm(options: dict[str, int], rd_ratio: float) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs = layers.SEModule(96, rd_ratio=rd_ratio, **options)
    assert gw.make_gate("se", 96, rd_ratio=rd_ratio, **options).fc1.weight.shape == theirs.fc1.weight.shape
