"""Trainings with a teacher, with routes, and from a network that is trained already."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gatewise as gw
from gatewise.data import Dataset
from gatewise.errors import DataError, InvalidValueError
from gatewise.gaternet.given_routes import routes_from_gates
from gatewise.gaternet.teaching import class_divergence
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import details_in, load_model, save_model
from gatewise.training import Progress, Recipe, train
from gatewise.training.from_recipe import build
from gatewise.training.learner import Learner
from support.small_runs import DATASET, RECIPE, Interrupting, Stop, log, trained, weights

ROUTED = dataclasses.replace(RECIPE, gate="gaternet:routes=2,budget=0.5", epochs=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    trained(folder, dataclasses.replace(RECIPE, epochs=1))
    return folder


def test_run_is_rebuilt_with_its_routes(tmp_path: Path, plain: Path) -> None:
    metrics = train(dataclasses.replace(ROUTED, teacher=str(plain), init=str(plain)), tmp_path / "run", dataset=DATASET)
    net, config = load_model(tmp_path / "run")
    assert isinstance(net, gw.GaterNet)
    assert net.routes is not None
    assert config["spec"]["gates"][0]["options"]["routes"] == 2
    assert metrics["open_fraction"] == pytest.approx(0.5)
    assert torch.equal(net.routes, load_file(tmp_path / "run/model.safetensors")["selection.patterns"] == 1)


def test_routes_are_drawn_after_dense_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    drawn: list[int] = []
    step, draw = Learner.step, gw.GaterNet.draw_routes

    def counted(self: Learner, *args: Any) -> Any:
        opened.append(self.plain_model.all_open)  # type: ignore[arg-type]
        return step(self, *args)

    def noted(self: gw.GaterNet, loader: Any) -> None:
        drawn.append(len(opened))
        draw(self, loader)

    monkeypatch.setattr(Learner, "step", counted)
    monkeypatch.setattr(gw.GaterNet, "draw_routes", noted)
    train(dataclasses.replace(ROUTED, epochs=3), tmp_path / "run", dataset=DATASET)
    assert opened == [True] * 3 + [False] * 6
    assert drawn == [3]
    rows = log(tmp_path / "run")
    assert [row["open_fraction"] for row in rows] == pytest.approx([1.0, 0.5, 0.5])


@pytest.mark.extended
@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_training_has_same_routes_and_weights(tmp_path: Path, epoch: int) -> None:
    recipe = dataclasses.replace(ROUTED, epochs=3, dense_epochs=1, teacher="self")
    train(recipe, tmp_path / "whole", dataset=DATASET)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "resumed", dataset=DATASET, progress=Interrupting(epoch))
    train(recipe, tmp_path / "resumed", resume=True, dataset=DATASET)
    whole, resumed = (weights(tmp_path / name) for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose gates depend on the image."""
    folder = tmp_path_factory.mktemp("gated") / "run"
    trained(folder, dataclasses.replace(RECIPE, gate="gaternet:budget=0.5", epochs=1))
    net, config = load_model(folder)
    last: Any = net.gater.head.fc2  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(last.weight, generator=generator)
    torch.nn.init.zeros_(last.bias)
    save_model(folder, net, ModelSpec.from_dict(config["spec"]), details_in(config))
    return folder


@pytest.mark.extended
def test_gates_of_a_run_become_routes_that_are_trained_further(
    tmp_path: Path, gated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gw.GaterNet, "draw_routes", lambda *_: pytest.fail("routes were drawn again"))
    recipe = dataclasses.replace(ROUTED, epochs=1, init=str(gated))
    metrics = train(recipe, tmp_path / "run", dataset=DATASET, progress=Progress())
    source, net = load_model(gated)[0], load_model(tmp_path / "run")[0]
    assert isinstance(source, gw.GaterNet)
    images = build(recipe.plan(), DATASET).validation.evaluation()
    with torch.no_grad():
        hits = sum(int((source(x).argmax(1) == labels).sum()) for x, labels in images)  # type: ignore[union-attr]
    assert metrics["before"]["accuracy"] == pytest.approx(hits / 30)
    assert {"accuracy", "loss"} == metrics["before"]["routed"].keys()
    assert isinstance(net, gw.GaterNet)
    assert net.routes is not None
    shown_to_gater: Any = build(recipe.plan(), DATASET).learner.sample
    assert torch.equal(net.routes, routes_from_gates(source, shown_to_gater, 2))
    assert int((net.routes[0] != net.routes[1]).sum()) > 0
    shown = capsys.readouterr().err
    routed = 100 * metrics["before"]["routed"]["accuracy"]
    assert f"run: validation accuracy {100 * hits / 30:.2f} %, with routes of its gates {routed:.2f} %" in shown
    assert f"accuracy from {100 * hits / 30:.2f} % to " in shown


def test_run_with_a_gater_does_not_begin_with_all_gates_open(
    tmp_path: Path, gated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(RECIPE, gate="gaternet:budget=0.5", epochs=1, init=str(gated))
    metrics = train(recipe, tmp_path / "run", dataset=DATASET, progress=Progress())
    shown = capsys.readouterr().err
    assert "run: validation accuracy" in shown
    assert "all gates open" not in shown
    setup = build(recipe.plan(), DATASET)
    assert metrics["before"]["loss"] == pytest.approx(setup.learner.evaluate(setup.validation).scores["loss"])
    assert metrics["before"]["loss"] != pytest.approx(setup.learner.evaluate_all_open(setup.validation).scores["loss"])


@pytest.mark.extended
@pytest.mark.parametrize(
    ("gate", "given", "message"),
    [
        ("gaternet:gater=local,budget=0.5", "routes=2", "layer by layer .* Start from a run with another gater"),
        ("gaternet:budget=0.5", "routes=2,group_size=4", "opens? its 336 gates, got a network with 84 gates"),
    ],
)
def test_gates_that_are_no_routes_raise(tmp_path: Path, gate: str, given: str, message: str) -> None:
    trained(tmp_path / "gated", dataclasses.replace(RECIPE, gate=gate, epochs=1))
    recipe = dataclasses.replace(RECIPE, gate=f"gaternet:{given}", init=str(tmp_path / "gated"))
    with pytest.raises(InvalidValueError, match=message):
        train(recipe, tmp_path / "run", dataset=DATASET)
    assert not (tmp_path / "run").exists()


def test_more_routes_than_images_raise_before_the_training(tmp_path: Path) -> None:
    recipe = dataclasses.replace(ROUTED, gate="gaternet:routes=49,budget=0.5")
    with pytest.raises(
        InvalidValueError, match=r"images from which they are computed, 48, got 49\. Choose fewer routes"
    ):
        train(recipe, tmp_path / "run", dataset=DATASET)
    assert not (tmp_path / "run").exists()


def test_what_gating_loses_is_printed(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = dataclasses.replace(RECIPE, gate="gaternet:budget=0.5", epochs=1, init=str(plain))
    metrics = train(recipe, tmp_path / "run", dataset=DATASET, progress=Progress())
    reached = json.loads((plain / "metrics.json").read_text())["accuracy"]
    assert metrics["before"]["accuracy"] == pytest.approx(reached)
    shown = capsys.readouterr().err
    assert f"with all gates open: validation accuracy {100 * reached:.2f} %" in shown
    lost = 100 * (reached - metrics["accuracy"])
    assert (f": lost {lost:.2f}" if lost >= 0 else f": gained {-lost:.2f}") in shown


def test_teacher_of_other_normalisation_sees_same_images(plain: Path) -> None:
    brighter = dataclasses.replace(
        DATASET, train=dataclasses.replace(DATASET.train, pixels=DATASET.train.pixels // 2 + 60)
    )
    recipe = dataclasses.replace(RECIPE, teacher=str(plain), teacher_weight=2.0, teacher_temperature=3.0)
    setup = build(recipe.plan(), brighter)
    assert setup.learner.teaching is not None
    teacher, config = load_model(plain)
    raw = DATASET.train.pixels[:4].float()
    own, theirs = (
        (raw - torch.tensor(mean).reshape(1, -1, 1, 1)) / torch.tensor(std).reshape(1, -1, 1, 1)
        for mean, std in (
            (setup.initial.mean.tolist(), setup.initial.std.tolist()),
            (config["mean"], config["std"]),
        )
    )
    labels = DATASET.train.labels[:4]
    output = setup.learner.plain_model.train()(own)
    lesson = setup.learner.teaching.lesson(output, labels, own)
    with torch.no_grad():
        expected = class_divergence(output, teacher(theirs), 3.0).mean()
    torch.testing.assert_close(lesson, 2 * expected, atol=1e-4, rtol=1e-4)


def test_teacher_of_other_classes_raises(plain: Path, tmp_path: Path) -> None:
    other: Dataset = dataclasses.replace(DATASET, classes=("a", "b", "x"))
    with pytest.raises(DataError, match="was trained for the classes a, b, c, the data has a, b, x"):
        train(dataclasses.replace(RECIPE, teacher=str(plain)), tmp_path / "run", dataset=other)


def test_network_cannot_teach_itself_without_gater() -> None:
    with pytest.raises(InvalidValueError, match=r"there is no gater\. Add gaternet to gate"):
        Recipe(teacher="self")
    recipe = Recipe(teacher="self", gate="gaternet", dense_epochs=2)
    assert recipe.of_comparison("none", 1) == Recipe(seed=1)
    assert recipe.of_comparison("gaternet", 1).teacher == "self"
    assert Recipe(teacher="DIR/seed_{seed}", seed=3).teacher_folder == "DIR/seed_3"


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        ({}, 2),
        ({"init": "run"}, 0),
        ({"dense_epochs": 1}, 1),
        ({"gate": "gaternet:budget=0.5"}, 0),
        ({"init": "run", "dense_epochs": 3}, 3),
    ],
)
def test_routes_from_scratch_begin_with_dense_network(options: dict[str, Any], dense: int) -> None:
    recipe = dataclasses.replace(ROUTED, epochs=5, **options)
    opened = [epoch for stage in recipe.stages if stage.all_open for epoch in stage.epochs]
    assert opened == [*range(dense)]
    with pytest.raises(InvalidValueError, match=r"dense_epochs \(5\) must leave epochs for the gates"):
        dataclasses.replace(ROUTED, epochs=5, dense_epochs=5)
