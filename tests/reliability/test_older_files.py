"""Files of version 0.1.0 (see v0_1_0/README.md): they open and compute what they computed then, or say what to do."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gatewise.analysis.benchmark import bench_run
from gatewise.analysis.explanation import explain_runs
from gatewise.cli import run as command
from gatewise.comparison.run import compare
from gatewise.core.files import read_json, read_json_lines
from gatewise.data import load_dataset
from gatewise.errors import DataError, InvalidValueError
from gatewise.exporting.hub import PretrainedNet
from gatewise.exporting.prediction import predict
from gatewise.exporting.reader import details_of
from gatewise.exporting.run_compaction import compact_run
from gatewise.exporting.writer import export_run
from gatewise.gates.spec import parse_gates_list
from gatewise.models.families import FAMILIES
from gatewise.models.serialization import load_model
from gatewise.models.stored_spec import as_stored, in_full
from gatewise.training import Recipe, train
from gatewise.training.runs import Run

OLD = Path(__file__).parent / "v0_1_0"
RUNS = ("gct", "gater", "compacted")


def copied(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(OLD / name, tmp_path / name)


def pictures(folder: Path) -> list[Path]:
    """Write the two images of logits.json as files."""
    files = [folder / f"{number}.png" for number in range(2)]
    for file, pixels in zip(files, load_dataset("digits").validation.pixels[:2], strict=True):
        Image.fromarray(pixels[0].numpy()).save(file)
    return files


@pytest.mark.parametrize("name", [*RUNS, "shared"])
def test_network_computes_what_it_did(name: str) -> None:
    net, config = load_model(OLD / name)
    mean, std = (torch.tensor(config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = net((load_dataset("digits").validation.pixels[:2].float() - mean) / std)
    expected = torch.tensor(read_json(OLD / "logits.json")["gct" if name == "shared" else name])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.extended
@pytest.mark.parametrize("name", RUNS)
def test_every_file_of_run_is_read(name: str) -> None:
    opened = Run.open(OLD / name).checked()
    assert len(opened.log) == opened.metrics["epochs"] == opened.recipe.epochs == 2
    assert opened.log[-1]["validation_accuracy"] == pytest.approx(opened.metrics["accuracy"], abs=0.02)
    assert opened.missing == ""
    assert PretrainedNet.of_run(OLD / name).generate_model_card().data.library_name == "gatewise"


@pytest.mark.slow
def test_runs_are_explained(tmp_path: Path) -> None:
    page = explain_runs([OLD / name for name in RUNS], tmp_path / "page.html").read_text()
    assert "resnet20_wider:parameters=3000+gct:mode=l1@inner+se" in page
    assert "gater: which filters the gater opens" in page


def test_images_are_predicted_by_runs_shared_folders_and_exported_files(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    expected = {name: torch.tensor(rows).softmax(1) for name, rows in read_json(OLD / "logits.json").items()}
    for source, name in (("gct", "gct"), ("shared", "gct"), ("gater", "gater"), ("gater.onnx", "gater")):
        for row, probabilities in zip(predict(OLD / source, files, top_k=10), expected[name], strict=True):
            found = torch.tensor([row["classes"][str(label)] for label in range(10)])
            torch.testing.assert_close(found, probabilities, rtol=1e-2, atol=1e-3)
    assert details_of(OLD / "gater.onnx")["form"] == "masked"


@pytest.mark.slow
def test_gater_is_compacted_timed_and_exported_again(tmp_path: Path) -> None:
    metrics = compact_run(OLD / "gater", tmp_path / "small", images=64)
    assert metrics["accuracy_before"] == pytest.approx(Run.open(OLD / "gater").metrics["accuracy"], abs=0.02)
    assert set(bench_run(OLD / "gater", tmp_path / "bench", batch_sizes=(1,), rounds=2, images=64)["batches"]) == {"1"}
    export_run(OLD / "gater", tmp_path / "again.onnx", images=8)
    assert details_of(tmp_path / "again.onnx")["classes"] == details_of(OLD / "gater.onnx")["classes"]


def test_unfinished_training_is_resumed(tmp_path: Path) -> None:
    out = copied("unfinished", tmp_path)
    (first,) = read_json_lines(out / "log.jsonl")
    assert train(Recipe.load(out / "recipe.yaml"), out, resume=True)["epochs"] == 2
    rows = read_json_lines(out / "log.jsonl")
    assert rows[0] == first
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["loss"] == pytest.approx(read_json_lines(OLD / "gct/log.jsonl")[1]["loss"], rel=0.05)


def test_unfinished_training_is_not_opened_as_a_run() -> None:
    with pytest.raises(
        DataError, match=r"has no config\.json: the run has not finished\. Resume it with gatewise train"
    ):
        Run.open(OLD / "unfinished")


@pytest.mark.extended
def test_comparison_continues(tmp_path: Path) -> None:
    out = copied("comparison", tmp_path)
    kept = (out / "runs/none/seed_0/metrics.json").read_bytes()
    recipe = dataclasses.replace(Recipe.load(out / "runs/none/seed_0/recipe.yaml"), gate="none")
    (out / "runs/gct/seed_0/metrics.json").unlink()
    results = compare(recipe, parse_gates_list("none,gct"), 1, out)
    assert [variant["gates"] for variant in results["variants"]] == ["none", "gct"]
    assert (out / "runs/none/seed_0/metrics.json").read_bytes() == kept
    with pytest.raises(InvalidValueError, match=r"contains a run of another recipe: lr 0\.05 there, 0\.2 now"):
        compare(dataclasses.replace(recipe, lr=0.2), parse_gates_list("none,gct"), 1, out)


def test_archive_of_torch_export_rejected_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["predict", str(OLD / "gct.pt2"), str(pictures(tmp_path)[0])]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "gct.pt2 was not opened" in shown
    assert "open it with torch.export.load" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("name", read_json(OLD / "defaults.json"))
def test_option_that_was_not_written_gets_the_default_of_that_version(name: str) -> None:
    stored: dict[str, Any] = {"model": name} if name in FAMILIES else {"model": "resnet20", "gates": [{"gate": name}]}
    spec = in_full(as_stored(stored))
    options = spec.model_options if name in FAMILIES else spec.gates[0].options
    assert json.loads(json.dumps(dict(options))).items() >= read_json(OLD / "defaults.json")[name].items()
