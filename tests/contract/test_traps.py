"""The traps between papers, notes and released code that a gate can fall into, one test for each.

The numbers are those of the list of traps that was drawn up before the code: 1 to 8 gated channel transformation,
9 to 13 global context block, 19 to 24 a port to another framework, 25 on for all. Those of the other gates have no
number.
"""

import json
import re
import subprocess
import sys
import textwrap
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw
from gatewise.gates.functional import attention_pool
from gatewise.gates.registry import Gate


def factors(gate: nn.Module, x: Tensor) -> Tensor:
    """Return the factor of the gate for each value."""
    return gate(x) / x


def logits(gate: nn.Module, x: Tensor) -> Tensor:
    """Return a tanh gate's logit for each sample and channel, (N, C)."""
    return (factors(gate, x) - 1).atanh().flatten(2).mean(2)


def gct(channels: int, *, gamma: float = 1.0, **options: object) -> nn.Module:
    """Return a float64 gct with the same gamma everywhere."""
    gate = gw.make_gate("gct", channels, dtype=torch.float64, **options)
    nn.init.constant_(gate.gamma, gamma)
    return gate


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# ---- gated channel transformation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [1.0, 3.0, 2.5])
def test_trap_02_general_p_takes_absolute_values(mode: float) -> None:
    """The note's formula has no |x|: for odd p, positive and negative values would cancel."""
    x = double(2, 4, 5, 6)
    gate = gct(4, mode=mode)
    assert_close(factors(gate, x), factors(gate, -x))
    cancelling = torch.tensor([[[1.0, -1.0], [2.0, 2.0]]], dtype=torch.float64)  # norms of ratio 1 to 2
    z = logits(gct(2, mode=mode, spatial_dims=1), cancelling)[0]
    assert_close(z[1] / z[0], torch.tensor(2.0, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 1e-4])
def test_trap_03_epsilon_is_added_to_mean_over_channels(scale: float) -> None:
    """The paper's formula adds eps to the sum over channels, the code to their mean; small inputs tell them apart."""
    channels, eps = 32, 1e-5
    x = scale * double(1, channels, 4, 4)
    norms = (x.square().sum((2, 3)) + eps).sqrt()
    with_mean = norms / (norms.square().mean(1, keepdim=True) + eps).sqrt()
    with_sum = channels**0.5 * norms / (norms.square().sum(1, keepdim=True) + eps).sqrt()
    z = logits(gct(channels), x)
    assert_close(z, with_mean)
    assert (z - with_sum).abs().min() > 0.05


@pytest.mark.parametrize("mode", ["l2", "l1", 3.0])
def test_trap_03_epsilon_inside_first_root_keeps_gradients_finite(mode: str | float) -> None:
    """The square root has an infinite slope at 0, so an all-zero map would give NaN gradients."""
    x = torch.zeros(2, 4, 5, 6, requires_grad=True)
    gate = gct(4, mode=mode).float()
    gate(x).sum().backward()
    assert all(g is not None and g.isfinite().all() for g in (x.grad, *(p.grad for p in gate.parameters())))


def test_trap_04_modes_normalise_differently() -> None:
    """l1 makes the mean of |s| one, l2 the root of the mean of s^2: gammas do not compare across modes."""
    x = double(3, 6, 5, 4) * torch.arange(1, 7, dtype=torch.float64).reshape(1, 6, 1, 1)
    one = torch.ones(3, dtype=torch.float64)
    assert_close(logits(gct(6, mode="l1"), x).abs().mean(1), one, rtol=1e-6, atol=0)
    assert_close(logits(gct(6, mode="l2"), x).square().mean(1).sqrt(), one, rtol=1e-6, atol=0)
    assert not torch.allclose(logits(gct(6, mode="l1"), x), logits(gct(6, mode="l2"), x), rtol=1e-2)


def test_trap_05_l2_norm_after_instance_norm_is_constant_until_relu() -> None:
    """Instance norm fixes every channel's l2 norm too, not only its mean; the argument needs a ReLU in between."""
    x = nn.functional.instance_norm(double(4, 6, 8, 8).exp())
    assert logits(gct(6), x).std(0).max() < 1e-5
    positive = x.relu() + 1e-9
    assert logits(gct(6), positive).std(0).max() > 1e-2


def test_trap_06_number_of_positions_cancels() -> None:
    """The l1 norm is a sum, not a mean over positions: it equals average pooling only after the normalisation."""
    x = double(2, 4, 6, 6).abs()
    for mode in ("l1", "l2"):
        z, tiled = (logits(gct(4, mode=mode, after_relu=mode == "l1"), m) for m in (x, x.repeat(1, 1, 3, 3)))
        assert_close(tiled, z, rtol=1e-5, atol=0)
    means = x.mean((2, 3))
    assert_close(logits(gct(4, mode="l1", after_relu=True), x), means / means.mean(1, keepdim=True), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("gamma", "sign"), [(0.7, 1), (-0.7, -1)])
def test_trap_07_sign_of_gamma_selects_competition_or_cooperation(gamma: float, sign: int) -> None:
    """The note reads it off sqrt(C)/||s||; it is gamma > 0 that favours channels with large norms."""
    x = torch.linspace(1, 3, 5, dtype=torch.float64).reshape(1, 5, 1, 1).expand(1, 5, 4, 4)
    steps = factors(gct(5, gamma=gamma), x)[0, :, 0, 0].diff()
    assert (sign * steps > 0).all()


@pytest.mark.parametrize("mode", ["l2", "l1", 3.0])
@pytest.mark.parametrize("value", [2.4, 10.0])
def test_trap_08_half_precision_norm_is_reduced_in_float32(mode: str | float, value: float) -> None:
    """A float16 sum of squares over 112 x 112 positions overflows from |x| = 2.3 on."""
    x = torch.full((1, 4, 112, 112), value, dtype=torch.float16)
    assert x.square().sum((2, 3)).isinf().all()
    gate = gct(4, mode=mode).half()
    assert_close(gate(x).float(), gate.float()(x.float()), rtol=2e-3, atol=0)


def test_trap_seed_001_root_of_c_is_in_mean() -> None:
    """No sqrt(C) is written in the code: channels of equal norm have the logit gamma for any number of channels."""
    for channels in (1, 3, 64):
        z = logits(gct(channels, gamma=0.3), torch.ones(1, channels, 4, 4, dtype=torch.float64))
        assert_close(z, torch.full_like(z, 0.3), rtol=1e-5, atol=0)


def test_trap_seed_001_unknown_mode_rejected_when_gate_is_made() -> None:
    """The released code fails at the first forward, with a NameError or an UnboundLocalError."""
    with pytest.raises(ValueError, match="unknown mode 'l4'; expected one of 'l1', 'l2'"):
        gw.make_gate("gct", 8, mode="l4")


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_after_relu_only_omits_absolute_value(backend: str) -> None:
    """In the released code the option is read in l1 mode and ignored in l2."""
    x, alike = double(2, 4, 5, 5), {"backend": backend}
    assert torch.equal(gct(4, after_relu=True, **alike)(x), gct(4, **alike)(x))
    assert torch.equal(gct(4, mode="l1", after_relu=True, **alike)(x.abs()), gct(4, mode="l1", **alike)(x.abs()))
    assert not torch.equal(gct(4, mode="l1", after_relu=True, **alike)(x), gct(4, mode="l1", **alike)(x))


# ---- global context block --------------------------------------------------------------------------------------------


def test_trap_09_attention_is_softmax_over_positions() -> None:
    """The weights of one image sum to one over its positions, not over channels or samples."""
    constant = torch.randn(3, 4, 1, 1).expand(3, 4, 5, 6)
    assert_close(attention_pool(constant, torch.randn(3, 1, 5, 6)), constant[..., :1, :1])
    x, sharp = torch.randn(2, 4, 5, 6), torch.zeros(2, 1, 5, 6)
    sharp[0, 0, 1, 2] = sharp[1, 0, 4, 0] = 1e4
    assert_close(attention_pool(x, sharp)[..., 0, 0], torch.stack([x[0, :, 1, 2], x[1, :, 4, 0]]))


def test_trap_10_last_convolution_starts_at_zero_with_bias() -> None:
    """Otherwise a fresh block changes a trained network; timm's zeroes only the weight."""
    gate = gw.make_gate("gc", 64, fusion="both")
    for transform in (gate.channel_add_conv, gate.channel_mul_conv):
        assert transform[3].weight.abs().max() == transform[3].bias.abs().max() == 0
        assert transform[0].weight.abs().max() > 0


def test_trap_10_mask_starts_as_kaiming_normal() -> None:
    """Torch's default for a convolution is 2.4 times smaller."""
    weight = gw.make_gate("gc", 8192).conv_mask.weight
    assert weight.std().item() == pytest.approx((2 / 8192) ** 0.5, rel=0.05)
    assert weight.abs().max() > 3 * weight.std()  # a uniform distribution ends at 1.73


def test_fresh_multiplying_block_halves_its_input() -> None:
    """Only the adding block starts as the identity: sigmoid(0) is 0.5."""
    x = torch.randn(2, 16, 4, 4)
    for fusion in ("multiply", "both"):
        gate = gw.make_gate("gc", 16, fusion=fusion)
        assert torch.equal(gate(x), 0.5 * x)
        assert not gate.identity_at_init


def test_trap_11_every_position_gets_same_context() -> None:
    """The simplified block removes the query; it does not share its weights with the key's."""
    gate = gw.make_gate("gc", 16)
    nn.init.normal_(gate.channel_add_conv[3].weight)
    x = torch.randn(2, 16, 5, 5)
    added = gate(x) - x
    assert added.abs().max() > 0.1
    assert_close(added, added[..., :1, :1].expand_as(added))


def test_trap_11_ratio_is_a_fraction() -> None:
    """The note's port takes the divisor 16 instead."""
    assert gw.make_gate("gc", 64, rd_ratio=1 / 4).channel_add_conv[0].out_channels == 16


def test_trap_12_block_is_in_every_residual_block_after_last_norm() -> None:
    """The note's example places a single one after the whole backbone; the released code rejects basic blocks."""
    net = gw.make_model("resnet20+gc")
    assert list(gw.gates_in(net)) == [f"stages.{stage}.{block}.bn2.gc" for stage in range(3) for block in range(3)]


@pytest.mark.parametrize("channels", [4, 16, 17, 31])
def test_trap_13_few_planes_do_not_make_block_blind(channels: int) -> None:
    """A layer norm over one value is constant, over none an error: C / 16 is below 2 for networks of CIFAR's width."""
    gate = gw.make_gate("gc", channels)
    nn.init.normal_(gate.channel_add_conv[3].weight)
    first, second = (gate(x) - x for x in (torch.randn(1, channels, 4, 4), torch.randn(1, channels, 4, 4)))
    assert (first.mean((2, 3)) - second.mean((2, 3))).abs().max() > 1e-2
    with pytest.raises(ValueError, match="rd_channels must be at least 2, got 1"):
        gw.make_gate("gc", channels, rd_channels=1)


def test_trap_10_training_from_scratch_keeps_zero_start() -> None:
    """Mmdet's init_weights(pretrained=None) draws every convolution again, the block's last one too."""
    x = torch.randn(2, 3, 16, 16)
    gated, plain = (gw.make_model(spec, seed=0).eval() for spec in ("resnet20+gc", "resnet20"))
    assert torch.equal(gated(x), plain(x))


# ---- the other gates -------------------------------------------------------------------------------------------------


def test_trap_11_simplified_block_drops_query_and_w_z() -> None:
    """The note says that query and key share their weights; there is no query, so every position gets the same."""
    gate = gw.make_gate("snl", 16)
    assert {name: tuple(p.shape[:2]) for name, p in gate.named_parameters() if name.endswith("weight")} == {
        "conv_mask.weight": (1, 16),
        "conv_value.weight": (16, 16),
    }
    nn.init.normal_(gate.conv_value.weight)
    x = torch.randn(2, 16, 5, 5)
    added = gate(x) - x
    assert added.abs().max() > 0.1
    assert_close(added, added[..., :1, :1].expand_as(added), rtol=1e-4, atol=1e-5)


def test_non_local_block_depends_on_query() -> None:
    """What the simplified block leaves out: here positions get different additions."""
    gate = gw.make_gate("nl", 16)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 16, 5, 5)
    added = gate(x) - x
    assert (added - added[..., :1, :1]).abs().max() > 0.1


@pytest.mark.parametrize("width", [4, 16, 64])
def test_nl_divides_logits_by_root_of_inner_channels(width: int) -> None:
    """The released GCNet multiplies by it (`/= C**-0.5`); timm takes the root of the outer channels instead."""
    gate = gw.make_gate("nl", 3, rd_channels=width, spatial_dims=1, dtype=torch.float64)
    for name in ("theta", "phi", "g", "conv_out"):
        nn.init.zeros_(getattr(gate, name).conv.bias)
        nn.init.zeros_(getattr(gate, name).conv.weight)
    with torch.no_grad():
        gate.theta.conv.weight[:, 0] = gate.phi.conv.weight[:, 0] = 1  # q.k = width x_i x_j
        gate.g.conv.weight[0, 1] = gate.conv_out.conv.weight[2, 0] = 1
    x = torch.tensor([[[0.5, 1.0], [0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    logits = width**0.5 * x[0, 0, :, None] * x[0, 0]
    assert_close(gate(x)[0, 2], logits.softmax(1)[:, 1])


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
def test_nl_without_softmax_divides_by_number_of_positions(pairwise: str) -> None:
    """Repeating a map, which repeats every pair, then changes nothing."""
    gate = gw.make_gate("nl", 4, pairwise=pairwise, dtype=torch.float64)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    x = double(2, 4, 3, 5)
    assert_close(gate(x.repeat(1, 1, 2, 3)), gate(x).repeat(1, 1, 2, 3))


def test_nl_does_not_hold_all_pairs_of_positions() -> None:
    """On 96 x 96 positions the matrix of all pairs has 85 million entries."""
    elements = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            elements.extend(y.numel() for y in torch.utils._pytree.tree_leaves(result) if isinstance(y, Tensor))
            return result

    x = torch.randn(1, 4, 96, 96)
    for pairwise in ("embedded_gaussian", "gaussian", "dot_product"):
        with Watch(), torch.no_grad():
            gw.make_gate("nl", 4, pairwise=pairwise)(x)
    assert max(elements) < 96**4 / 100


def test_trap_22_triplet_batch_norm_momentum_is_a_hundredth() -> None:
    """A port to a framework whose momentum is the old share copied 0.01 and keeps the last batch alone."""
    gate = gw.make_gate("triplet", 4)
    norms = [layer for layer in gate.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [(norm.momentum, norm.eps) for norm in norms] == [(0.01, 1e-5)] * 3
    before = {name: buffer.clone() for name, buffer in gate.named_buffers()}
    gate.train()(10 * torch.randn(8, 4, 9, 9))
    for name, buffer in gate.named_buffers():
        if name.endswith("running_mean"):
            pooled = gate.get_submodule(name.removesuffix(".bn.running_mean")).bn
            assert 0 < (buffer - before[name]).abs() < 1
            assert pooled.num_batches_tracked == 1


@pytest.mark.parametrize("channels", [1, 64, 2048])
def test_triplet_has_300_parameters_for_any_channels(channels: int) -> None:
    """It is independent of the channels: its kernel slides along them as along rows and columns."""
    assert sum(p.numel() for p in gw.make_gate("triplet", channels).parameters()) == 300


@pytest.mark.parametrize(("name", "option"), [("triplet", "kernel_size"), ("eca", "kernel_size"), ("lrn", "size")])
def test_even_window_rejected(name: str, option: str) -> None:
    """With zeros on both sides it would change the map's size; AlexNet's formula would sum one channel more."""
    for value in (2, 6):
        with pytest.raises(ValueError, match=rf"{option} must be odd, got {value}\. Choose {value - 1} or {value + 1}"):
            gw.make_gate(name, 8, **{option: value})
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got -3"):
        gw.make_gate(name, 8, **{option: -3})
    with pytest.raises(TypeError, match=rf"{option} must be an integer, got 3\.0"):
        gw.make_gate(name, 8, **{option: 3.0})


def test_lrn_alpha_is_not_divided_by_size() -> None:
    """Torch divides it: with the same numbers its effect is a fifth."""
    x = torch.full((1, 5, 1, 1), 10.0, dtype=torch.float64)
    middle = gw.make_gate("lrn", 5)(x)[0, 2, 0, 0].item()
    assert middle == pytest.approx(10 / (2 + 1e-4 * 500) ** 0.75)
    assert middle != pytest.approx(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(x)[0, 2].item(), rel=1e-3)


def test_lrn_squares_in_float32() -> None:
    """A float16 square overflows from 256 on."""
    x = torch.full((1, 5, 1, 1), 1000.0, dtype=torch.float16)
    assert x.square().isinf().all()
    gate = gw.make_gate("lrn", 5)
    assert_close(gate(x).float(), gate(x.float()), rtol=2e-3, atol=0)


def test_lrn_is_between_two_convolutions_after_activation() -> None:
    """AlexNet normalises rectified maps; the other places come before an activation or after an addition."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    insertion = gw.insert_gates(net, "lrn")
    assert [(place.layer, place.side) for place in insertion.places] == [("1", "output")]


def test_learned_global_ge_needs_map_size() -> None:
    """Its one convolution is as large as the map."""
    with pytest.raises(ValueError, match=r"needs map_size, .* for example map_size=14"):
        gw.make_gate("ge", 8, learned=True)
    assert gw.make_gate("ge", 8, learned=True, map_size=14).gather.conv1.kernel_size == (14, 14)
    assert gw.make_gate("ge", 8, learned=True, map_size=[14, 7]).map_size == (14, 7)
    assert gw.make_gate("ge", 8, learned=True, map_size=9, spatial_dims=1).map_size == (9,)


@pytest.mark.parametrize("size", [(6, 5), (5, 7), (1, 1), (10, 12)])
def test_ge_rejects_map_of_other_size_with_both_sizes(size: tuple[int, int]) -> None:
    """A larger one would give several values, which would be broadcast or rejected far from here."""
    gate = gw.make_gate("ge", 8, learned=True, map_size=(5, 6))
    with pytest.raises(ValueError, match=re.escape(f"map_size=(5, 6), got {size}. Build it with map_size={size}")):
        gate(torch.randn(2, 8, *size))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"map_size": 7}, ValueError, r"map_size is for learned=True with extent=0 only, got map_size=7"),
        ({"map_size": 7, "extent": 2, "learned": True}, ValueError, r"only, got map_size=7 .* extent=2\. Omit it"),
        ({"map_size": (7, 7, 7), "learned": True}, ValueError, r"one for each of the 2 axes, got \(7, 7, 7\)"),
        ({"map_size": 0, "learned": True}, ValueError, r"map_size must be at least 1, got 0"),
        ({"map_size": 7.5, "learned": True}, TypeError, r"map_size must be an integer, got 7\.5"),
        ({"extent": -2}, ValueError, r"extent must be at least 0, got -2"),
        ({"extent": 2.0}, TypeError, r"extent must be an integer, got 2\.0"),
        *(({"extent": e, "learned": True}, ValueError, rf"larger power of two, got {e}:") for e in (1, 3, 6, 12)),
    ],
)
def test_ge_rejects_inconsistent_extents_and_sizes(
    options: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        gw.make_gate("ge", 8, **options)


def test_ge_ignores_positions_outside_map() -> None:
    """Counting the padding would make the corners of a constant map a ninth of its middle's, or so."""
    x = torch.full((1, 2, 7, 9), 3.0, dtype=torch.float64)
    assert_close(factors(gw.make_gate("ge", 2, extent=4), x), torch.full_like(x, 3).sigmoid())


def test_ge_gathers_each_channel_separately() -> None:
    """Every convolution is depthwise; only the bottleneck of theta-plus mixes channels."""
    x = double(1, 4, 9, 9)
    other = x.clone()
    other[:, 0] += 1
    for options, mixes in (({"learned": True}, False), ({"learned": True, "mlp": True, "rd_channels": 16}, True)):
        gate = gw.make_gate("ge", 4, extent=4, **options, dtype=torch.float64).eval()
        assert torch.equal(gate(x)[:, 1:], gate(other)[:, 1:]) != mixes


def test_ge_has_relu_between_its_convolutions_and_none_after() -> None:
    """The last batch norm's output is the logit: rectified, no factor could fall below a half."""
    names = [type(layer).__name__ for layer in gw.make_gate("ge", 4, extent=8, learned=True).gather]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["Conv2d", "BatchNorm2d"]


# ---- every gate in a network -----------------------------------------------------------------------------------------


def step(net: nn.Module) -> None:
    """Make one training step, and check that every parameter of every gate got a gradient."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(net.train()(torch.randn(2, 3, 64, 64)), torch.tensor([0, 2]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for gate in gw.gates_in(net).values():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in gate.parameters())
    assert net.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.extended
@pytest.mark.parametrize("name", gw.gate_names())
def test_timm_resnet50_trains_with_gate_as_attention_layer(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet50", num_classes=3, block_args={"attn_layer": gw.gate_spec(name).gate})
    assert len(gw.gates_in(net)) == 16
    step(net)


@pytest.mark.parametrize("name", gw.gate_names())
def test_resnet18_trains_with_gate_at_place_of_paper(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", num_classes=3)
    insertion = gw.insert_gates(net, name)
    assert insertion.gates
    assert {place.channels for place in insertion.places} >= {64, 128, 256, 512}
    step(net)


# ---- ports to other frameworks ---------------------------------------------------------------------------------------


def test_trap_19_network_of_basic_blocks_gets_its_gates() -> None:
    """The ported "GCT ResNet-18" gates bottlenecks only, so it holds no gate at all."""
    net = gw.make_model("resnet18_cifar:width=8+gct")
    convolutions = [path for path, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    assert list(gw.gates_in(net)) == [f"{path}.gct" for path in convolutions]
    assert len(convolutions) == 20


def test_trap_20_gates_are_before_convolutions_as_in_paper() -> None:
    """The port puts one after each block's last norm, 45,312 parameters in a ResNet-50 instead of 67,593."""
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet50")
    insertion = gw.insert_gates(net, "gct")
    assert len(insertion.gates) == 53
    assert all(
        place.side == "input" and place.channels == net.get_submodule(place.layer).in_channels
        for place in insertion.places
    )
    assert sum(p.numel() for gate in insertion.gates.values() for p in gate.parameters()) == 67_593


def test_trap_21_l1_averages_over_channels_of_same_sample() -> None:
    """The port's mean(dim=1) names an argument that its framework does not have."""
    x = torch.tensor([[[1.0], [3.0]], [[10.0], [10.0]]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 1.5], [1.0, 1.0]], dtype=torch.float64)
    assert_close(logits(gct(2, mode="l1", spatial_dims=1), x), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["gct", "se"])
def test_trap_24_gate_is_same_at_every_position(name: str) -> None:
    """The port calls it channel and spatial attention; it uses channels only."""
    gate = gw.make_gate(name, 4, dtype=torch.float64)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    f = factors(gate, double(2, 4, 5, 6))
    assert_close(f, f[..., :1, :1].expand_as(f))
    assert f.flatten(0, 1)[:, 0, 0].unique().numel() == 8


# ---- weight decay ----------------------------------------------------------------------------------------------------


class Shifted(Gate):
    """Add a learned offset that must not decay, under a name without "beta"."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("offset",)

    def __init__(self, channels: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(channels)
        self.offset = nn.Parameter(torch.zeros(1, channels, 1, 1, device=device, dtype=dtype))
        self.slope = nn.Parameter(torch.ones(1, channels, 1, 1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.offset


class Swish(nn.Module):
    """x sigmoid(beta x): an activation of the network, whose beta is an ordinary parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


def undecayed(model: nn.Module, groups: list[dict]) -> list[str]:
    """Return the names of the parameters whose group has no weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return sorted(names[id(p)] for group in groups if group.get("weight_decay") == 0 for p in group["params"])


def test_trap_25_beta_is_exempt_by_ownership_not_by_name() -> None:
    """The released code looks for "beta" in names: it misses a renamed parameter and catches strangers."""
    net = nn.Sequential()
    net.add_module("alphabeta", nn.Conv2d(3, 4, 3))
    net.add_module("act", Swish())
    net.add_module("last", nn.Conv2d(4, 5, 3))
    gw.insert_gates(net, "gct", include=["alphabeta"])
    gw.insert_gates(net, Shifted, before=nn.Conv2d, include=["last"])
    groups = gw.parameter_groups(net, weight_decay=0.1)
    assert undecayed(net, groups) == ["alphabeta.gct.beta", "last.shifted.offset"]
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_trap_25_holds_inside_timm_optimizer() -> None:
    """Timm's own rule exempts vectors and biases, so it decays beta, which has four axes."""
    optim = pytest.importorskip("timm.optim")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    gw.insert_gates(net, "gct")
    theirs = optim.create_optimizer_v2(net, opt="sgd", lr=0.1, weight_decay=1e-4)
    assert "2.gct.beta" not in undecayed(net, theirs.param_groups)
    ours = optim.create_optimizer_v2(net, opt="sgd", lr=0.1, weight_decay=1e-4, param_group_fn=gw.parameter_groups)
    assert undecayed(net, ours.param_groups) == ["0.gct.beta", "2.gct.beta"]
    assert {group["weight_decay"] for group in ours.param_groups} == {0.0, 1e-4}


# ---- pruning ---------------------------------------------------------------------------------------------------------

PRUNE = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
import torch, torch_pruning
import gatewise as gw
from torch import nn

for name, options in json.loads(sys.argv[1]):
    gate = gw.make_gate(name, 16, **options)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), gate, nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()
    x = torch.randn(2, 3, 12, 12)
    magnitude = torch_pruning.importance.MagnitudeImportance(p=2)
    torch_pruning.pruner.BasePruner(net, x, importance=magnitude, pruning_ratio=0.5, ignored_layers=[net[-1]]).step()
    assert net(x).isfinite().all() and net(x).shape == (2, 4)
    print(json.dumps([net[0].out_channels, gate.channels, net[4].in_channels, net[4].out_channels]), flush=True)
"""
FOLLOWED: list[tuple[str, dict[str, object]]] = [
    ("gct", {}),
    ("se", {}),
    ("gc", {"pooling": "average"}),
    ("nl", {}),
    ("nl", {"pairwise": "dot_product"}),
    ("nl", {"pairwise": "concatenation"}),
    ("ge", {"mlp": True}),
    ("ge", {"extent": 2, "learned": True, "mlp": True}),
]
LEFT: list[tuple[str, dict[str, object]]] = [
    ("gc", {}),
    ("snl", {}),
    ("nl", {"pairwise": "gaussian"}),
    ("eca", {}),
    ("triplet", {}),
]


@pytest.fixture(scope="module")
def pruned() -> list[list[int]]:
    """Return the widths at and after each gate of a small network half of which was pruned, in a separate process."""
    pytest.importorskip("torch_pruning")
    gates = [*FOLLOWED, *LEFT]
    command = [sys.executable, "-c", textwrap.dedent(PRUNE), json.dumps(gates)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    done = result.stdout.splitlines()
    assert result.returncode == 0, f"{gates[len(done)]}: {result.stderr}"
    return [json.loads(line) for line in done]


def test_fact_9_pruning_cuts_gate_with_its_channels(pruned: list[list[int]]) -> None:
    """A gate that remembers its first width rejects the pruned map."""
    assert pruned[: len(FOLLOWED)] == [[8, 8, 8, 4]] * len(FOLLOWED)


def test_fact_9_pruning_skips_channels_it_cannot_follow(pruned: list[list[int]]) -> None:
    """Torch-Pruning never ends on the usual view and matrix product; it skips these channels and prunes the others."""
    assert pruned[len(FOLLOWED) :] == [[16, 16, 16, 4]] * len(LEFT)
