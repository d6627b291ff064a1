"""From everyday folders to runs, comparisons and checks: what is said, recorded and scored."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from gatewise.cli import run
from gatewise.comparison import run_results
from gatewise.data import load_dataset
from gatewise.training import Recipe
from gatewise.training.constant_answer import constant_answer
from gatewise.training.runs import Run
from gatewise.training.tasks.classify import Classification
from support.picture_folders import by_class, write_pictures

QUICK = ["--model", "resnet20", "--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--workers", "0"]
TEN = {"cat": 10, "dog": 10}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_results, "_ROUNDS", 2)
    original = run_results.measure.inference_latency
    monkeypatch.setattr(
        run_results.measure, "inference_latency", lambda *a, **k: original(*a, **k, seconds_per_turn=1e-3)
    )


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.situation("splits: a test split is scored once, at the end")
def test_training_says_what_it_begins_with_and_scores_test_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = by_class(tmp_path / "photos", TEN), tmp_path / "run"
    assert run(["train", "--data", str(photos), "--test-split", "0.2", *QUICK, "--out", str(out)]) == 0
    first, *said = capsys.readouterr().err.splitlines()
    assert (
        first == "12 training, 4 validation, 4 test images, 2 classes: cat, dog, 8x8 pixels; 1 step an epoch, 1 in all"
    )
    assert said[0].startswith(
        f"note: {photos} has no splits: 4 of 20 images (0.2, seed 0, stratified) are held out for"
    )
    assert any(line.startswith("warning: 1 steps are too few") for line in said)
    assert any(line.startswith("warning: with 4 validation images, one image is 25.0 points") for line in said)
    recorded = rows(out / "split.csv")
    assert [row["split"] for row in recorded] == ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    metrics, config = (json.loads((out / name).read_text()) for name in ("metrics.json", "config.json"))
    assert metrics["test"]["images"] == 4
    assert 0 <= metrics["test"]["accuracy"] <= 1
    assert config["split"]["folder"] == str(photos)
    assert config["split"]["rule"]["test"] == {"fraction": 0.2, "seed": 0, "images": 4, "version": 2}


def test_batch_larger_than_the_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = by_class(tmp_path / "photos", TEN)
    options = [*QUICK[:4], *QUICK[6:]]
    assert run(["train", "--data", str(photos), *options, "--out", str(tmp_path / "run")]) == 0
    assert "warning: a batch of 128 is larger than the 16 training images" in capsys.readouterr().err


def test_run_shows_the_images_of_its_training_when_files_were_added(tmp_path: Path) -> None:
    photos, out = by_class(tmp_path / "photos", TEN), tmp_path / "run"
    assert run(["train", "--data", str(photos), *QUICK, "--out", str(out)]) == 0
    before = Run.open(out).dataset
    by_class(photos, {"cat": 30, "dog": 30, "owl": 5}, seed=100)
    after = Run.open(out).dataset
    assert before is not None
    assert after is not None
    assert after.division is not None
    assert after.classes == before.classes
    assert [row[0] for row in after.division.rows] == [row[0] for row in before.division.rows]


@pytest.mark.extended
@pytest.mark.situation("splits: gates are compared on groups of images")
def test_comparison_records_split_and_draws_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    bootstrap = Classification.bootstrap

    def noted(task: Classification, images: Tensor, baseline: Tensor, groups: Tensor | None = None) -> object:
        drawn.append([] if groups is None else groups.tolist())
        return bootstrap(task, images, baseline, groups)

    monkeypatch.setattr(Classification, "bootstrap", noted)
    photos, out = tmp_path / "photos", tmp_path / "comparison"
    names = [f"{label}/p{patient}_{n}.png" for label in TEN for patient in range(5) for n in range(3)]
    write_pictures(photos, names)
    command = ["compare", "--data", str(photos), "--gates", "none,se", "--seeds", "1", *QUICK, "--out", str(out)]
    command += ["--group", r"(p\d)_", "--test-split", "0.2"]
    assert run(command) == 0
    said = capsys.readouterr().err
    assert said.count("18 training, 6 validation, 6 test images") == 1  # once, not for each run
    assert {row["group"] for row in rows(out / "split.csv")} == {f"p{n}" for n in range(5)}
    ((*groups,),) = drawn
    assert [groups.count(group) for group in sorted(set(groups))] == [6]  # cat and dog pictures of one patient
    results = json.loads((out / "results.json").read_text())
    assert results["split"]["rule"]["validation"]["images"] == 6
    for variant in results["variants"]:
        assert len(variant["test"]["values"]) == 1
    assert "test accuracy" in (out / "results.md").read_text()
    assert all((folder / "split.csv").exists() for folder in (out / "runs").glob("*/seed_0"))
    (photos / "cat/p0_0.png").unlink()
    assert run(command) == 2
    assert "split.csv lists 30 images, the data has 29 now or other splits" in capsys.readouterr().err


@pytest.mark.extended
@pytest.mark.situation("splits: the same image in train/ and val/")
def test_leaks_are_in_the_report(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "comparison"
    by_class(photos, {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4})
    shutil.copy(photos / "train/cat/0.png", photos / "val/cat/0.png")
    assert run(["compare", "--data", str(photos), "--gates", "none,se", "--seeds", "1", *QUICK, "--out", str(out)]) == 0
    assert "1 of 8 validation images are byte for byte in train too" in (out / "report.html").read_text()
    assert json.loads((out / "results.json").read_text())["leaks"] == {"validation": 1}
    assert len(rows(out / "leaks.csv")) == 1


# gatewise check


def test_check_says_what_is_there_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = by_class(tmp_path / "photos", {"cat": 20, "dog": 10}), tmp_path / "checked"
    cut = photos / "cat/3.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (photos / "dog/.DS_Store").write_bytes(b"x")
    shutil.copy(photos / "dog/1.png", photos / "dog/twin.png")
    assert run(["check", "--data", str(photos)]) == 0
    unwritten = capsys.readouterr().out.splitlines()
    assert (
        unwritten[-1] == "pictures of each class, and which images these are (split.csv, skipped.csv): add --out FOLDER"
    )
    assert run(["check", "--data", str(photos), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "images: 24 train, 6 validation",
        "classes: 2",
        "  cat: 15 train, 4 validation",
        "  dog: 9 train, 2 validation",
    ]
    for expected in (
        "always saying cat would be right for 66.7 % of validation",
        "size: 8x8",
        "same bytes: 2 images have a copy, 0 in another split",
        f"cannot be read: 1; {photos}/cat/3.png: truncated or unreadable image (image file is truncated).",
        "warning: a training stops at an image that cannot be read. Remove it, or add --on-broken skip",
        "note: 1 hidden file ignored (.DS_Store)",
        "warning: with 6 validation images, one image is 16.7 points: differences between networks are hard to see",
    ):
        assert expected in lines
    assert unwritten[:-1] == lines[:-1]
    assert not any("left out" in line or ".csv" in line for line in lines[:-1])
    assert run(["check", "--data", str(photos), "--on-broken", "skip"]) == 0
    assert "a training stops" not in capsys.readouterr().out
    assert (out / "overview.svg").read_text().startswith("<svg")
    assert (out / "overview.png").read_bytes()[:4] == b"\x89PNG"
    assert len(rows(out / "split.csv")) == 30


def test_check_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = by_class(tmp_path / "photos", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    shutil.copy(photos / "train/cat/0.png", photos / "val/cat/0.png")
    for name, mode in (("train/dog/1.png", "L"), ("val/dog/1.png", "RGBA")):
        Image.open(photos / name).convert(mode).save(photos / name)
    assert run(["check", "--data", str(photos), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == {"train": 8, "validation": 4}
    assert facts["counts"]["validation"] == {"cat": 2, "dog": 2}
    assert facts["sizes"] == [{"width": 8, "height": 8, "images": 12}]
    assert facts["leaks"] == [["train/cat/0.png", "val/cat/0.png", "validation"]]
    assert facts["duplicates"] == 2
    assert facts["conflicts"] == []
    assert facts["pixels"] == {"in colours": 10, "grey": 1, "in colours with alpha": 1}


def test_check_finds_pictures_that_look_alike_in_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = by_class(tmp_path / "photos", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    Image.open(photos / "train/cat/1.png").save(photos / "val/cat/1.png", compress_level=0)
    assert run(["check", "--data", str(photos), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (pair,) = facts["look_alike"]
    assert pair == [str(photos / "train/cat/1.png"), str(photos / "val/cat/1.png")]
    assert facts["leaks"] == []


def test_check_and_training_name_the_same_constant_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"train/cat": 4, "train/dog": 5, "val/cat": 3, "val/dog": 2}
    photos = by_class(tmp_path / "photos", counts)
    dataset = load_dataset(photos)
    constant = constant_answer(Recipe().task_spec.make(dataset.classes), dataset)
    assert constant is not None
    assert (constant.answer, constant.score) == ("'dog'", pytest.approx(2 / 5))
    assert run(["check", "--data", str(photos)]) == 0
    assert "always saying dog would be right for 40.0 % of validation" in capsys.readouterr().out


def test_check_of_bad_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--data", str(by_class(tmp_path, {"val/a": 1}))]) == 2
    assert capsys.readouterr().err == (
        f"gatewise: {tmp_path} has no train split: expected train/ with class folders, found val (images: 1 two "
        f"folders below).\n"
    )
