"""Recipes: read as written, rejected at once if invalid; the learning rate schedule and the precision."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewise.errors import DataError, InvalidTypeError, InvalidValueError
from gatewise.gates.spec import ModelSpec
from gatewise.training import Recipe
from gatewise.training.learner import resolve_precision

EVERYTHING = Recipe(
    data="somewhere/images",
    model="resnet18_cifar:width=8",
    gate="gct:mode=l1@inner+se",
    init="runs/none/seed_{seed}",
    gater_init="runs/gater/seed_{seed}",
    teacher="runs/none/seed_{seed}",
    teacher_weight=0.25,
    teacher_temperature=2.0,
    epochs=3,
    gate_epochs=1,
    dense_epochs=1,
    seed=7,
    batch_size=12,
    lr=1e-5,
    warmup=0.125,
    momentum=0.5,
    weight_decay=1e-6,
    optimizer="adamw",
    label_smoothing=0.1,
    mixup=0.2,
    cutmix=0.3,
    ema=0.9,
    augmentation="shift+flip+rand-m9-mstd0.5",
    image_size=24,
    loading="stream",
    precision="fp32",
    metric="macro_f1",
    compile=True,
    keep_checkpoint=True,
    validation_split=0.3,
    test_split="fold=1",
    split_seed=4,
    group="patient",
    image_column="file",
    label_column="a,b",
    label_delimiter=";",
    data_root="somewhere/else",
    channels="4,3",
    value_range="0,4095",
    on_broken="skip",
)
PIXELS = Recipe(
    task="segment",
    crop_size=32,
    ignore_index=3,
    class_names="road,car",
    foreground="car",
    class_weights="median_frequency",
    mask_threshold=128,
)


def test_example_sets_every_field() -> None:
    default = Recipe()
    same = [
        field.name
        for field in dataclasses.fields(Recipe)
        if all(getattr(recipe, field.name) == getattr(default, field.name) for recipe in (EVERYTHING, PIXELS))
    ]
    assert same == []


@pytest.mark.parametrize("recipe", [Recipe(), EVERYTHING, PIXELS], ids=["default", "everything", "pixels"])
def test_recipe_round_trip(tmp_path: Path, recipe: Recipe) -> None:
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_file_may_omit_default_values(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3\ngate: gct\n")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe(epochs=3, gate="gct")


def test_numbers_may_use_common_notations(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("lr: 1e-3\nweight_decay: 1/16\nwarmup: 0.1\n")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe(lr=1e-3, weight_decay=0.0625, warmup=0.1)


def test_text_instead_of_number_rejected(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("lr: fast\n")
    with pytest.raises(InvalidTypeError, match="lr must be a number, got 'fast'"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_recipe_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3  # pyright: ignore


def test_gates_of_model_and_gate_are_joined() -> None:
    assert Recipe(model="resnet20+se", gate="gct@inner").spec == ModelSpec.parse("resnet20+se+gct@inner")
    assert Recipe(model="resnet18_cifar:width=8").spec == ModelSpec.parse("resnet18_cifar:width=8")


def test_unknown_name_rejected_with_suggestion(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epoch: 3\n")
    with pytest.raises(InvalidValueError, match=r"'epoch'.*Did you mean 'epochs'\?"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"epochs": 0}, InvalidValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, InvalidTypeError, "epochs must be an integer, got 1.5"),
        ({"epochs": True}, InvalidTypeError, "epochs must be an integer, got True"),
        ({"batch_size": 0}, InvalidValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "8"}, InvalidTypeError, "batch_size must be an integer, got '8'"),
        ({"seed": -1}, InvalidValueError, "seed must be at least 0, got -1"),
        ({"seed": None}, InvalidTypeError, "seed must be an integer, got None"),
        ({"lr": 0}, InvalidValueError, "lr must be between 1e-08 and 1000, got 0"),
        ({"lr": 1001.0}, InvalidValueError, "lr must be between 1e-08 and 1000, got 1001.0"),
        ({"lr": math.nan}, InvalidValueError, "lr must be between 1e-08 and 1000, got nan"),
        ({"lr": "fast"}, InvalidTypeError, "lr must be a number, got 'fast'"),
        ({"warmup": 1.0}, InvalidValueError, "warmup must be between 0 and 0.99, got 1.0"),
        ({"warmup": -0.1}, InvalidValueError, "warmup must be between 0 and 0.99, got -0.1"),
        ({"momentum": 1}, InvalidValueError, "momentum must be between 0 and 0.99, got 1"),
        ({"weight_decay": -1e-4}, InvalidValueError, "weight_decay must be between 0 and 1, got -0.0001"),
        ({"weight_decay": 2}, InvalidValueError, "weight_decay must be between 0 and 1, got 2"),
        ({"label_smoothing": 1.1}, InvalidValueError, "label_smoothing must be between 0 and 1, got 1.1"),
        ({"augmentation": "shifts"}, InvalidValueError, "unknown augmentation 'shifts'; .* Did you mean 'shift'"),
        ({"augmentation": None}, InvalidTypeError, "augmentation must be text, got None"),
        ({"precision": "fp31"}, InvalidValueError, "unknown precision 'fp31'; expected one of .*'bf16'"),
        ({"image_size": 2}, InvalidValueError, "image_size must be at least 4, got 2"),
        ({"image_size": "8"}, InvalidTypeError, "image_size must be an integer, got '8'"),
        ({"gate": "gcct"}, InvalidValueError, r"unknown gate 'gcct'; .* Did you mean 'gct'\?"),
        ({"gate": "gct:mode=l3"}, InvalidValueError, r"unknown mode 'l3'; expected one of 'l1', 'l2'"),
        (
            {"gate": "gct:modes=l1"},
            InvalidValueError,
            r"unknown option of gate 'gct' 'modes'; .* Did you mean 'mode'\?",
        ),
        ({"gate": "gct@inne"}, InvalidValueError, r"unknown place 'inne'; .* Did you mean 'inner'\?"),
        ({"gate": None}, InvalidTypeError, "gate must be text, got None"),
        ({"model": ""}, InvalidValueError, "no model name in ''"),
        ({"model": 20}, InvalidTypeError, "model must be text, got 20"),
        ({"data": None}, InvalidTypeError, "data must be text, got None"),
        ({"optimizer": 1}, InvalidTypeError, "optimizer must be text, got 1"),
    ],
)
def test_invalid_value_rejected_and_named(values: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"- epochs", "is not a recipe; expected lines such as 'epochs: 20'"),
        (b"", "is not a recipe"),
    ],
)
def test_file_not_recipe_rejected_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(DataError, match=rf"mine\.yaml {message}") as caught:
        Recipe.load(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


def test_missing_file_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.yaml' does not exist"):
        Recipe.load(tmp_path / "mine.yaml")


# The learning rate


@settings(deadline=None, max_examples=200)
@given(lr=st.floats(1e-4, 10), warmup=st.floats(0, 0.9), steps=st.integers(2, 400))
def test_rate_rises_linearly_and_falls_to_0(lr: float, warmup: float, steps: int) -> None:
    recipe = Recipe(lr=lr, warmup=warmup)
    rates = [recipe.schedule.rate(step, steps) for step in range(steps)]
    rising = round(warmup * steps)
    falling = steps - rising
    assert all(0 < rate <= lr * (1 + 1e-12) for rate in rates)
    for step in range(rising):
        assert math.isclose(rates[step], lr * (step + 1) / rising, rel_tol=1e-9)
    if falling:
        assert math.isclose(rates[rising], lr, rel_tol=1e-9)
        assert all(a > b for a, b in zip(rates[rising:], rates[rising + 1 :], strict=False))
        assert rates[-1] <= lr * (math.pi / (2 * falling)) ** 2 * (1 + 1e-9)


def test_rate_falls_as_half_cosine() -> None:
    rates = [Recipe(lr=2.0, warmup=0.0).schedule.rate(step, 6) for step in range(6)]
    expected = [2.0, 1 + math.sqrt(3) / 2, 1.5, 1.0, 0.5, 1 - math.sqrt(3) / 2]
    assert rates == pytest.approx(expected)


# Precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_chosen_precision_is_kept(precision: str, device: str) -> None:
    if (precision, device) == ("fp16", "cpu"):
        with pytest.raises(InvalidValueError, match="fp16 needs a GPU, got a CPU; use bf16"):
            resolve_precision(precision, torch.device(device))
    else:
        assert resolve_precision(precision, torch.device(device)) == precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")],
)
def test_auto_is_bf16_on_supporting_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_on_supporting_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_auto_is_fp32_on_other_devices() -> None:
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
