"""Pretrained starts: image size, normalisation and learning rate of weights that timm reads from a local file."""

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch.testing import assert_close

import gatewise as gw
from gatewise.cli.training import TrainFlags, with_flags
from gatewise.models.pretrained import PretrainedImages, pretrained_side
from gatewise.training import Progress, Recipe, train
from gatewise.training.runs import Run

default_cfgs: dict[str, Any] = {}  # timm looks for it in the module of a registered model
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def resnet_of_tests(pretrained: bool = False, **options: Any) -> Any:
    sizes: dict[str, Any] = {"block": BasicBlock, "layers": (1,) * 4, "channels": (8,) * 4, "stem_width": 8, **options}
    return build_model_with_cfg(ResNet, "resnet_of_tests", pretrained, **sizes)


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Register a network of timm whose pretrained weights are in a local file."""
    file = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    torch.manual_seed(5)
    found = resnet_of_tests().state_dict()
    save_file(found, file)
    config = {
        "file": str(file), "num_classes": 1000, "input_size": (3, 24, 24), "mean": MEAN, "std": STD,
        "first_conv": "conv1", "classifier": "fc",
    }  # fmt: skip
    default_cfgs.update(generate_default_cfgs({"resnet_of_tests.local": config}))
    sys.modules[resnet_of_tests.__module__].default_cfgs = default_cfgs  # type: ignore[attr-defined]
    register_model(resnet_of_tests)
    return found


def data(root: Path, mode: str = "RGB") -> str:
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in (("red", (200, 30, 10)), ("blue", (10, 30, 200))):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shifted = tuple(part + number for part in colour)
                Image.new("RGB", (16, 16), shifted).convert(mode).save(root / split / name / f"{number}.png")
    return str(root)


OPTIONS: dict[str, Any] = {
    "model": "resnet_of_tests:pretrained=true",
    "epochs": 1,
    "batch_size": 6,
    "precision": "fp32",
}


@pytest.mark.situation("pretrained: weights of timm, with no other flag")
def test_flags_that_are_silent_suit_the_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(data=data(tmp_path / "data"), gate="gct", gate_epochs=1, **OPTIONS)
    train(recipe, tmp_path / "run", progress=Progress())
    run, said = Run.open(tmp_path / "run"), capsys.readouterr().err
    assert run.config["image_size"] == [24, 24]
    assert run.config["mean"] == pytest.approx([255 * part for part in MEAN])
    assert run.config["std"] == pytest.approx([255 * part for part in STD])
    assert run.recipe.lr == pytest.approx(0.01)
    assert "scaled, and their centre cropped, to 24x24, the size of the pretrained weights" in said
    assert "learning rate 0.01" in said
    state = run.model.state_dict()
    assert torch.equal(state["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"]), "only gates were trained"
    assert run.dataset is not None
    assert run.dataset.size == (24, 24)


def test_flags_that_are_given_win(tmp_path: Path) -> None:
    recipe = Recipe(data=data(tmp_path / "data"), image_size=16, lr=0.3, **OPTIONS)
    assert recipe.schedule.lr == 0.3
    assert recipe.source.load().size == (16, 16)
    assert with_flags(None, TrainFlags(model=OPTIONS["model"])).schedule.lr == pytest.approx(0.01)
    assert with_flags(None, TrainFlags(model=OPTIONS["model"], lr=0.1)).schedule.lr == 0.1


def test_learning_rate_suits_the_optimizer() -> None:
    assert (Recipe().schedule.lr, Recipe(optimizer="adamw").schedule.lr) == (0.1, 0.001)
    assert Recipe(optimizer="adamw", model=OPTIONS["model"]).schedule.lr == pytest.approx(0.0001)
    assert Recipe(model="resnet18").resolved().lr == 0.1


@pytest.mark.situation("pretrained: grey images")
def test_grey_images_are_normalised_by_the_mean_over_colours(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    recipe = Recipe(data=data(tmp_path / "data", "L"), **OPTIONS)
    dataset = recipe.source.load()
    assert dataset.channels == 1
    from gatewise.training.from_recipe import build

    setup = build(recipe.plan(), dataset)
    assert setup.initial.mean.tolist() == pytest.approx([255 * sum(MEAN) / 3])
    stem = setup.learner.plain_model.state_dict()["conv1.weight"].cpu()
    assert_close(stem, weights["conv1.weight"].sum(1, keepdim=True))


def test_images_in_memory_keep_their_size() -> None:
    assert Recipe(data="digits", **OPTIONS).source.load().size == (8, 8)


def test_size_is_known_without_a_download() -> None:
    parse = gw.gates.spec.ModelSpec.parse
    assert pretrained_side(parse("resnet18:pretrained=true")) == timm.get_pretrained_cfg("resnet18").input_size[-1]
    assert pretrained_side(parse("resnet18")) is None
    assert pretrained_side(parse("hf-hub:timm/resnet18.a1_in1k:pretrained=true")) is None
    assert PretrainedImages.of({}).for_channels(3) is None
    assert PretrainedImages(None, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)).for_channels(4) is None
