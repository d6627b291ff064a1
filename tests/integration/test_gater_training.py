"""A gater in a training and in a comparison: its budget, its log, its saved state."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gatewise as gw
from gatewise.comparison import compare, table
from gatewise.comparison import run as comparing
from gatewise.data import Batches
from gatewise.errors import DataError, InvalidValueError
from gatewise.gaternet import gate_warnings
from gatewise.gaternet.budget import describe_open_fraction
from gatewise.gates.spec import parse_gates
from gatewise.graph.measure import macs_per_sample
from gatewise.models.serialization import load_gater, load_model
from gatewise.training import Progress, Recipe, from_recipe, initial, train
from support.few_digits import QUICK, few_digits, few_rounds  # noqa: F401 - fixtures
from support.project import SUPPORT
from support.routed_nets import routed
from support.small_runs import DATASET, RECIPE, log, trained

GATED = dataclasses.replace(RECIPE, gate="gaternet:budget=0.5", epochs=2)


def test_log_and_metrics_have_macs_of_validation_images(tmp_path: Path) -> None:
    metrics = train(GATED, tmp_path / "run", dataset=DATASET)
    net, config = load_model(tmp_path / "run")
    assert isinstance(net, gw.GaterNet)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    opened, work = [], []
    with torch.no_grad():
        for images, _ in Batches(DATASET.validation, 500, mean, std).evaluation():
            _, gates = net.forward_with_gates(images)
            opened += net.open_fraction(gates).tolist()
            work += net.executed_macs(gates).tolist()
    assert metrics["open_fraction"] == pytest.approx(sum(opened) / 30, abs=1e-4)
    assert metrics["executed_macs"] == pytest.approx(sum(work) / 30, rel=1e-4)
    assert net.dense_macs == gw.GaterNet(net.backbone, image_size=(8, 8)).dense_macs
    rows = log(tmp_path / "run")
    assert rows[-1]["open_fraction"] == metrics["open_fraction"]
    assert all("executed_macs" in row for row in rows)


def test_loss_of_the_gates_is_logged_apart_from_that_of_the_task(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, gate="gaternet:sparsity=1000", epochs=1)
    train(recipe, tmp_path / "run", dataset=DATASET)
    (row,) = log(tmp_path / "run")
    assert 300 < row["gate_loss"] < 700  # 1000 times the mean gate of new gates, about a half
    assert 0.5 < row["loss"] < 5
    trained(tmp_path / "plain", dataclasses.replace(RECIPE, epochs=1))
    assert "gate_loss" not in log(tmp_path / "plain")[0]


def test_budget_that_was_missed_is_said(tmp_path: Path) -> None:
    metrics = train(dataclasses.replace(GATED, epochs=1), tmp_path / "run", dataset=DATASET)
    assert metrics["budget"] == 0.5
    shown = describe_open_fraction(metrics["open_fraction"], metrics["budget"])
    assert shown == f"{metrics['open_fraction']:.3f} (budget 0.5 missed)"  # three steps are too few
    assert describe_open_fraction(0.515, 0.5) == "0.515"
    assert describe_open_fraction(0.47, 0.5) == "0.470 (budget 0.5 missed)"
    assert describe_open_fraction(0.9, None) == "0.900"


def test_plain_network_has_its_macs_and_no_gater_columns(tmp_path: Path) -> None:
    metrics = train(dataclasses.replace(RECIPE, epochs=1), tmp_path / "run", dataset=DATASET)
    assert "open_fraction" not in log(tmp_path / "run")[0]
    assert metrics["executed_macs"] == macs_per_sample(load_model(tmp_path / "run")[0], torch.zeros(1, 1, 8, 8))


def test_warnings_about_gates_that_no_longer_hold_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([["no gate depends on the image"], [], [], []])
    monkeypatch.setattr("gatewise.training.learner.gate_warnings", lambda *_: next(found))
    train(dataclasses.replace(GATED, epochs=3), tmp_path / "run", dataset=DATASET, progress=Progress())
    said = capsys.readouterr().err.splitlines()
    about = [line for line in said if "warning" in line and "steps" not in line and "validation" not in line]
    assert about == [
        "warning: no gate depends on the image",
        "the warnings after epoch 1 no longer hold: the gates have no problem now",
    ]


def test_controller_gets_length_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled: list[int] = []
    monkeypatch.setattr(gw.GaterNet, "schedule", lambda _, steps: scheduled.append(steps))
    trained(tmp_path / "run", dataclasses.replace(GATED, epochs=3))
    assert scheduled == [9]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.3, 0.7])
def test_digits_are_learned_within_budget(tmp_path: Path, budget: float) -> None:
    gate = f"gaternet:budget={budget},gate_bias=2"
    metrics = train(Recipe(data="digits", gate=gate, epochs=20, precision="fp32"), tmp_path / "run")
    assert metrics["open_fraction"] == pytest.approx(budget, abs=0.03)
    assert metrics["accuracy"] > 0.95


@pytest.mark.extended
def test_comparison_counts_executed_macs(few_digits: None, tmp_path: Path) -> None:
    results = compare(QUICK, [parse_gates(text) for text in ("none", "gaternet")], 2, tmp_path / "out")
    none, gated = results["variants"]
    runs = [json.loads((tmp_path / f"out/runs/gaternet/seed_{s}/metrics.json").read_text()) for s in (0, 1)]
    assert gated["macs"] == pytest.approx(sum(run["executed_macs"] for run in runs) / 2)
    assert gated["open_fraction"] == [run["open_fraction"] for run in runs]
    assert "open_fraction" not in none
    shown = table(results)
    column = shown.columns.index("open")
    assert [row[column].text for row in shown.rows] == ["1.000", f"{sum(gated['open_fraction']) / 2:.3f}"]


def test_comparison_without_gaters_has_no_macs_column(few_digits: None, tmp_path: Path) -> None:
    results = compare(QUICK, [parse_gates("none")], 1, tmp_path / "out")
    assert "open" not in table(results).columns


def test_invalid_gater_rejected_first(
    few_digits: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(comparing, "train", nothing)
    with pytest.raises(InvalidValueError, match="budget must be between"):
        compare(QUICK, [parse_gates("none"), parse_gates("gaternet:budget=2")], 1, tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.extended
def test_spec_of_run_rebuilds_net(tmp_path: Path) -> None:
    trained(tmp_path / "run", dataclasses.replace(GATED, gate="se+gaternet:sites=residual,gater=resnet20", epochs=1))
    net, config = load_model(tmp_path / "run")
    assert config["spec"]["gates"][1]["options"].items() >= {"sites": "residual", "gater": "resnet20"}.items()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())


# A warm start


def test_gater_and_its_backbone_start_from_plain_networks(tmp_path: Path) -> None:
    trained(tmp_path / "plain", dataclasses.replace(RECIPE, epochs=1))
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    gate = "gaternet:gater=resnet20,sites=residual"
    warm = {"init": str(tmp_path / "plain"), "gater_init": str(tmp_path / "plain")}
    recipe = dataclasses.replace(RECIPE, gate=gate, epochs=1, lr=1e-8, **warm)
    found = trained(tmp_path / "run", recipe)
    for name in (name for name in plain if "running" not in name and "num_batches" not in name):
        torch.testing.assert_close(found[f"backbone.{name}"], plain[name], atol=1e-6, rtol=0)
        if not name.startswith("fc."):
            torch.testing.assert_close(found[f"gater.features.{name}"], plain[name], atol=1e-6, rtol=0)


def test_gater_of_other_form_rejected_as_start(tmp_path: Path) -> None:
    trained(tmp_path / "plain", dataclasses.replace(RECIPE, epochs=1))
    net = gw.make_model("resnet20+gaternet", num_classes=3, in_chans=1)
    with pytest.raises(DataError, match="does not fit the network"):
        load_gater(net, tmp_path / "plain")
    with pytest.raises(InvalidValueError, match="only a gater built by name"):
        load_gater(gw.make_model("resnet20+gaternet:gater=local", in_chans=1), tmp_path / "plain")


def test_weights_of_gater_rejected_for_plain_network(
    few_digits: None,
    tmp_path: Path,
) -> None:
    trained(tmp_path / "plain", dataclasses.replace(RECIPE, epochs=1))
    with pytest.raises(InvalidValueError, match="only a gater built by name"):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, gater_init=str(tmp_path / "plain")))
    recipe = dataclasses.replace(QUICK, gater_init=str(tmp_path / "plain"))
    assert recipe.of_comparison("gct", 0).gater_init is None
    assert recipe.of_comparison("gaternet", 0).gater_init == recipe.gater_init
    with pytest.raises(InvalidValueError, match=r"gater_init is .*plain'.*but none of none,gct uses it"):
        compare(recipe, [parse_gates("none"), parse_gates("gct")], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.extended
def test_budget_plan_covers_stages_and_restarts_from_other_weights(tmp_path: Path) -> None:
    gated = dataclasses.replace(GATED, gate="gct+gaternet:budget=0.5")
    trained(tmp_path / "first", gated)
    steps = load_model(tmp_path / "first")[0].price.state[0]
    for number, changes in enumerate([{"gate_epochs": 1}, {"init": str(tmp_path / "first")}]):
        network = trained(tmp_path / f"run_{number}", dataclasses.replace(gated, **changes))
        assert network["price.state"][0] == steps > 0, "each step is counted once, those of the weights are not"


def test_plan_covers_complete_training_in_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[Any] = []
    make = from_recipe.make_model
    monkeypatch.setattr(from_recipe, "make_model", lambda *a, **k: nets.append(make(*a, **k)) or nets[-1])
    recipe = dataclasses.replace(GATED, gate="gct+gaternet:budget=0.5", gate_epochs=1)
    train(recipe, tmp_path / "run", dataset=DATASET)
    assert nets[0].price.ramp == int(nets[0].price.state[0]) // 2


# Several processes


@pytest.mark.slow
def test_two_processes_train_gater_to_same_weights_as_one(tmp_path: Path) -> None:
    script = str(SUPPORT / "gater_in_processes.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for arguments in ([script], [*launcher, script]):
        subprocess.run([sys.executable, *arguments, str(tmp_path)], check=True, capture_output=True, timeout=300)
    alone, *shared = (load_file(tmp_path / f"rank_{name}.safetensors") for name in ("0_of_1", "0_of_2", "1_of_2"))
    assert 0 < alone["price.state"][2] < 1, "some gates are open and some closed"
    for weights in shared:
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5)


# Health


def test_dead_saturated_or_constant_gates_are_reported() -> None:
    net = gw.make_model("resnet20+gaternet:sites=residual")
    some = torch.full((336,), 5)
    assert gate_warnings(net, some, 10) == []
    dead = some.clone()
    dead[:16] = 0
    assert gate_warnings(net, dead, 10) == [
        "all 16 gates of 'stages.0.0.conv2' are closed for every image: its output is zero"
    ]
    constant = torch.where(torch.arange(336) % 2 == 0, 10, 0)
    assert "no gate depends on the image" in gate_warnings(net, constant, 10)[0]
    assert "since the previous epoch" in gate_warnings(net, some, 10, before=some)[0]
    net.gater.head.fc2.bias.data.fill_(9.0)
    net.train()(torch.randn(2, 3, 32, 32))
    assert "100 % of the gate logits" in gate_warnings(net, some, 10)[0]


def test_few_dependent_gates_and_missed_budget_are_reported_after_last_step() -> None:
    net = gw.make_model("resnet20+gaternet:budget=0.5")
    pruned = "only 111 of 336 gates depend on the image (open for more than 0.5% and fewer than 99.5% of the images)"
    few = torch.where(torch.arange(336) < 111, 5, torch.where(torch.arange(336) % 2 == 0, 10, 0))
    missed = torch.full((336,), 6)
    assert gate_warnings(net, few, 10) == gate_warnings(net, missed, 10) == []
    net.schedule(1)
    net.price.state[0] = 2
    assert gate_warnings(net, few, 10) == [f"{pruned}: the network is mostly a pruned one"]
    assert gate_warnings(net, torch.where(torch.arange(336) == 111, 5, few), 10) == []
    assert gate_warnings(net, missed, 10) == ["the open fraction is 0.600, the budget 0.5: train longer"]
    assert gate_warnings(net, torch.full((336,), 519), 1000) == []


def test_images_of_one_route_and_routes_that_are_alike_are_reported() -> None:
    net = routed(2)
    gates = net.gate_count
    assert gate_warnings(net, torch.full((gates,), 10), 10) == ["nearly all images take the same of 2 routes"]
    third = -(-gates // 3)
    some = torch.where(torch.arange(gates) < third, 5, 10)
    assert gate_warnings(net, some, 10) == []
    some[0] = 10
    assert f"only {third - 1} of {gates} gates depend on the image" in gate_warnings(net, some, 10)[0]
    assert gate_warnings(routed(1), torch.full((gates,), 10), 10) == []


def test_training_prints_problems_of_gates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = dataclasses.replace(GATED, gate="gaternet:gate_bias=50", epochs=1)
    train(recipe, tmp_path / "run", dataset=DATASET, progress=Progress())
    assert "warning: no gate depends on the image" in capsys.readouterr().err


@pytest.mark.extended
@pytest.mark.parametrize("gate", ["gaternet:budget=0.5", "gaternet:sparsity=0.1", "gaternet:gater=local,budget=0.5"])
def test_gater_in_bf16_matches_float32_numbers(tmp_path: Path, gate: str) -> None:
    metrics = train(
        dataclasses.replace(GATED, gate=gate, precision="bf16", epochs=1), tmp_path / "run", dataset=DATASET
    )
    net, _ = load_model(tmp_path / "run")
    gates = (torch.rand(4, net.gate_count) < 0.5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = net.open_fraction(gates)
    assert torch.equal(under_autocast, net.open_fraction(gates))
    assert 0 <= metrics["open_fraction"] <= 1


def test_gater_on_pretrained_network_keeps_its_normalisation() -> None:
    net = gw.make_model("resnet18+gaternet:gater=light", num_classes=3, image_size=(32, 32))
    recipe = Recipe(model="resnet18:pretrained=true")
    pixels = dataclasses.replace(DATASET.train, pixels=DATASET.train.pixels.expand(-1, 3, -1, -1))
    coloured = dataclasses.replace(DATASET, train=pixels, validation=pixels)
    mean, _ = initial._normalisation(recipe.spec, net, {}, coloured)
    torch.testing.assert_close(mean, 255 * torch.tensor([0.485, 0.456, 0.406]))


def test_gater_has_no_gates_stage_in_comparison() -> None:
    recipe = dataclasses.replace(RECIPE, gate="gct", gate_epochs=1)
    assert recipe.of_comparison("gaternet", 0).gate_epochs == 0
    assert recipe.of_comparison("se+gaternet", 0).gate_epochs == 1
