"""Gates as timm's attention layers: which families accept them, and the errors of the others."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import SEModule
from torch import nn

import gatewise as gw

BLOCK_ARGS = ("resnet18", "resnet50", "resnext50_32x4d", "res2net50_26w_4s", "skresnet18", "seresnet18")
ATTN_LAYER = ("gernet_s", "repvgg_a0", "regnetz_b16", "nf_resnet26", "nf_regnet_b0", "mobilevit_xs")


def attended(name: str, **options: Any) -> nn.Module:
    """Return the network after a forward that reached each of its gates."""
    net = timm.create_model(name, num_classes=3, **options).eval()
    gates, reached = gw.gates_in(net), set()
    for path, gate in gates.items():
        gate.register_forward_pre_hook(lambda *_, path=path: reached.add(path))
    with torch.no_grad():
        assert net(torch.randn(1, 3, 64, 64)).isfinite().all()
    assert reached == set(gates) != set()
    return net


@pytest.mark.parametrize("name", BLOCK_ARGS)
def test_families_accept_gates_in_block_args(name: str) -> None:
    attended(name, block_args={"attn_layer": gw.SqueezeExcite})
    net = attended(name, block_args={"attn_layer": partial(gw.GatedChannelTransform, mode="l1")})
    assert not any(isinstance(module, SEModule) for module in net.modules()), "in the place of the network's own"
    assert all(gate.mode == "l1" for gate in gw.gates_in(net).values())


@pytest.mark.parametrize("name", ATTN_LAYER)
def test_families_accept_gates_as_attn_layer(name: str) -> None:
    net = attended(name, attn_layer=partial(gw.GlobalContext, rd_ratio=1 / 4), attn_kwargs={})
    gate = next(iter(gw.gates_in(net).values()))
    assert gate.channel_add_conv[0].out_channels == max(gate.channels // 4, 4 if gate.channels < 8 else 2)


@pytest.mark.parametrize("name", ["efficientnet_b0", "tinynet_e"])
def test_efficientnet_needs_function_that_drops_options(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'act_layer'"):
        timm.create_model(name, se_layer=gw.SqueezeExcite)
    attended(name, se_layer=lambda channels, **_: gw.SqueezeExcite(channels, rd_ratio=1 / 4))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnest14d", {"block_args": {"attn_layer": gw.SqueezeExcite}}, AssertionError, "attn_layer is not supported"),
        ("regnetz_b16", {"attn_layer": gw.GatedChannelTransform}, TypeError, "unexpected keyword argument 'rd_ratio'"),
        ("resnet26t", {"attn_layer": gw.SqueezeExcite}, TypeError, "unexpected keyword argument 'attn_layer'"),
        ("cspresnet50", {"attn_layer": gw.SqueezeExcite}, TypeError, "unexpected keyword argument 'attn_layer'"),
        ("regnety_002", {"attn_layer": gw.SqueezeExcite}, TypeError, "unexpected keyword argument 'attn_layer'"),
        ("convnext_atto", {"attn_layer": gw.SqueezeExcite}, TypeError, "unexpected keyword argument 'attn_layer'"),
        ("densenet121", {"attn_layer": gw.SqueezeExcite}, TypeError, "unexpected keyword argument 'attn_layer'"),
        ("mobilenetv3_small_050", {"se_layer": gw.SqueezeExcite}, TypeError, "multiple values for keyword argument"),
    ],
)
def test_families_that_reject_gates(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        timm.create_model(name, **options)


def test_timm_reinitialises_convolutions_so_gc_is_not_identity() -> None:
    given = timm.create_model("resnet18", block_args={"attn_layer": gw.GlobalContext})
    inserted = timm.create_model("resnet18")
    gw.insert_gates(inserted, "gc")
    for net, zero in ((given, False), (inserted, True)):
        last = next(iter(gw.gates_in(net).values())).channel_add_conv[-1].weight
        assert bool((last == 0).all()) is zero
    with pytest.raises(RuntimeError, match="Missing key"):
        given.load_state_dict(timm.create_model("resnet18").state_dict())
