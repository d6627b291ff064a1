"""Networks of any number of axes, with transposed convolutions and forwards that read their layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import gatewise as gw
from gatewise.core.layer_types import TRANSPOSED_CONVOLUTIONS
from gatewise.errors import InvalidValueError
from gatewise.gaternet.gater import make_gater
from gatewise.graph.measure import macs_per_sample
from gatewise.inference import folded
from gatewise.inference.forms import GateBeforeConvolution
from support.random_networks import CLOSE, Scripted
from support.random_unets import SIDES, DrawnUNet, Layers, drawn_unets, gated_unet, unet, volumes
from support.skipping import patterns

FEW = settings(max_examples=5)
MANY = settings(max_examples=200)


def check_open_gates_change_nothing(drawn: DrawnUNet) -> None:
    net, x = gated_unet(drawn, "1"), volumes(drawn[0], 3)
    assert torch.equal(net(x), net.backbone(x))


def check_skipping_equals_masking(drawn: DrawnUNet, mode: str) -> None:
    net, x = gated_unet(drawn, "?"), volumes(drawn[0], 5)
    gates = patterns(net, drawn[4])
    fast = gw.skip_closed_filters(net, mode)
    assert_close(fast(x, gates), net(x, gates), **CLOSE)
    assert_close(fast(x), net(x), **CLOSE)


def check_compacting_equals_masking(drawn: DrawnUNet) -> None:
    net, x = gated_unet(drawn, "01?"), volumes(drawn[0], 6)
    small = gw.compact(net, [x])
    assert_close(small(x), net(x), **CLOSE)


def check_only_readers_read_inner_places(drawn: DrawnUNet) -> None:
    """Without the weights of its readers, a network does not depend on the map at a place."""
    net, x = gated_unet(drawn, "1"), volumes(drawn[0], 2)
    for site in net.sites:
        weights = [net.backbone.get_submodule(reader.layer).weight for reader in site.consumers]
        kept = [weight.detach().clone() for weight in weights]
        outputs = []
        for closed in (False, True):
            gates = torch.ones(2, net.gate_count)
            gates[:, site.first : site.first + site.gates] = 0 if closed else 1
            for weight in weights:
                weight.data.zero_()
            outputs.append(net(x, gates))
        for weight, own in zip(weights, kept, strict=True):
            weight.data.copy_(own)
        assert weights
        assert torch.equal(*outputs)


@FEW
@given(drawn_unets)
def test_open_gates_change_nothing(drawn: DrawnUNet) -> None:
    check_open_gates_change_nothing(drawn)


@FEW
@given(drawn_unets, st.sampled_from(["mask", "skip", "bucket", "auto"]))
def test_skipping_equals_masking(drawn: DrawnUNet, mode: str) -> None:
    check_skipping_equals_masking(drawn, mode)


@FEW
@given(drawn_unets)
def test_compacting_equals_masking(drawn: DrawnUNet) -> None:
    check_compacting_equals_masking(drawn)


@FEW
@given(drawn_unets)
def test_only_readers_read_inner_places(drawn: DrawnUNet) -> None:
    check_only_readers_read_inner_places(drawn)


@pytest.mark.slow
@MANY
@given(drawn_unets, st.sampled_from(["mask", "skip", "bucket", "auto"]))
def test_many_networks(drawn: DrawnUNet, mode: str) -> None:
    check_open_gates_change_nothing(drawn)
    check_skipping_equals_masking(drawn, mode)
    check_compacting_equals_masking(drawn)
    check_only_readers_read_inner_places(drawn)


def check_faster_forms(net: gw.GaterNet, x: Tensor, mode: str = "skip") -> tuple[Any, Any]:
    """Check that open gates change nothing, and that skipping and compacting equal masking; return both nets."""
    gates = patterns(net, 0)[: len(x)]
    assert_close(net(x, torch.ones_like(gates)), net.backbone(x))
    fast, small = gw.skip_closed_filters(net, mode), gw.compact(net, [x])
    assert_close(fast(x, gates), net(x, gates), **CLOSE)
    assert_close(small(x), net(x), **CLOSE)
    return fast, small


# Transposed convolutions


def encoder_decoder(axes: int) -> nn.Sequential:
    make = Layers(axes)
    return nn.Sequential(
        *(make.conv(2, 8, stride=2), make.norm(8), nn.ReLU()),
        *(make.up(8, 6), make.norm(6), nn.ReLU(), make.conv(6, 3, 1)),
    ).eval()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_filters_next_to_transposed_convolutions_are_gated_and_counted(axes: int) -> None:
    net = gw.GaterNet(encoder_decoder(axes), example=volumes(axes, 2)).eval()
    first, second = net.sites
    assert [(site.name, site.layer, site.consumers[0].layer) for site in net.sites] == [
        ("0", "2", "3"),
        ("3", "5", "6"),
    ]
    positions = (SIDES[axes - 1] // 2) ** axes  # each writes 2^axes positions with 6 filters
    assert first.consumers[0] == second.producer
    assert second.producer.macs == positions * 8 * 6 * 2**axes
    assert net.dense_macs == sum(site.producer.macs for site in net.sites) + second.consumers[0].macs


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_executed_work_of_transposed_convolutions_equals_executed_macs(axes: int) -> None:
    net = gw.GaterNet(encoder_decoder(axes), example=volumes(axes, 2)).eval()
    fast = gw.skip_closed_filters(net, "skip")
    assert fast.skipped == ()
    gates = torch.tensor([[1.0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0]])
    with FlopCounterMode(display=False) as counter:
        net.gater(volumes(axes, 1))
        fast(volumes(axes, 1), gates)
    assert counter.get_total_flops() == 2 * int(net.executed_macs(gates))


def test_transposed_convolutions_lose_filters_and_inputs() -> None:
    net = gw.GaterNet(encoder_decoder(2), gater=Scripted("11010001" + "011000"), example=volumes(2, 2)).eval()
    small = gw.compact(net, [volumes(2, 2)])
    assert (small[0].out_channels, small[3].in_channels, small[3].out_channels, small[6].in_channels) == (4, 4, 2, 2)
    assert torch.equal(small[3].weight, net.backbone[3].weight[[0, 1, 3, 7]][:, [1, 2]])
    assert small.compaction.macs_after == macs_per_sample(small, volumes(2, 1))
    assert [site.removed for site in small.compaction.sites] == [4, 4]
    assert_close(small(volumes(2, 3)), net(volumes(2, 3)), **CLOSE)


def test_groups_of_transposed_convolutions_keep_equal_numbers_of_filters() -> None:
    backbone = unet(2, ["grouped"], 4)
    net = gw.GaterNet(backbone, gater=Scripted("1111" + "1001" + "0111" + "1111"), example=volumes(2, 2)).eval()
    small = gw.compact(net, [volumes(2, 2)])
    layers = small[2]
    assert (layers[0].out_channels, layers[3].in_channels, layers[3].out_channels, layers[6].in_channels) == (
        2,
        2,
        4,
        4,
    )
    assert layers[3].weight.shape[:2] == (2, 2)
    assert_close(small(volumes(2, 3)), net(volumes(2, 3)), **CLOSE)


class SizedUp(nn.Module):
    """Reaches the size of its input with an argument of a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1)
        self.norm, self.last = Layers(2).norm(6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.up(self.down(x).relu(), output_size=x.shape[-2:])).relu())


def segmenter_3d() -> nn.Module:
    """Return a network in the style of those for volumes: instance norms, PReLU, strided convolutions, shortcuts."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.PReLU())

    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(block(2, 4), block(4, 4)), nn.Sequential(block(8, 8), block(8, 4))
            self.down, self.up = nn.Conv3d(4, 8, 2, stride=2), nn.ConvTranspose3d(4, 4, 2, stride=2)
            self.both, self.last = nn.Sequential(block(8, 4), block(4, 4)), nn.Conv3d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            fine = self.first(x)
            return self.last(self.both(torch.cat([fine, self.up(self.second(self.down(fine)))], 1)))

    return Segmenter().eval()


UNETS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "an autoencoder of signals": lambda: (encoder_decoder(1), 1),
    "an autoencoder of images": lambda: (encoder_decoder(2), 2),
    "an autoencoder of volumes": lambda: (encoder_decoder(3), 3),
    "a U-Net with concatenated shortcuts": lambda: (unet(2, ["UNet", "UNet"]), 2),
    "a U-Net of volumes with instance norms": lambda: (segmenter_3d(), 3),
    "grouped transposed convolutions": lambda: (unet(2, ["grouped"]), 2),
    "depthwise transposed convolutions": lambda: (unet(2, ["depthwise"]), 2),
    "a transposed convolution with a given output size": lambda: (SizedUp().eval(), 2),
}


@pytest.mark.situation("filters next to transposed convolutions are gated, skipped and removed")
@pytest.mark.parametrize("name", UNETS)
def test_networks_with_transposed_convolutions(name: str) -> None:
    torch.manual_seed(0)
    backbone, axes = UNETS[name]()
    net = gw.GaterNet(backbone, gater=Scripted.of("01?"), example=volumes(axes, 2)).eval()
    transposed = [path for path, layer in backbone.named_modules() if isinstance(layer, TRANSPOSED_CONVOLUTIONS)]
    assert any(
        own.layer in transposed for site in net.sites for own in (site.producer, *site.depthwise, *site.consumers)
    )
    check_faster_forms(net, volumes(axes, 5))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_norm_behind_transposed_convolution_is_folded(groups: int, bias: bool) -> None:
    make, x = Layers(2), torch.randn(2, 4, 5, 5)
    up = make.transposed(4, 8, stride=2, groups=groups, bias=bias, dilation=2)
    net = nn.Sequential(up, make.norm(8)).eval()
    expected = net(x).detach()
    fast = gw.optimize_for_inference(net, example=x)
    assert fast.folded == {"0": "1"}
    assert_close(fast(x), expected, **CLOSE)
    fast.undo()
    assert_close(folded(net, x)(x), expected, **CLOSE)


def test_gate_before_transposed_convolution_may_scale_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(GateBeforeConvolution, "_weights_pay", lambda *_: True)
    net = encoder_decoder(2)
    gw.insert_gates(net, "gct", before=nn.ConvTranspose2d)
    for gate in gw.gates_in(net).values():
        for parameter in gate.parameters():
            nn.init.normal_(parameter)
    x = volumes(2, 1)
    expected = net(x).detach()
    assert_close(gw.optimize_for_inference(net, example=x)(x), expected, **CLOSE)


# Signals and volumes


def classifier(axes: int) -> nn.Module:
    make = Layers(axes)
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]
    return nn.Sequential(
        *(make.conv(2, 6), make.norm(6), nn.ReLU(), make.conv(6, 6), make.norm(6), nn.ReLU()),
        *(pool(1), nn.Flatten(), nn.Linear(6, 3)),
    ).eval()


@pytest.mark.situation("GaterNets of signals and volumes, from an example alone")
@pytest.mark.parametrize("gater", ["light", "local"], ids=["light gater", "local gater"])
@pytest.mark.parametrize("axes", [1, 3], ids=["signals", "volumes"])
def test_gaters_of_any_rank(axes: int, gater: str) -> None:
    torch.manual_seed(0)
    net = gw.GaterNet(classifier(axes), gater=gater, budget=0.5, example=volumes(axes, 2))
    loss = nn.functional.cross_entropy(net(volumes(axes, 4)), torch.tensor([0, 1, 2, 0])) + gw.gate_loss(net)
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.gater.parameters())
    check_faster_forms(net.eval(), volumes(axes, 5), "auto" if gater == "light" else "bucket")
    assert net.dense_macs == macs_per_sample(net.backbone, volumes(axes, 1))


@pytest.mark.parametrize(
    ("shape", "pooled"),
    [
        ((1, 16000), (4,)),
        ((1, 4096), None),
        ((1, 96, 80, 3), (3, 3, 3)),
        ((1, 32, 32, 32), None),
        ((3, 224, 2), (4, 2)),
    ],
)
def test_light_gater_pools_large_inputs(shape: tuple[int, ...], pooled: tuple[int, ...] | None) -> None:
    gater = make_gater("light", 5, 5, shape, 10**8, bottleneck=4, head_norm=False, gate_bias=0.0)
    first = gater.features[0]
    assert (tuple(first.kernel_size) if type(first).__name__.startswith("AvgPool") else None) == pooled
    x = torch.randn(2, *shape)
    assert gater(x).shape == (2, 5)
    assert macs_per_sample(gater, x) <= 0.03 * 10**8


def test_gater_for_images_says_that_it_fails_on_volumes() -> None:
    with pytest.raises(
        InvalidValueError, match=r"the gater fails on an image of 2 x 4 x 4 x 4 \(.*Choose another gater"
    ):
        gw.GaterNet(classifier(3), gater="resnet20", example=volumes(3, 2))


# Forwards that read their layers


class Asking(nn.Module):
    """Two convolutions with a norm between them, and a forward that `ask`s something of them."""

    def __init__(self, ask: Callable[["Asking", Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = Layers(2)
        self.first, self.norm, self.second = make.conv(2, 8, **options), make.norm(8), make.conv(8, 8, **options)
        self.ask, self.last = ask, make.conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.ask(self, x))


def pads_by_stride(net: Asking, x: Tensor) -> Tensor:
    for layer in (net.first, net.second):
        x = layer(nn.functional.pad(x, [layer.kernel_size[0] - layer.stride[0], layer.dilation[0]] * 2)).relu()
    return x


def asks_for_classes(net: Asking, x: Tensor) -> Tensor:
    for layer in (net.first, net.norm, net.second):
        x = layer(x).relu() if type(layer) is nn.Conv2d and isinstance(layer, nn.Conv2d) else layer(x) * 0.5
    return x


def asks_for_bias(net: Asking, x: Tensor) -> Tensor:
    y = net.norm(net.first(x)).relu()
    return net.second(y if net.first.bias is None else -y).relu()


def calls_by_keyword(net: Asking, x: Tensor) -> Tensor:
    return net.second(input=net.norm(input=net.first(input=x)).relu()).relu()


def reads_norm(net: Asking, x: Tensor) -> Tensor:
    return net.second(net.norm(net.first(x)).relu() * (1 + net.norm.eps + net.norm.momentum)).relu()


def reads_padding(net: Asking, x: Tensor) -> Tensor:
    crop = net.first.padding[0]
    return net.second(net.norm(net.first(x)).relu())[..., crop:, crop:].relu()


def reads_width(net: Asking, x: Tensor) -> Tensor:
    y = net.norm(net.first(x)).relu()
    return net.second(y.reshape(len(y), net.first.out_channels, *y.shape[2:])).relu()


def reads_shape_of_weight(net: Asking, x: Tensor) -> Tensor:
    y = net.norm(net.first(x)).relu()
    return net.second(y * torch.linspace(0.5, 1, net.second.weight.shape[1]).view(1, -1, 1, 1).to(y)).relu()


def uses_weight(net: Asking, x: Tensor) -> Tensor:
    return net.second(net.norm(net.first(x)).relu()).relu() + net.first.weight.square().mean()


def decodes_with_same_weight(net: Asking, x: Tensor) -> Tensor:
    y = net.first(x).relu()
    return net.second(net.first(x + nn.functional.conv_transpose2d(y, net.first.weight, padding=1)).relu()).relu()


def asserts_width(net: Asking, x: Tensor) -> Tensor:
    y = net.norm(net.first(x)).relu()
    assert y.shape[1] == 8
    return net.second(y).relu()


def picks_channels(net: Asking, x: Tensor) -> Tensor:
    y = net.norm(net.first(x)).relu()
    return net.second(y[:, torch.arange(7, -1, -1)]).relu()


def works_in_single_precision(net: Asking, x: Tensor) -> Tensor:
    y = net.norm(net.first(x.float())).relu()
    return net.second(y + torch.ones(1)).relu()


ANSWERED = {  # questions that the layers of a faster network answer as those of the original one
    "padding by stride, kernel size and dilation": (pads_by_stride, {"stride": 2, "padding": 0}),
    "the class of a layer": (asks_for_classes, {}),
    "whether there is a bias": (asks_for_bias, {"bias": False}),
    "layers called by keyword": (calls_by_keyword, {}),
    "constants of a norm": (reads_norm, {}),
    "cropping by the padding": (reads_padding, {}),
    "the values of a weight": (uses_weight, {}),
    "no double precision": (works_in_single_precision, {}),
}
LEFT_WHOLE = {  # forwards that need all filters of a layer
    "the number of filters": (reads_width, {}),
    "the shape of a weight": (reads_shape_of_weight, {}),
    "a decoder with the encoder's weight": (decodes_with_same_weight, {}),
    "an assertion about the width": (asserts_width, {}),
    "channels in another order": (picks_channels, {}),
}
KIND = "forwards that read attributes of their layers"


def asked(ask: Callable[[Asking, Tensor], Tensor], options: dict[str, Any]) -> gw.GaterNet:
    return gw.GaterNet(
        Asking(ask, **options).eval(), gater=Scripted.of("01?"), example=torch.randn(2, 2, 16, 16)
    ).eval()


@pytest.mark.situation(KIND)
@pytest.mark.parametrize("name", ANSWERED)
def test_layers_answer_as_before(name: str) -> None:
    net, x = asked(*ANSWERED[name]), torch.randn(5, 2, 16, 16)
    fast, small = check_faster_forms(net, x)
    assert fast.skipped == ()
    assert any(site.removed for site in small.compaction.sites)


@pytest.mark.situation(KIND)
@pytest.mark.parametrize("name", LEFT_WHOLE)
def test_site_that_the_forward_needs_whole_stays_whole(name: str) -> None:
    net = asked(*LEFT_WHOLE[name])
    fast, _ = check_faster_forms(net, torch.randn(5, 2, 16, 16))
    assert [site.name for site in fast.skipped if site.reason]
    assert len(fast.skipped) < len(net.sites), "another site is still skipped"


def needs_one_whole(net: Asking, x: Tensor) -> Tensor:
    first = net.norm(net.first(x)).relu()
    second = net.second(first).relu()
    assert first.shape[1] == 8 or second.shape[1] == 8
    return second


def test_sites_that_are_safe_only_alone_are_not_narrowed_together() -> None:
    net = asked(needs_one_whole, {})
    fast, _ = check_faster_forms(net, torch.randn(5, 2, 16, 16))
    (site,) = fast.skipped
    assert site.name == "second"
    assert site.reason.startswith("without them the network raises AssertionError")


def refuses_noise(net: Asking, x: Tensor) -> Tensor:
    if not torch.compiler.is_exporting() and x.min() < 0:
        raise KeyError("negative pixels")
    return net.second(net.first(x).relu()).relu()


def test_network_that_cannot_be_tried_stays_whole() -> None:
    net = asked(works_in_single_precision, {})
    net.backbone.ask = refuses_noise
    x = torch.rand(3, 2, 16, 16)
    fast, _ = check_faster_forms(net, x)
    reasons = {site.reason for site in fast.skipped}
    assert all("the network cannot be tried on noise: KeyError (KeyError: 'negative pixels')" in own for own in reasons)


def test_layer_with_a_computed_weight_stays_whole() -> None:
    backbone = Asking(calls_by_keyword).eval()
    prune.random_unstructured(backbone.first, "weight", 0.5)
    net = gw.GaterNet(backbone, gater=Scripted.of("01?"), example=torch.randn(2, 2, 16, 16)).eval()
    fast, _ = check_faster_forms(net, torch.randn(5, 2, 16, 16))
    (site,) = fast.skipped
    assert site.reason == "first computes its weight at each call, and cannot run a part of its filters"


class OwnConvolution(nn.Module):
    """A convolution written with torch's functions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernels, padding=1)


def own_convolutions() -> nn.Sequential:
    return nn.Sequential(OwnConvolution(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), OwnConvolution(8, 3)).eval()


@pytest.mark.situation(f"{KIND}: convolutions with torch's functions")
def test_convolutions_of_the_user_stay_whole() -> None:
    net = gw.GaterNet(own_convolutions(), gater=Scripted.of("01?"), example=volumes(2, 2)).eval()
    fast, _ = check_faster_forms(net, volumes(2, 5), "bucket")
    assert [(site.name, site.reason) for site in fast.skipped] == [
        ("0", "0 (OwnConvolution) has parameters for each channel")
    ]
    assert net.executed_macs(torch.zeros(1, net.gate_count)) == 0
    with pytest.raises(InvalidValueError, match=r"gater='local' .* '0' is a OwnConvolution\. Leave it out with sites="):
        gw.GaterNet(own_convolutions(), gater="local", example=volumes(2, 2))


class Functional(nn.Module):
    """Uses the weights of its first two layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.relus, self.last = nn.ModuleList([nn.ReLU() for _ in range(3)]), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer, relu in zip((self.first, self.second), self.relus, strict=False):
            x = relu(nn.functional.conv2d(x, layer.weight, layer.bias))
        return self.last(self.relus[2](self.third(x)))


@pytest.mark.situation(f"{KIND}: weights that the forward uses itself")
def test_weights_that_a_forward_uses_itself_have_no_gates() -> None:
    net = gw.GaterNet(Functional().eval(), gater=Scripted.of("01?"), example=volumes(2, 2)).eval()
    assert [site.name for site in net.sites] == ["third"]
    assert {(own.name, own.reason) for own in net.skipped} >= {
        (
            f"relus.{number}",
            "the network's own forward uses the weights of these filters itself; call a layer such as torch.nn.Conv2d",
        )
        for number in range(2)
    }
    check_faster_forms(net, volumes(2, 5))
    assert net.executed_macs(torch.ones(1, 8)) == net.dense_macs


def test_weights_that_a_part_uses_itself_have_no_gates() -> None:
    backbone = nn.Sequential(Functional(), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    net = gw.GaterNet(backbone.eval(), example=volumes(2, 2))
    assert [site.name for site in net.sites] == ["0.third", "0.last"]
    reason = "0 uses the weights of these filters itself; call a layer such as torch.nn.Conv2d"
    assert {(own.name, own.reason) for own in net.skipped} >= {("0.relus.0", reason), ("0.relus.1", reason)}


def test_instance_norms_and_prelus_run_their_open_channels() -> None:
    backbone = unet(3, ["other_norms"])
    with torch.no_grad():
        backbone[2][0].bias += 1
        backbone[2][1].weight.uniform_(0.5, 1.5)
        backbone[2][1].bias.normal_()
        backbone[2][2].weight.normal_()
        backbone[2][7].running_mean.normal_()
    net = gw.GaterNet(backbone, gater=Scripted.of("01?"), example=volumes(3, 2)).eval()
    fast, small = check_faster_forms(net, volumes(3, 5))
    assert fast.skipped == ()
    norms = [layer for layer in small.modules() if isinstance(layer, nn.InstanceNorm3d)]
    producers = [small.get_submodule(f"backbone.2.{number}") for number in (0, 3, 6)]
    assert [norm.num_features for norm in norms] == [layer.out_channels for layer in producers]
    assert min(norm.num_features for norm in norms) < 4
