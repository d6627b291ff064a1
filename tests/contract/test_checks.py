"""Every error says what was expected, what was given, and what to do next."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import gatewise as gw
from gatewise import errors
from gatewise.core import _validation
from support.gate_cases import every_case, every_gate, make, random_map


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidValueError, ValueError),
        (errors.InvalidTypeError, TypeError),
        (errors.DataError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.TrainingError, RuntimeError),
    ],
)
def test_every_error_is_gatewise_error_and_builtin_error(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, gw.GatewiseError)
    assert issubclass(kind, builtin)


# ---- one_of ----------------------------------------------------------------------------------------------------------


def test_one_of_returns_known_option() -> None:
    assert _validation.check_one_of("mode", "l2", ["l1", "l2"]) == "l2"


def test_one_of_lists_options_in_order_and_suggests_nearest() -> None:
    with pytest.raises(ValueError, match=re.escape("unknown fusion 'ad'; expected one of 'add', 'both', 'multiply'.")):
        _validation.check_one_of("fusion", "ad", ["multiply", "both", "add"])
    with pytest.raises(ValueError, match=r"Did you mean 'add'\?$"):
        _validation.check_one_of("fusion", "ad", ["multiply", "both", "add"])


def test_one_of_suggests_nothing_far_off() -> None:
    with pytest.raises(ValueError, match=r"unknown mode 'zzz'; expected one of 'l1', 'l2'\.$"):
        _validation.check_one_of("mode", "zzz", ["l1", "l2"])


def test_one_of_reports_empty_options() -> None:
    with pytest.raises(ValueError, match=r"unknown layer 'x'; expected one of nothing \(there are none\)\.$"):
        _validation.check_one_of("layer", "x", [])


@pytest.mark.parametrize("value", [None, 1, ["l1"]])
def test_one_of_rejects_non_string(value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"unknown mode {value!r}")):
        _validation.check_one_of("mode", value, ["l1", "l2"])


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_integer_at_least_accepts_minimum() -> None:
    _validation.check_integer_at_least(2, width=2, depth=99)
    with pytest.raises(ValueError, match=r"width must be at least 2, got 1\."):
        _validation.check_integer_at_least(2, width=1)


@pytest.mark.parametrize(("value", "kind"), [(2.0, "float"), ("2", "str"), (True, "bool"), (None, "NoneType")])
def test_integer_at_least_rejects_other_types(value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"width must be an integer, got {value!r} ({kind}).")):
        _validation.check_integer_at_least(1, width=value)


def test_integer_at_least_checks_every_value() -> None:
    with pytest.raises(ValueError, match=r"second must be at least 1, got 0\."):
        _validation.check_integer_at_least(1, first=1, second=0)


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_number_between_accepts_both_ends(value: float) -> None:
    _validation.check_number_between(0, 1, rate=value)


@pytest.mark.parametrize("value", [-1e-9, 1.5, float("nan"), float("inf"), -float("inf")])
def test_number_between_rejects_value_out_of_bounds(value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"rate must be between 0 and 1, got {value!r}.")):
        _validation.check_number_between(0, 1, rate=value)


@pytest.mark.parametrize(("value", "kind"), [("0.5", "str"), (True, "bool"), (None, "NoneType"), (1j, "complex")])
def test_number_between_rejects_other_types(value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"rate must be a number, got {value!r} ({kind}).")):
        _validation.check_number_between(0, 1, rate=value)


def test_number_between_checks_every_value() -> None:
    with pytest.raises(ValueError, match=r"second must be between 0 and 1, got 2\."):
        _validation.check_number_between(0, 1, first=1, second=2)


# ---- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spatial_dims", "axes"), [(1, "L"), (2, "H, W"), (3, "D, H, W")])
def test_feature_map_names_axes_of_its_rank(spatial_dims: int, axes: str) -> None:
    shape = (2, 4) + (3,) * spatial_dims
    _validation.check_feature_map("Owner", torch.zeros(shape), 4, spatial_dims)
    with pytest.raises(
        ValueError, match=re.escape(f"Owner expects a feature map of shape (N, 7, {axes}), got {shape}")
    ):
        _validation.check_feature_map("Owner", torch.zeros(shape), 7, spatial_dims)


@every_case
def test_other_channels_rejected_with_numbers_and_next_step(name: str, options: dict[str, Any]) -> None:
    gate = make(name, options)
    x = random_map(gate)
    wide = torch.cat([x, x[:, :5]], 1)
    sizes = ", ".join(map(str, wide.shape))
    message = rf"{type(gate).__name__} .*\(N, 8, .*got \({sizes}\).*channels=13, .* 8 channels"
    with pytest.raises(ValueError, match=message):
        gate(wide)


@every_case
def test_other_rank_rejected_with_shapes_and_next_step(name: str, options: dict[str, Any]) -> None:
    gate = make(name, options)
    for x in (random_map(gate)[..., 0], random_map(gate).unsqueeze(-1)):
        message = rf"\(N, 8, .*got {x.dim()} axes: {re.escape(str(tuple(x.shape)))}.*spatial_dims"
        with pytest.raises(ValueError, match=message):
            gate(x)


@every_case
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_map_rejected_with_type_and_next_step(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    gate = make(name, options)
    with pytest.raises(TypeError, match=rf"got {dtype}\. .*\.float\(\)"):
        gate(random_map(gate).to(dtype))


# ---- options ---------------------------------------------------------------------------------------------------------


def test_options_error_names_owner_option_and_known_options() -> None:
    _validation.check_known_options("gate 'x'", {"eps": 1, "mode": 2}, ["mode", "eps"])
    message = "unknown option of gate 'x' 'epps'; expected one of 'eps', 'mode'. Did you mean 'eps'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        _validation.check_known_options("gate 'x'", {"mode": 2, "epps": 1}, iter(["mode", "eps"]))


@every_gate
def test_unknown_option_rejected_with_known_options(name: str) -> None:
    with pytest.raises(ValueError, match=f"gate '{name}' 'no_such_option'; expected one of ") as error:
        gw.make_gate(name, 8, no_such_option=1)
    assert all(repr(option) in str(error.value) for option in gw.gate_spec(name).options)


@every_gate
@pytest.mark.parametrize(("channels", "kind"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)])
def test_invalid_number_of_channels_rejected(name: str, channels: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"channels must .*got {channels}"):
        gw.make_gate(name, channels)


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("gct", {"mode": "l3"}, ValueError, r"unknown mode 'l3'; expected one of 'l1', 'l2', or a number p >= 1"),
        ("gct", {"mode": 0.5}, ValueError, r"mode must be between 1 and 1e\+06, got 0\.5"),
        ("gct", {"mode": None}, TypeError, r"mode must be a number, got None"),
        ("gct", {"mode": True}, TypeError, r"mode must be a number, got True"),
        ("gct", {"activation": "tan"}, ValueError, r"unknown activation 'tan'; .* Did you mean 'tanh'\?"),
        ("gct", {"eps": 0}, ValueError, r"eps must be between 1e-30 and 1, got 0"),
        ("gct", {"epsilon": -1.0}, ValueError, r"eps must be between 1e-30 and 1, got -1\.0"),
        (
            "gct",
            {"eps": 1e-4, "epsilon": 1e-3},
            ValueError,
            r"two names of one option, got 0\.0001 and 0\.001\. Give only eps",
        ),
        ("gc", {"pooling": "max"}, ValueError, r"unknown pooling 'max'; expected one of 'attention', 'average'"),
        ("gc", {"fusion": "sum"}, ValueError, r"unknown fusion 'sum'; expected one of 'add', 'both', 'multiply'"),
        ("gc", {"rd_channels": 1}, ValueError, r"rd_channels must be at least 2, got 1"),
        ("se", {"rd_channels": 0}, ValueError, r"rd_channels must be at least 1, got 0"),
        ("se", {"rd_channels": 2.0}, TypeError, r"rd_channels must be an integer, got 2\.0 \(float\)"),
        ("se", {"rd_ratio": 0}, ValueError, r"rd_ratio must be between 1e-09 and 1, got 0"),
        ("gc", {"rd_ratio": 17}, ValueError, r"rd_ratio must be between 1e-09 and 1, got 17"),
        ("se", {"rd_divisor": 0}, ValueError, r"rd_divisor must be at least 1, got 0"),
        ("se", {"spatial_dims": 4}, ValueError, r"unknown spatial_dims 4; expected one of 1, 2, 3\."),
        (
            "se",
            {"spatial_dims": "2"},
            ValueError,
            r"unknown spatial_dims '2'; expected one of 1, 2, 3\. Did you mean 2",
        ),
        ("se", {"spatial_dims": True}, ValueError, r"unknown spatial_dims True; expected one of 1, 2, 3\."),
    ],
)
def test_invalid_option_value_rejected_with_allowed_values(
    name: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        gw.make_gate(name, 64, **options)


def test_official_gct_epsilon_is_alias_of_eps() -> None:
    assert [gw.GatedChannelTransform(8, **{name: 0.25}).eps for name in ("eps", "epsilon")] == [0.25, 0.25]


# ---- the world around ------------------------------------------------------------------------------------------------


def test_optional_module_returns_module() -> None:
    assert _validation.import_optional("math", "counting").sqrt(4) == 2


def test_optional_module_error_names_purpose_and_extra() -> None:
    message = "drawing needs the package 'no_such_package', which is not installed. "
    with pytest.raises(ImportError, match=re.escape(message)) as error:
        _validation.import_optional("no_such_package", "drawing")
    assert str(error.value).endswith("pip install 'gatewise[train]'")
    with pytest.raises(ImportError, match=re.escape("pip install 'gatewise[export]'")):
        _validation.import_optional("no_such_package.inner", "drawing", extra="export")


def test_existing_path_returns_path_that_exists(tmp_path: Path) -> None:
    assert _validation.check_path_exists("data folder", str(tmp_path)) == tmp_path


def test_existing_path_error_names_missing_path(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(errors.DataError, match=re.escape(f"data folder {str(missing)!r} does not exist. Check")):
        _validation.check_path_exists("data folder", missing)
