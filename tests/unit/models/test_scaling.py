"""Networks in other widths: by the options of our own and of timm's constructors."""

import pytest

import gatewise as gw
from gatewise.errors import InvalidValueError
from gatewise.gates.spec import ModelSpec
from gatewise.graph.measure import parameter_count
from gatewise.models import scaling
from gatewise.models.scaling import nearest_width, widths_of, without_values

IMAGES = {"num_classes": 7, "in_chans": 1}


def size(spec: ModelSpec) -> int:
    return parameter_count(without_values(spec, IMAGES))


@pytest.mark.parametrize(
    ("network", "option"),
    [
        ("resnet20", "resnet20_wider:parameters="),
        ("resnet20_wider", "resnet20_wider:parameters="),
        ("resnet20:shortcut=padding", "resnet20_wider:shortcut=padding,parameters="),
        ("resnet18_cifar:width=32", "resnet18_cifar:width="),
        ("resnet18", "resnet18:channels="),
        ("rexnet_100", "rexnet_100:width_mult="),
    ],
)
def test_network_of_half_the_parameters(network: str, option: str) -> None:
    plain = ModelSpec.parse(network)
    widths = widths_of(plain, **IMAGES)
    spec, found = nearest_width(lambda by: widths(by, 1), size, size(plain) / 2, tolerance=0.02)
    assert str(spec).startswith(option)
    assert found == size(ModelSpec.parse(str(spec))) == pytest.approx(size(plain) / 2, rel=0.05)


def test_scaling_by_one_is_the_same_network() -> None:
    for network in ("resnet20", "resnet20_wider:parameters=30000", "resnet18_cifar", "resnet18", "rexnet_100"):
        plain = ModelSpec.parse(network)
        same = widths_of(plain, **IMAGES)(1.0, 8)
        shapes = [[tuple(p.shape) for p in gw.make_model(spec, **IMAGES).parameters()] for spec in (plain, same)]
        assert shapes[0] == shapes[1], network


def test_widths_of_timm_are_multiples_of_a_unit() -> None:
    widths = widths_of(ModelSpec.parse("resnet18"), **IMAGES)
    assert widths(0.8, 8).model_options["channels"] == (48, 104, 208, 408)
    assert widths(0.8, 1).model_options["channels"] == (51, 102, 205, 410)
    assert widths(0.001, 8).model_options["channels"] == (8, 8, 8, 8)


@pytest.mark.parametrize("network", ["vgg11", "u2net", "efficientnet_b0"])
def test_network_that_cannot_be_scaled_is_named(network: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{network} (takes|has) no option for its width"):
        widths_of(ModelSpec.parse(network), **IMAGES)


def test_each_width_is_measured_once() -> None:
    calls: list[str] = []

    def cost(spec: ModelSpec) -> float:
        calls.append(str(spec))
        return spec.model_options["width"]

    spec, found = nearest_width(lambda factor: ModelSpec("net", {"width": max(1, round(10 * factor))}), cost, 17.4)
    assert found == 17
    assert spec.model_options == {"width": 17}
    assert len(calls) == len(set(calls))
    _, found = nearest_width(lambda factor: ModelSpec("net", {"width": max(1, round(10 * factor))}), cost, 1e6)
    assert found < 1e3  # the widest that is tried


def test_option_that_scales_nothing_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_OPTIONS", ("base_width", "channels"))  # ResNet-18 accepts 64 as base_width only
    assert "channels" in widths_of(ModelSpec.parse("resnet18"), **IMAGES)(0.5, 8).model_options
    monkeypatch.setattr(scaling, "_OPTIONS", ("stem_width",))  # that of a stem of one convolution is not used
    with pytest.raises(InvalidValueError, match="resnet18 takes no option for its width"):
        widths_of(ModelSpec.parse("resnet18"), **IMAGES)
