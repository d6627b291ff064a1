"""The registry: custom gates, errors, facts, and how gates are made by name."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.gates import registry
from gatewise.gates.registry import Gate, GateSpec, bottleneck_width
from gatewise.graph import place_names


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """Return x * factor."""
    return x * factor


FACTS: dict[str, Any] = {"function": scale, "title": "Scale", "paper": "Example, 2020", "place": "inner"}


class ScaleEverything(Gate):
    """Multiply by one learned number."""

    def __init__(
        self,
        channels: int,
        *,
        start: float = 1.0,
        spatial_dims: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.factor = nn.Parameter(torch.full((1,), start, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return scale(x, self.factor)


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    before = copy.copy(registry._registry)
    yield
    registry._registry.clear()
    registry._registry.update(before)


# ---- a custom gate ---------------------------------------------------------------------------------------------------


def test_registered_class_is_made_by_name_with_options() -> None:
    assert gw.register_gate("scale", **FACTS)(ScaleEverything) is ScaleEverything
    gate = gw.make_gate("scale", 4, start=3.0, dtype=torch.float64)
    assert isinstance(gate, ScaleEverything)
    assert (gate.channels, gate.factor.item(), gate.factor.dtype) == (4, 3.0, torch.float64)


def test_registered_class_is_listed_but_not_public() -> None:
    gw.register_gate("scale", **FACTS)(ScaleEverything)
    assert "scale" in gw.gate_names()
    assert gw.gate_spec("scale").gate is ScaleEverything
    with pytest.raises(AttributeError, match="'gatewise' has no attribute 'ScaleEverything'"):
        gw.ScaleEverything  # noqa: B018


def test_registered_class_is_inserted_at_its_place() -> None:
    gw.register_gate("scale", **FACTS)(ScaleEverything)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    x = torch.randn(1, 3, 8, 8)
    before = nn.Sequential(net[0], net[1])(x) * 2
    insertion = gw.insert_gates(net, "scale:start=2.0")
    assert [type(gate) for gate in insertion.gates.values()] == [ScaleEverything]
    torch.testing.assert_close(net(x), nn.functional.conv2d(before, net[2].weight, net[2].bias))


def test_spec_has_facts_given_at_registration() -> None:
    gw.register_gate("scale", **FACTS, variants={"double": {"start": 2.0}}, no_effect_at_init={"spatial_dims": "rank"})(
        ScaleEverything
    )
    spec = gw.gate_spec("scale")
    assert spec == GateSpec(
        name="scale",
        gate=ScaleEverything,
        **FACTS,
        variants={"double": {"start": 2.0}},
        no_effect_at_init={"spatial_dims": "rank"},
    )


def test_options_are_constructor_keywords_without_device_and_dtype() -> None:
    gw.register_gate("scale", **FACTS)(ScaleEverything)
    options = gw.gate_spec("scale").options
    assert {name: option.default for name, option in options.items()} == {"start": 1.0, "spatial_dims": 2}


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_used_name_rejected_with_its_owner() -> None:
    gw.register_gate("scale", **FACTS)(ScaleEverything)
    with pytest.raises(ValueError, match="gate 'scale' is already registered, by ScaleEverything"):
        gw.register_gate("scale", **FACTS)


def test_unknown_place_of_gate_rejected_at_insertion_with_suggestion() -> None:
    gw.register_gate("scale", **{**FACTS, "place": "iner"})(ScaleEverything)
    with pytest.raises(ValueError, match=r"unknown place 'iner'; .*Did you mean 'inner'\?"):
        gw.insert_gates(nn.Sequential(nn.Conv2d(3, 8, 3)), "scale")


@pytest.mark.parametrize("name", ["two words", "1st", "a-b", "", "a+b", "a@b"])
def test_name_unreadable_by_spec_grammar_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"must consist of letters, digits and '_', got {name!r}")):
        gw.register_gate(name, **FACTS)


@pytest.mark.parametrize("ask", [gw.gate_spec, lambda name: gw.make_gate(name, 8)])
def test_unknown_name_rejected_with_all_names_and_suggestion(ask: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown gate 'gcct'; expected one of .* Did you mean 'gct'\?") as error:
        ask("gcct")
    assert all(repr(name) in str(error.value) for name in gw.gate_names())


def test_misspelt_option_in_spec_rejected_with_suggestion() -> None:
    gw.register_gate("scale", **FACTS)(ScaleEverything)
    with pytest.raises(ValueError, match=r"option of gate 'scale' 'stat'; .*Did you mean 'start'\?"):
        gw.gate_spec("scale").make(8, stat=2.0)


def test_non_gate_attribute_raises_attribute_error() -> None:
    assert not hasattr(gw, "NoSuchGate")


# ---- the gates that come with the package ----------------------------------------------------------------------------


def test_names_are_sorted_and_every_class_is_public() -> None:
    names = gw.gate_names()
    assert names == tuple(sorted(names))
    assert {"eca", "gc", "gct", "ge", "lrn", "nl", "se", "snl", "triplet"} <= set(names)
    for name in names:
        gate = gw.gate_spec(name).gate
        assert getattr(gw, gate.__name__) is gate


@pytest.mark.parametrize(
    ("name", "class_name", "place"),
    [
        ("gct", "GatedChannelTransform", "before_conv"),
        ("se", "SqueezeExcite", "residual_end"),
        ("gc", "GlobalContext", "residual_end"),
        ("ge", "GatherExcite", "residual_end"),
        ("nl", "NonLocal", "residual_end"),
        ("snl", "SimplifiedNonLocal", "residual_end"),
        ("triplet", "TripletAttention", "residual_end"),
        ("eca", "EfficientChannelAttention", "residual_end"),
        ("lrn", "LocalResponseNorm", "inner"),
    ],
)
def test_gate_has_class_and_place_of_paper(name: str, class_name: str, place: str) -> None:
    spec = gw.gate_spec(name)
    assert (spec.name, spec.gate.__name__, spec.place) == (name, class_name, place)


def test_defaults_are_those_of_paper() -> None:
    defaults = {name: {o: p.default for o, p in gw.gate_spec(name).options.items()} for name in gw.gate_names()}
    assert {"mode": "l2", "eps": 1e-5, "after_relu": False, "activation": "tanh"}.items() <= defaults["gct"].items()
    assert {"rd_ratio": 1 / 16, "rd_channels": None, "rd_divisor": 1}.items() <= defaults["se"].items()
    assert {"rd_ratio": 1 / 16, "pooling": "attention", "fusion": "add"}.items() <= defaults["gc"].items()
    assert {"extent": 0, "learned": False, "mlp": False, "rd_ratio": 1 / 16}.items() <= defaults["ge"].items()
    assert {"pairwise": "embedded_gaussian", "rd_ratio": 1 / 2}.items() <= defaults["nl"].items()
    assert {"kernel_size": 7, "no_spatial": False}.items() <= defaults["triplet"].items()
    assert {"kernel_size": None, "gamma": 2, "beta": 1}.items() <= defaults["eca"].items()
    assert {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}.items() <= defaults["lrn"].items()


def test_places_are_four_documented_ones() -> None:
    assert place_names(marked=False) == ("before_conv", "inner", "residual_end", "stage_end")


# ---- the base class --------------------------------------------------------------------------------------------------


def test_gate_has_no_loss_and_is_not_identity_by_default() -> None:
    gate = ScaleEverything(4)
    assert gate.extra_loss() is None
    assert gate.identity_at_init is False
    assert gate.no_weight_decay == ()


@pytest.mark.parametrize(("spatial_dims", "kind"), [(1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)])
def test_pointwise_is_1x1_convolution_of_rank_of_gate(spatial_dims: int, kind: type[nn.Module]) -> None:
    layer = ScaleEverything(4, spatial_dims=spatial_dims).pointwise(4, 3, "meta", torch.float64)
    assert type(layer) is kind
    assert layer.weight.shape == (3, 4) + (1,) * spatial_dims
    assert (layer.weight.is_meta, layer.weight.dtype) == (True, torch.float64)


@pytest.mark.parametrize(
    ("channels", "rd_ratio", "rd_channels", "rd_divisor", "width"),
    [
        (64, 1 / 16, None, 1, 4),
        (100, 1 / 16, None, 1, 6),  # rounded down
        (100, 1 / 4, None, 8, 24),
        (16, 1 / 16, None, 8, 8),  # never below one multiple
        (3, 1 / 16, None, 1, 1),
        (64, 1 / 16, 5, 8, 5),  # rd_channels wins
    ],
)
def test_bottleneck_has_expected_width(
    channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int, width: int
) -> None:
    assert bottleneck_width(channels, rd_ratio, rd_channels, rd_divisor) == width
