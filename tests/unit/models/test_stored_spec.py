"""Specs in config.json: every option is written, and a later default changes no stored network."""

import contextlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.core.files import read_json
from gatewise.gates.spec import GateChoice, ModelSpec
from gatewise.models import stored_spec
from gatewise.models.serialization import load_model, save_model
from gatewise.models.stored_spec import abridged, as_stored, in_full

TINY = "resnet20_wider:parameters=3000"
DETAILS = {"num_classes": 10, "in_chans": 1, "image_size": [8, 8]}
NOT_OPTIONS = {"self", "channels", "backbone", "device", "dtype", "image_size", "example"}


def constructor_options(name: str) -> dict[str, Any]:
    kind = gw.GaterNet if name == "gaternet" else gw.gate_spec(name).gate
    parameters = inspect.signature(kind).parameters
    return {option: parameter.default for option, parameter in parameters.items() if option not in NOT_OPTIONS}


def saved(folder: Path, spec: str) -> nn.Module:
    net = gw.make_model(spec, num_classes=10, in_chans=1, image_size=(8, 8), seed=0).eval()
    save_model(folder, net, ModelSpec.parse(spec), DETAILS)
    return net


def same_outputs(net: nn.Module, other: nn.Module) -> bool:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(net.eval()(x), other.eval()(x))


@pytest.mark.parametrize("name", [*gw.gate_names(), "gaternet"])
def test_every_option_is_written_with_its_value(tmp_path: Path, name: str) -> None:
    net = saved(tmp_path, f"{TINY}+{name}")
    ((written),) = read_json(tmp_path / "config.json")["spec"]["gates"]
    assert written["options"] == json.loads(json.dumps(constructor_options(name)))
    if name != "gaternet":
        assert written["place"] == gw.gate_spec(name).place
    again, config = load_model(tmp_path)
    assert same_outputs(net, again)
    assert str(abridged(ModelSpec.from_dict(config["spec"]))) == f"{TINY}+{name}"


def with_another_value(name: str, option: str, default: Any) -> GateChoice:
    """Return a choice of a gate in which an option has another value than its default."""
    variants = gw.gate_spec(name).variants.values()
    given = [variant[option] for variant in variants if option in variant]
    flipped = [not default] if isinstance(default, bool) else []
    for value in (*given, *flipped, 0.5, 3, 4, "reference"):
        for others in ({}, *variants):  # some options need others
            with contextlib.suppress(gw.GatewiseError):
                if value != default:
                    return GateChoice(name, {**others, option: value})
    raise AssertionError(f"no other value of {name}:{option} is known")


@pytest.mark.parametrize("name", gw.gate_names())
def test_every_option_survives_in_a_file(name: str) -> None:
    for option, parameter in gw.gate_spec(name).options.items():
        spec = ModelSpec("resnet20", {}, (with_another_value(name, option, parameter.default),))
        written = in_full(spec, DETAILS)
        again = as_stored(json.loads(json.dumps(written.to_dict())))
        assert again == written
        assert in_full(again, DETAILS) == written
        assert abridged(again).gates[0].options == spec.gates[0].options


def test_given_options_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, f"{TINY}+gct:mode=l1@inner+gaternet:budget=0.25")
    spec = read_json(tmp_path / "config.json")["spec"]
    assert spec["model_options"] == {"parameters": 3000, "shortcut": "projection"}
    assert spec["gates"][0]["options"]["mode"] == "l1"
    assert spec["gates"][0]["place"] == "inner"
    assert spec["gates"][1]["options"]["budget"] == 0.25
    assert in_full(as_stored(spec), DETAILS) == as_stored(spec)


def test_number_of_classes_is_written_once() -> None:
    assert in_full(ModelSpec("resnet20")).model_options == {"shortcut": "projection", "num_classes": 10, "in_chans": 3}
    assert in_full(ModelSpec("resnet20"), DETAILS).model_options == {"shortcut": "projection"}
    assert in_full(ModelSpec("resnet50", {"drop_rate": 0.1})).model_options == {"drop_rate": 0.1}, "a network of timm"


@pytest.mark.parametrize(
    ("gate", "kind", "option", "value"),
    [
        ("gct", gw.GatedChannelTransform, "mode", "l1"),
        ("se", gw.SqueezeExcite, "rd_ratio", 1.0),
        ("triplet", gw.TripletAttention, "no_spatial", True),
        ("gaternet:gater=light", gw.GaterNet, "head_norm", False),
        ("gaternet:gater=light", gw.GaterNet, "sites", "residual"),
    ],
)
def test_later_default_changes_no_stored_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str, kind: Any, option: str, value: Any
) -> None:
    net = saved(tmp_path, f"{TINY}+{gate}")
    for parameter in net.parameters():  # gates that are the identity would compute the same with any option
        parameter.data.add_(0.1)
    save_model(tmp_path, net, ModelSpec.parse(f"{TINY}+{gate}"), DETAILS)
    monkeypatch.setitem(kind.__init__.__kwdefaults__, option, value)
    again, _ = load_model(tmp_path)
    assert same_outputs(net, again)
    fresh = gw.make_model(f"{TINY}+{gate}", num_classes=10, in_chans=1, image_size=(8, 8), seed=0)
    try:
        fresh.load_state_dict(net.state_dict())
    except RuntimeError:
        return  # other parameters
    assert not same_outputs(net, fresh), "the new default is used by new networks"


def test_option_that_an_older_version_did_not_write_gets_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_spec, "_EARLIER_DEFAULTS", {"gct": {"mode": "l1"}, "resnet20": {"shortcut": "padding"}})
    spec = as_stored({"model": "resnet20", "gates": [{"gate": "gct"}, {"gate": "gct", "options": {"mode": "l2"}}]})
    assert spec.model_options == {"shortcut": "padding"}
    assert [choice.options for choice in spec.gates] == [{"mode": "l1"}, {"mode": "l2"}]


def test_abridged_spec_keeps_what_differs() -> None:
    for text in ("resnet20", "resnet20:shortcut=padding+se@inner", f"{TINY}+gct:mode=l1,eps=0.001+gaternet:budget=0.5"):
        assert str(abridged(in_full(ModelSpec.parse(text)))) == text
    assert abridged(ModelSpec("resnet20", {}, (GateChoice("gct", {"mode": "l2"}, "before_conv"),))) == ModelSpec.parse(
        "resnet20+gct"
    )
