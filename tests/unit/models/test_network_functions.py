"""Networks of the user, as MODULE:FUNCTION: imported when they are typed, never because a file names them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.cli.app import run as command_line
from gatewise.errors import DataError, InvalidValueError
from gatewise.gates.spec import ModelSpec
from gatewise.models import import_network, network_functions
from gatewise.models.scaling import widths_of
from gatewise.models.serialization import save_model
from gatewise.training import Recipe, train
from support.small_runs import DATASET

CODE = """
from torch import nn
from pathlib import Path

with Path("imported").open("a") as file:
    file.write("x")


def build(num_classes, in_chans, width=4):
    convolutions = nn.Conv2d(in_chans, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def with_own_gates(num_classes, in_chans):
    import gatewise

    net = build(num_classes, in_chans)
    net.insert(3, gatewise.EfficientChannelAttention(4))
    gatewise.insert_gates(net, "triplet", after=nn.ReLU)
    return net


def broken(num_classes, in_chans):
    raise KeyError("no weights")


def number(num_classes, in_chans):
    return num_classes
"""
RECIPE = Recipe(data="memory", model="our_nets:build:width=6", epochs=1, batch_size=16, lr=0.02, precision="fp32")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in a folder with a module of networks, which was not imported."""
    (tmp_path / "our_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(network_functions, "_imported", {})
    yield tmp_path
    sys.modules.pop("our_nets", None)


def forget() -> None:
    """Let this process be a new one, in which the module was not imported."""
    network_functions._imported.clear()
    sys.modules.pop("our_nets", None)
    Path("imported").unlink()


@pytest.mark.parametrize(
    ("text", "function", "options"),
    [
        ("nets:build", "nets:build", {}),
        ("a.nets:build:width=3,deep=true", "a.nets:build", {"width": 3, "deep": True}),
        ("resnet18_cifar:width=32", None, {"width": 32}),
        ("hf-hub:timm/resnet18:drop_rate=0.1", None, {"drop_rate": 0.1}),
        ("timm:resnet18", None, {}),
    ],
)
def test_no_equals_sign_after_the_first_colon_names_a_function(
    text: str, function: str | None, options: dict[str, Any]
) -> None:
    spec = ModelSpec.parse(f"{text}+gct")
    assert (spec.function, spec.model_options) == (function, options)
    assert ModelSpec.parse(str(spec)) == spec == ModelSpec.from_dict(spec.to_dict())


def test_function_gets_classes_channels_and_options(here: Path) -> None:
    import_network("our_nets:build")
    first = gw.make_model("our_nets:build:width=6+gct", num_classes=5, in_chans=1, seed=3)
    assert [tuple(layer.weight.shape[:2]) for layer in first if isinstance(layer, nn.Conv2d | nn.Linear)] == [
        (6, 1), (6, 6), (5, 6),
    ]  # fmt: skip
    assert len(gw.gates_in(first)) == 2
    plain = gw.make_model("our_nets:build:width=6", num_classes=5, in_chans=1, seed=3)
    assert torch.equal(plain[0].weight, first[0].weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("our_nets:bulid", "has no function 'bulid'. Did you mean 'build'"),
        ("other_nets:build", "cannot import .other_nets. .*No module named.*NAME:OPTION=VALUE"),
        ("resnet20:wide", "unknown option of model 'resnet20' 'wide'"),
        ("our/nets.py:build", "cannot parse the network 'our/nets.py:build'"),
        ("our_nets:broken", r"our_nets:broken\(num_classes=3, in_chans=1\) fails: .*no weights"),
        ("our_nets:build:deep=4", r"our_nets:build\(.*fails: .*unexpected keyword argument 'deep'"),
        ("our_nets:number", "must return a torch.nn.Module, got 3"),
    ],
)
def test_mistake_is_said_in_one_line(here: Path, model: str, message: str) -> None:
    def build() -> None:
        import_network(model)
        gw.make_model(model, num_classes=3, in_chans=1)

    with pytest.raises(InvalidValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_file_that_names_a_function_imports_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_network(RECIPE.model)
    train(RECIPE, "run", dataset=DATASET)
    import_network("torch.nn:Identity")  # another function does not open the way
    forget()
    with pytest.raises(DataError, match=r"our_nets:build, and gatewise imports no .*--model our_nets:build"):
        gw.load_model("run")
    with pytest.raises(InvalidValueError, match="imports no module that a file names"):
        train(Recipe.load("run/recipe.yaml"), "again", dataset=DATASET)
    assert command_line(["train", "--recipe", "run/recipe.yaml", "--data", "digits", "--out", "again"]) == 2
    assert command_line(["explain", "run", "--out", "page.html"]) == 2
    assert "give --model our_nets:build" in capsys.readouterr().err.replace("Give", "give")
    assert not Path("imported").exists()
    import_network(RECIPE.model)
    net, _ = gw.load_model("run")
    assert isinstance(net, nn.Sequential)


def test_saved_run_takes_the_network_or_its_function(here: Path) -> None:
    import_network(RECIPE.model)
    train(Recipe(**{**vars(RECIPE), "gate": "gct"}), "run", dataset=DATASET)
    expected, _ = gw.load_model("run")
    build = network_functions.network_function("our_nets:build")
    forget()
    images = torch.rand(2, 1, 8, 8)
    for network in (build, build(num_classes=3, in_chans=1, width=6)):
        net, config = gw.load_model("run", network=network)
        assert config["spec"]["model"] == "our_nets:build"
        assert len(gw.gates_in(net)) == 2
        assert torch.equal(net(images), expected(images))
    with pytest.raises(DataError, match="does not fit"):
        gw.load_model("run", network=build(num_classes=3, in_chans=1, width=5))
    assert not Path("imported").exists()


@pytest.mark.parametrize("gates", ["eca@before_conv", "se@inner+gct", "se@inner+gaternet:budget=0.5"])
def test_gates_of_a_run_are_added_to_those_of_the_network(here: Path, gates: str) -> None:
    """Gates in the class of the network, and gates of other kinds that its function inserts, are its own."""
    import_network("our_nets:with_own_gates")
    spec = ModelSpec.parse(f"our_nets:with_own_gates+{gates}")
    options = {"num_classes": 3, "in_chans": 1, "image_size": (8, 8)}
    net = gw.make_model(spec, **options).eval()
    save_model(Path("saved"), net, spec, options)
    build = network_functions.network_function("our_nets:with_own_gates")
    images = torch.rand(2, 1, 8, 8)
    for network in (build, build(num_classes=3, in_chans=1)):
        loaded, _ = gw.load_model("saved", network=network)
        assert torch.equal(loaded(images), net(images))


def test_gates_of_a_run_may_be_inserted_already(here: Path) -> None:
    import_network("our_nets:build")
    spec = ModelSpec.parse("our_nets:build+gct")
    net = gw.make_model(spec, num_classes=3, in_chans=1)
    save_model(Path("saved"), net, spec, {"num_classes": 3, "in_chans": 1})
    given = gw.make_model(spec, num_classes=3, in_chans=1)
    assert len(gw.gates_in(gw.load_model("saved", network=given)[0])) == len(gw.gates_in(net))


def test_width_of_a_function_is_scaled_by_its_option(here: Path) -> None:
    import_network("our_nets:build")
    widths = widths_of(ModelSpec.parse("our_nets:build"), num_classes=3, in_chans=1)
    assert str(widths(2.5, 1)) == "our_nets:build:width=10"
