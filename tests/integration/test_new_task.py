"""Adding a task is one file: tested on a copy of the package with CONTRIBUTING.md's example."""

import json
from pathlib import Path

import pytest

from support.project_copy import copy_with_example, run

SMALL = ["--task", "ordinal:width=0.5", "--data", "digits", "--model", "resnet20", "--epochs", "1", "--workers", "0"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the page's example, one new file."""
    folder = tmp_path_factory.mktemp("project")
    copy_with_example(folder, "training/tasks")
    return folder


@pytest.fixture(scope="module")
def trained(copy: Path) -> Path:
    """Return the folder of a run of the new task."""
    run(copy, "-m", "gatewise", "train", *SMALL, "--gate", "gct", "--out", "run")
    return copy / "run"


def test_command_line_describes_new_task(copy: Path) -> None:
    printed = " ".join(run(copy, "-m", "gatewise", "train", "--help").split())
    assert "ordinal" in printed


def test_run_names_new_task_with_its_options_and_its_score(trained: Path) -> None:
    config, metrics = (json.loads((trained / f"{name}.json").read_text()) for name in ("config", "metrics"))
    assert config["task"] == "ordinal:width=0.5"
    assert metrics["score"] == "distance"
    assert 0 < metrics["distance"] < 9
    (row,) = map(json.loads, (trained / "log.jsonl").read_text().splitlines())
    assert row["validation_distance"] == metrics["distance"]


def test_option_of_new_task_changes_training(copy: Path) -> None:
    script = """
import torch
from gatewise.training import Recipe
losses = [
    Recipe(task=task).task_spec.make("abc").loss(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([1])).item()
    for task in ("ordinal", "ordinal:width=1", "ordinal:width=5")
]
print(losses[0] == losses[1], losses[1] != losses[2])
"""
    assert run(copy, "-c", script).split() == ["True", "True"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "ordinal:widht=1"},
            "unknown option of task 'ordinal' 'widht'; expected one of 'class_names', 'width'",
        ),
        ({"task": "ordinal", "mixup": 0.2}, "mixup is 0.2, but task ordinal does not use it"),
        ({"task": "ordinal:width=0"}, "width must be between 0.01 and 100, got 0"),
        (
            {"task": "ordnal"},
            "unknown task 'ordnal'; expected one of 'classify', 'multilabel', 'ordinal', 'regress', 'segment'",
        ),
        ({"task": "segment:crop_size=32"}, "crop_size is an option of the recipe, not of task"),
    ],
)
def test_wrong_option_is_rejected(copy: Path, options: dict[str, object], message: str) -> None:
    script = f"""
import gatewise as gw
try:
    gw.Recipe(**{options!r})
except gw.GatewiseError as error:
    print(error)
"""
    assert message in run(copy, "-c", script)


def test_comparison_calls_lower_score_better(copy: Path) -> None:
    script = """
from gatewise.core.statistics import PairedDifference, verdict
from gatewise.training import task_class
score = task_class("ordinal").scores[0]
print(verdict(PairedDifference(-0.5, -0.6, -0.4, 0.001), 0.001, higher_is_better=score.higher_is_better))
"""
    assert run(copy, "-c", script).split() == ["better"]


@pytest.mark.slow
def test_comparison_uses_score_and_bootstrap_of_new_task(copy: Path) -> None:
    run(copy, "-m", "gatewise", "compare", *SMALL, "--gates", "none,gct", "--seeds", "2", "--out", "comparison")
    results = json.loads((copy / "comparison/results.json").read_text())
    assert results["score"] == "distance"
    plain, gated = results["variants"]
    difference = gated["difference_over_images"]
    assert difference["mean"] == pytest.approx(gated["distance"]["mean"] - plain["distance"]["mean"], abs=1e-6)
    assert difference["low"] < difference["mean"] < difference["high"]
    table = (copy / "comparison/results.md").read_text()
    assert "| mean distance [95 % interval] |" in table


@pytest.mark.slow
def test_run_of_new_task_is_evaluated_predicted_exported_and_explained(copy: Path, trained: Path) -> None:
    exported = run(copy, "-m", "gatewise", "export", "run", "--to", "onnx", "--int8", "--out", "net.onnx")
    assert "mean distance: " in exported
    script = """
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
Image.fromarray((load_digits().images[3] * 15.9).astype(np.uint8)).save("three.png")
"""
    run(copy, "-c", script)
    for source in ("run", "net.onnx"):
        (line,) = run(copy, "-m", "gatewise", "predict", source, "three.png", "--json").splitlines()
        assert sum(json.loads(line)["classes"].values()) <= 1.0001
    run(copy, "-m", "gatewise", "explain", "run", "--out", "page.html")
    assert "mean distance" in (copy / "page.html").read_text()
    script = """
import gatewise as gw
net = gw.PretrainedNet.of_run("run")
net.save_pretrained("shared")
print(open("shared/README.md").read())
"""
    card = run(copy, "-c", script)
    assert "type: distance" in card
    assert f"| mean distance | **{json.loads((trained / 'metrics.json').read_text())['distance']:.3f}**" in card
