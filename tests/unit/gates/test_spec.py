"""A network and its gates in one string: everything that is written is read back, everything else is rejected."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import gatewise as gw
from gatewise.gates.spec import GateChoice, ModelSpec, format_gates, parse_gates, parse_gates_list, parse_value
from gatewise.graph import place_names

# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("True", True),
        ("false", False),
        ("FALSE", False),
        ("none", None),
        ("None", None),
        ("0", 0),
        ("-3", -3),
        ("16", 16),
        ("1.5", 1.5),
        ("2.0", 2.0),
        ("1e-5", 1e-5),
        ("1E6", 1e6),
        ("1/16", 0.0625),
        ("-3/4", -0.75),
        ("4/2", 2.0),
        ("1/0", "1/0"),
        ("l1", "l1"),
        ("tanh", "tanh"),
        ("light", "light"),
        ("1.5x", "1.5x"),
    ],
)
def test_value_is_word_number_fraction_or_text(text: str, value: object) -> None:
    read = parse_value(text)
    assert (read, type(read)) == (value, type(value))


# --- Round trips -----------------------------------------------------------------------------------------------------

GCT = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["l1", "l2"]) | st.integers(1, 9) | st.floats(1, 1e6),
        "eps": st.floats(1e-30, 1),
        "after_relu": st.booleans(),
        "activation": st.sampled_from(["tanh", "sigmoid", "relu", "elu"]),
        "spatial_dims": st.sampled_from([1, 2, 3]),
    },
)
SE = st.fixed_dictionaries(
    {},
    optional={
        "rd_ratio": st.floats(1e-9, 1) | st.just(1),
        "rd_channels": st.none() | st.integers(2, 256),
        "rd_divisor": st.integers(1, 64),
    },
)
GC = st.tuples(
    SE,
    st.fixed_dictionaries(
        {},
        optional={
            "pooling": st.sampled_from(["attention", "average"]),
            "fusion": st.sampled_from(["add", "multiply", "both"]),
        },
    ),
).map(lambda parts: parts[0] | parts[1])
NAMED = st.one_of(*(st.tuples(st.just(name), options) for name, options in {"gct": GCT, "se": SE, "gc": GC}.items()))
CHOICES = st.builds(
    lambda named, place: GateChoice(*named, place), NAMED, st.none() | st.sampled_from(place_names(marked=False))
)
WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda word: isinstance(parse_value(word), str))
OPTIONS = st.dictionaries(
    WORDS,
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    max_size=3,
)
SPECS = st.builds(
    ModelSpec,
    st.sampled_from(["resnet20", "resnet18_cifar", "resnet50.a1_in1k", "convnext_tiny"]),
    OPTIONS,
    st.lists(CHOICES, max_size=3).map(tuple),
)


@given(CHOICES)
def test_gate_round_trip_through_string(choice: GateChoice) -> None:
    assert GateChoice.parse(str(choice)) == choice


@given(SPECS)
def test_spec_round_trip_through_string(spec: ModelSpec) -> None:
    assert ModelSpec.parse(str(spec)) == spec
    assert str(ModelSpec.parse(str(spec))) == str(spec)


@given(SPECS)
def test_spec_round_trip_through_dictionary_yaml_and_json(spec: ModelSpec) -> None:
    values = spec.to_dict()
    assert ModelSpec.from_dict(values) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(values))) == spec
    assert ModelSpec.from_dict(yaml.safe_load(yaml.safe_dump(values))) == spec


@given(st.lists(st.lists(CHOICES, max_size=3).map(tuple), min_size=1, max_size=5, unique_by=format_gates))
def test_comparison_list_round_trip_through_string(chosen: list[tuple[GateChoice, ...]]) -> None:
    """Commas separate networks and also options; each is read correctly."""
    assert parse_gates_list(",".join(map(format_gates, chosen))) == chosen


@given(SPECS)
def test_equal_specs_have_equal_hashes(spec: ModelSpec) -> None:
    assert hash(ModelSpec.from_dict(spec.to_dict())) == hash(spec)


# --- Examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "options", "place"),
    [
        ("gct", "gct", {}, None),
        (" se@residual_end ", "se", {}, "residual_end"),
        ("gct:mode=l1@before_conv", "gct", {"mode": "l1"}, "before_conv"),
        ("gct:activation=sigmoid", "gct", {"activation": "sigmoid"}, None),
        ("gct:mode=3,after_relu=true,eps=1e-4", "gct", {"mode": 3, "after_relu": True, "eps": 1e-4}, None),
        ("se:rd_ratio=1/8,rd_channels=none@inner", "se", {"rd_ratio": 0.125, "rd_channels": None}, "inner"),
        ("gct: mode = l1 , eps = 0.1", "gct", {"mode": "l1", "eps": 0.1}, None),
    ],
)
def test_gate_in_one_string(text: str, name: str, options: dict[str, Any], place: str | None) -> None:
    assert GateChoice.parse(text) == GateChoice(name, options, place)


def test_words_round_trip() -> None:
    choice = GateChoice("gct", {"after_relu": True, "epsilon": None, "eps": 1e-4}, "inner")
    assert str(choice) == "gct:after_relu=true,epsilon=none,eps=0.0001@inner"
    assert str(ModelSpec("resnet20", {"num_classes": 5}, (choice,))) == f"resnet20:num_classes=5+{choice}"


def test_model_in_one_string() -> None:
    spec = ModelSpec.parse(" resnet18_cifar:width=32,num_classes=5+gct:mode=l1@before_conv+se ")
    assert spec.model == "resnet18_cifar"
    assert spec.model_options == {"width": 32, "num_classes": 5}
    assert spec.gates == (GateChoice("gct", {"mode": "l1"}, "before_conv"), GateChoice("se"))
    assert ModelSpec.parse("resnet20") == ModelSpec("resnet20")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("gct_resnet20.gatewise", "resnet20+gct"),
        ("gct_resnet20:shortcut=A", "resnet20:shortcut=A+gct"),
        ("gc_resnet50.gatewise:pretrained=true+se@stage_end", "resnet50:pretrained=true+gc+se@stage_end"),
        ("gater_resnet56.gatewise", "resnet56+gaternet:sites=residual,gater=resnet20"),
    ],
)
def test_preset_of_timm_is_its_network_and_gates(text: str, spec: str) -> None:
    assert str(ModelSpec.parse(text)) == spec


def test_dictionary_holds_plain_values() -> None:
    assert ModelSpec.parse("resnet20:num_classes=5+gct:mode=l1@inner+se").to_dict() == {
        "model": "resnet20",
        "model_options": {"num_classes": 5},
        "gates": [
            {"gate": "gct", "options": {"mode": "l1"}, "place": "inner"},
            {"gate": "se", "options": {}, "place": None},
        ],
    }


def test_dictionary_may_omit_empty_values() -> None:
    """As a person writes it in YAML."""
    text = "model: resnet20\ngates:\n- gate: gct\n- {gate: se, place: inner, options: }\n"
    assert ModelSpec.from_dict(yaml.safe_load(text)) == ModelSpec.parse("resnet20+gct+se@inner")
    assert ModelSpec.from_dict({"model": "resnet20", "model_options": None}) == ModelSpec("resnet20")


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("none,se,gct", ["none", "se", "gct"]),
        ("gct:mode=l1,eps=1e-4,gc", ["gct:mode=l1,eps=0.0001", "gc"]),
        ("gct:mode=l1,eps=1e-4@inner,se", ["gct:mode=l1,eps=0.0001@inner", "se"]),
        ("se+gct:mode=l1,eps=0.5,none", ["se+gct:mode=l1,eps=0.5", "none"]),
        ("gct:mode=l1,eps=0.5+se:rd_divisor=8,rd_channels=2", ["gct:mode=l1,eps=0.5+se:rd_divisor=8,rd_channels=2"]),
        ("gct:mode=l1,gct:mode=3,gct", ["gct:mode=l1", "gct:mode=3", "gct"]),
        (" none , se , ", ["none", "se"]),
    ],
)
def test_comma_separates_networks_unless_option_follows(text: str, networks: list[str]) -> None:
    assert [format_gates(gates) for gates in parse_gates_list(text)] == networks


def test_none_is_no_gate() -> None:
    assert parse_gates("none") == parse_gates(" none ") == ()
    assert format_gates(()) == "none"


def test_choices_are_values() -> None:
    one, same, other = GateChoice.parse("gct:mode=l1"), GateChoice("gct", {"mode": "l1"}), GateChoice.parse("gct")
    assert one == same
    assert one != other
    assert len({one, same}) == 1
    with pytest.raises(AttributeError):
        one.name = "se"


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gctt", r"unknown gate 'gctt'; expected one of .*Did you mean 'gct'\?"),
        ("", r"unknown gate ''"),
        ("mode=l1", r"unknown gate 'mode=l1'"),
        ("gct:mod=l1", r"unknown option of gate 'gct' 'mod'; expected one of .*Did you mean 'mode'\?"),
        ("gct:mode=l3", r"unknown mode 'l3'; expected one of 'l1', 'l2'"),
        ("gct:mode=0.5", r"mode must be between 1 and 1e\+06, got 0\.5"),
        ("gct:eps=nan", r"eps must be between .*, got nan"),
        ("gct:mode", r"cannot parse option 'mode' in 'gct:mode'; expected NAME=VALUE, for example gct:mode=l1"),
        ("gct:mode=", r"cannot parse option 'mode=' in 'gct:mode='; expected NAME=VALUE"),
        ("gct:=l1", r"cannot parse option '=l1' in 'gct:=l1'; expected NAME=VALUE"),
        (
            "gct@",
            r"no place after '@' in 'gct@'; expected one of before_conv, context, context_stages, inner, residual_end",
        ),
        ("gct@residual", r"unknown place 'residual'; expected one of .*Did you mean 'residual_end'\?"),
        ("gct@inner,eps=1", r"unknown place 'inner,eps=1'"),
        ("se:rd_ratio=32", r"rd_ratio must be between 1e-09 and 1, got 32"),
    ],
)
def test_invalid_gate_rejected_at_once(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateChoice.parse(text)
    with pytest.raises(gw.GatewiseError, match=message):
        ModelSpec.parse(f"resnet20+{text}")


@pytest.mark.parametrize("text", ["gct,gct@before_conv", "none,gct,gct:mode=l2", "se,se:rd_ratio=1/16@residual_end"])
def test_equal_gates_in_other_words_rejected_as_duplicates(text: str) -> None:
    with pytest.raises(ValueError, match="gates listed twice: "):
        parse_gates_list(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gct:", "no option after ':'"),
        ("none+gct", "'none' cannot be combined with other gates"),
        ("gct:mode=l1,mode=l2", "option 'mode' is given twice"),
    ],
)
def test_incomplete_and_superfluous_text_rejected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_gates(text)


def test_sizes_round_trip_through_text_and_files() -> None:
    choice = GateChoice("ge", {"learned": True, "map_size": (7, 8)})
    spec = ModelSpec("resnet20", {}, (choice,))
    assert str(choice) == "ge:learned=true,map_size=7x8"
    assert ModelSpec.parse(str(spec)) == spec == ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))


@pytest.mark.parametrize("sites", ["layer.+", "conv{1,2}", "a@b"])
def test_expression_split_by_grammar_rejected(sites: str) -> None:
    with pytest.raises(ValueError, match="which are separators"):
        GateChoice("gaternet", {"sites": sites})


def test_option_of_wrong_type_rejected() -> None:
    with pytest.raises(TypeError, match=r"rd_divisor must be an integer, got 1\.5 \(float\)"):
        GateChoice.parse("se:rd_divisor=1.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no gates given; expected a list such as none,se,gct"),
        (" , ", r"no gates given; expected a list such as none,se,gct"),
        ("se,gct,se", r"gates listed twice: se\. List each only once\."),
        ("gct:eps=1e-4,se,gct:eps=0.0001", r"gates listed twice: gct:eps=0\.0001\. List each only once\."),
        ("none,none", r"gates listed twice: none\. List each only once\."),
        ("gct,mode=l1", r"unknown gate 'mode=l1'"),
        ("none+gct", "'none' cannot be combined with other gates"),
    ],
)
def test_invalid_list_rejected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_gates_list(text)


def test_spec_without_model_rejected() -> None:
    for text in ("", "+gct", ":width=3"):
        with pytest.raises(ValueError, match=r"no model name in .*; expected for example resnet20\+gct\."):
            ModelSpec.parse(text)
    with pytest.raises(ValueError, match=r"cannot parse option 'wide' in 'resnet20:wide,deep=3\+gct'"):
        ModelSpec.parse("resnet20:wide,deep=3+gct")


def test_unknown_dictionary_keys_rejected_at_both_levels() -> None:
    with pytest.raises(ValueError, match=r"unknown option of a model spec 'gate'; .*Did you mean 'gates'\?"):
        ModelSpec.from_dict({"model": "resnet20", "gate": []})
    with pytest.raises(
        ValueError, match=r"unknown option of a gate of a model spec 'places'; .*Did you mean 'place'\?"
    ):
        ModelSpec.from_dict({"model": "resnet20", "gates": [{"gate": "gct", "places": "inner"}]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"a model spec has no 'model', got nothing\."),
        ({"gates": []}, r"a model spec has no 'model', got 'gates'\."),
        ({"model": ""}, r"model of a model spec must be a string of length >= 1, got ''\."),
        ({"model": "resnet20", "gates": [{"place": "inner"}]}, r"a gate of a model spec has no 'gate', got 'place'\."),
    ],
)
def test_dictionary_without_name_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "a model spec must be a mapping of names to values, got None"),
        ("resnet20", "a model spec must be a mapping of names to values, got 'resnet20'"),
        (
            {"model": "resnet20", "gates": ["gct"]},
            "a gate of a model spec must be a mapping of names to values",
        ),
        ({"model": None}, "model of a model spec must be a string, got None"),
        ({"model": "resnet20", "gates": "gct"}, "gates of a model spec must be a list or null, got 'gct'"),
        ({"model": "resnet20", "model_options": {1: 2}}, "each name in model_options of a model spec must be a string"),
    ],
)
def test_value_of_wrong_type_rejected(values: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ModelSpec.from_dict(values)


def test_hub_name_keeps_colon() -> None:
    spec = ModelSpec.parse("hf-hub:timm/resnet18.a1_in1k:drop_rate=0.1+gct:mode=l1@inner")
    assert (spec.model, spec.model_options) == ("hf-hub:timm/resnet18.a1_in1k", {"drop_rate": 0.1})
    assert [str(gate) for gate in spec.gates] == ["gct:mode=l1@inner"]
    assert ModelSpec.parse(str(spec)) == spec
    assert ModelSpec.parse("hf_hub:timm/resnet18") == ModelSpec("hf_hub:timm/resnet18")
    assert ModelSpec.parse("timm:resnet18") == ModelSpec("timm:resnet18")
    with pytest.raises(ValueError, match="no model name in 'hf-hub:'"):
        ModelSpec.parse("hf-hub:")


def test_timm_folder_name_rejected() -> None:
    with pytest.raises(ValueError, match=r"a string cannot contain a local folder, got 'local-dir:/a\+b'; build the"):
        ModelSpec.parse("local-dir:/a+b")
    assert ModelSpec("local-dir:/a+b").model == "local-dir:/a+b"
