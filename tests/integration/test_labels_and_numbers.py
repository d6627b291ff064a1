"""Tasks with several classes or numbers per image, from a table to predictions, pages, cards, exports, comparisons."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import gatewise as gw
from gatewise.analysis.explanation import explain_runs
from gatewise.analysis.score_page import score_run, scores_table
from gatewise.comparison.run_results import _further_scores
from gatewise.exporting import export_run
from gatewise.exporting.model_card import model_card
from gatewise.exporting.prediction import Predictor, predict
from gatewise.gates.spec import parse_gates
from gatewise.training import Recipe, train
from gatewise.training.runs import Run
from gatewise.training.tasks.regress import Regression
from support.few_digits import few_rounds  # noqa: F401 - a fixture

LABELS = {
    "even": lambda digit: digit % 2 == 0,
    "big": lambda digit: digit > 4,
    "round": lambda digit: digit in {0, 6, 8, 9},
}


def recipe(folder: Path, task: str) -> Recipe:
    """Return a recipe for digits in a table: which of three words fit, or how much ink there is."""
    digits = load_digits()
    rows = ["file,label"]
    (folder / "images").mkdir(parents=True)
    for number, (image, digit) in enumerate(zip(digits.images[:60], digits.target[:60].tolist(), strict=True)):
        Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / f"images/{number}.png")
        fitting = "|".join(name for name, fits in LABELS.items() if fits(digit))
        rows.append(f"images/{number}.png,{fitting if task == 'multilabel' else 1000 + image.sum()}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    options: dict[str, Any] = {"model": "resnet20_wider:parameters=3000", "batch_size": 16, "precision": "fp32"}
    return Recipe(task=task, data=str(folder), gate="gct", epochs=2, **options)


@pytest.fixture(scope="module", params=["multilabel", "regress"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp(request.param)
    train(recipe(root / "data", request.param), root / "run")
    return Run.open(root / "run")


@pytest.mark.situation("labels: several classes or numbers per image, from training to prediction")
def test_run_has_scores_record_and_predictions_of_its_task(run: Run) -> None:
    numbers = run.task.name == "regress"
    assert run.metrics["score"] == ("mae" if numbers else "map")
    assert f"train_{'mae' if numbers else 'label_accuracy'}" in run.metrics
    assert run.classes == (["label"] if numbers else ["big", "even", "round"])
    files = sorted(Path(run.recipe.data).glob("images/*.png"))[:3]
    ((images, _),) = list(Run.open(run.folder).batches())
    assert images.shape[1] == 1, "grey files"
    for prediction in predict(run.folder, files):
        if numbers:
            assert 500 < prediction["value"] < 2500, "in the unit of the labels"
        else:
            assert {label["class"] for label in prediction["labels"]} == set(LABELS)
            assert all(0 <= label["score"] <= 1 for label in prediction["labels"])
    assert json.dumps(prediction)


def test_score_that_is_not_defined_is_null(tmp_path: Path) -> None:
    """R² of validation images with equal numbers: the training failed after its last epoch."""
    chosen = recipe(tmp_path / "data", "regress")
    table = tmp_path / "data/labels.csv"
    header, *rows = table.read_text().split()
    held_out, alike = slice(0, 20), ",1.0,validation"
    rows[held_out] = [row.split(",")[0] + alike for row in rows[held_out]]
    table.write_text("\n".join([f"{header},split", *rows[held_out], *(f"{row},train" for row in rows[20:])]) + "\n")
    metrics = train(dataclasses.replace(chosen, epochs=1), tmp_path / "run")
    assert metrics["r2"] is None
    assert metrics["mae"] > 0
    (row,) = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert json.loads(row, parse_constant=pytest.fail)["validation_r2"] is None
    assert _further_scores(Run.open(tmp_path / "run").task, [metrics]).keys() == {"rmse"}
    found = score_run(tmp_path / "run")
    assert found["r2"] is None
    assert [cell.text for cell in scores_table(found, Regression.scores).rows[-1]] == ["R²", "not defined"]


def test_cells_of_other_data_are_divided_as_in_the_training(run: Run, tmp_path: Path) -> None:
    if run.task.name == "regress":
        assert "label_delimiter" not in run.config
        return
    assert run.config["label_delimiter"] == "|"
    file = Path(run.recipe.data, "images/1.png")
    cells = ["even", "big", "even odd", "round"] * 2
    for number in range(len(cells)):
        (tmp_path / f"{number}.png").write_bytes(file.with_name(f"{number}.png").read_bytes())
    rows = "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells))
    (tmp_path / "new.csv").write_text(f"file,label\n{rows}")
    dataset = Run.open(run.folder, str(tmp_path / "new.csv")).dataset
    assert dataset is not None
    assert "2 labels of other classes than classes big, even, round left out (even odd)" in dataset.notes


def test_card_says_what_the_outputs_are(run: Run) -> None:
    card = model_card(run)
    if run.task.name == "regress":
        assert ": numbers (label)." in card
        assert 'net.config["targets"]["std"]' in card
        assert "| mean absolute error |" in card
    else:
        assert "3 classes (big, even, round)" in card
        assert "targets" not in card


@pytest.mark.slow
def test_exported_file_gives_logits_or_numbers_in_their_unit(run: Run, tmp_path: Path) -> None:
    export_run(run.folder, tmp_path / "net.onnx", images=4, int8=True)
    predictor = Predictor.of(tmp_path / "net.onnx")
    (file,) = list(Path(run.recipe.data).glob("images/7.png"))
    plain, exported = (next(predict(source, [file])) for source in (run.folder, tmp_path / "net.onnx"))
    onnxruntime = pytest.importorskip("onnxruntime")
    names = [output.name for output in onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).get_outputs()]
    assert names == ["values" if run.task.name == "regress" else "logits"]
    assert "targets" not in predictor.config
    if run.task.name == "regress":
        assert exported["value"] == pytest.approx(plain["value"], rel=0.05)
    else:
        scores = ({label["class"]: label["score"] for label in found["labels"]} for found in (plain, exported))
        one, other = scores
        assert other == pytest.approx(one, abs=0.1)


@pytest.mark.slow
def test_page_shows_gates_by_label_or_range(run: Run, tmp_path: Path) -> None:
    text = explain_runs([run.folder], tmp_path / "page.html").read_text()
    assert run.score.title in text
    kind = "class" if run.task.name == "multilabel" else "range"
    assert f"Distance of the mean gate values of each {kind} from those of all images" in text
    assert ("even" if kind == "class" else "label below 1") in text
    assert "share of this part that is between classes" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds")
def test_comparison_of_numbers_calls_lower_errors_better(tmp_path: Path) -> None:
    results = gw.compare(
        recipe(tmp_path / "data", "regress"), [parse_gates("none"), parse_gates("se")], 2, tmp_path / "out"
    )
    assert results["score"] == "mae"
    assert results["constant"]["answer"].startswith("the median of the training images")
    plain, gated = results["variants"]
    difference = gated["difference_over_images"]
    assert difference["mean"] == pytest.approx(gated["mae"]["mean"] - plain["mae"]["mean"], rel=1e-4)
    report = (tmp_path / "out/report.html").read_text()
    assert "mean absolute error [95 % interval]" in report
    assert "always the median of the training images" in report
