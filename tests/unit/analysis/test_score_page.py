"""`gatewise evaluate`: scores, classes, confusion and the worst answers, on the run's own and on other images."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from gatewise.analysis.score_page import score_run
from gatewise.cli import run as command
from gatewise.errors import InvalidValueError
from gatewise.training import Recipe, train
from gatewise.training.runs import Run
from gatewise.training.tasks.segment import Segmentation

CLASSES = {"one": 1, "seven": 7, "zero": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data/, in train/ and val/, and a run of it."""
    root, digits = tmp_path_factory.mktemp("scored"), load_digits()
    for name, digit in CLASSES.items():
        images = digits.images[digits.target == digit]
        for split, chosen in (("train", images[:20]), ("val", images[20:26])):
            (root / "data" / split / name).mkdir(parents=True)
            for number, image in enumerate(chosen):
                Image.fromarray((image * 15.9).astype("uint8")).save(root / f"data/{split}/{name}/{number}.png")
    options = {"model": "resnet20_wider:parameters=3000", "batch_size": 16, "epochs": 2, "precision": "fp32"}
    train(Recipe(data=str(root / "data"), **options), root / "run")
    return root


def test_scores_are_those_of_the_training(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["evaluate", str(root / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics = Run.open(root / "run").metrics
    assert (found["score"], found["split"], found["images"]) == ("accuracy", "validation", 18)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[name] == pytest.approx(metrics[name], abs=1e-6)
    counts = torch.tensor(found["confusion"]["counts"])
    assert found["confusion"]["classes"] == list(CLASSES)
    assert counts.sum(1).tolist() == [6, 6, 6]
    assert float(counts.trace()) / 18 == pytest.approx(found["accuracy"])
    recalls = {name: {"recall": float(n) / 6, "images": 6} for name, n in zip(CLASSES, counts.diagonal(), strict=True)}
    assert found["by_class"] == recalls
    assert found["constant"]["score"] == pytest.approx(1 / 3)
    assert found["wrong_images"] == 18 - int(counts.trace())
    for wrong in found["wrong"]:
        assert Path(wrong["image"]).parent.name == wrong["label"]
        assert not wrong["predicted"].startswith(wrong["label"])


def test_page_shows_confusion_and_wrong_pictures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["evaluate", str(root / "run"), "--out", str(tmp_path / "page.html"), "--shown", "3"]) == 0
    printed, text = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "18 validation images" in printed
    assert "are taken for" in printed
    assert "How classes are confused" in text
    assert "The 3 images with the worst answers" in text


@pytest.mark.situation("evaluate: other images without splits, which lack a class")
def test_all_images_of_other_data_are_scored(root: Path, tmp_path: Path) -> None:
    for name in ("one", "zero"):
        shutil.copytree(root / "data/val" / name, tmp_path / "new" / name)
    found = score_run(root / "run", data=str(tmp_path / "new"))
    assert (found["images"], found["split"]) == (12, "train and validation")
    assert found["by_class"]["seven"] == {"recall": None, "images": 0}
    assert sum(found["confusion"]["counts"][1]) == 0
    assert found["constant"] == {"answer": "'one'", "score": 0.5}
    assert found["notes"] == []  # nothing about a training: all images are scored
    held_out = score_run(root / "run", data=str(tmp_path / "new"), split="validation")
    assert any("held out for validation" in note for note in held_out["notes"])


def test_constant_answer_is_scored_on_the_images_that_are_scored(root: Path, tmp_path: Path) -> None:
    for name, most in (("one", 1), ("seven", 2), ("zero", 1)):  # of seven, one is held out
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(most):
            shutil.copy(root / f"data/val/{name}/{number}.png", tmp_path / "new" / name)
    assert score_run(root / "run", data=str(tmp_path / "new"))["constant"] == {"answer": "'seven'", "score": 0.5}
    assert score_run(root / "run", split="train")["constant"] == {"answer": "'one'", "score": pytest.approx(1 / 3)}


@pytest.mark.extended
def test_page_of_other_images_has_a_name_of_its_own(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "data/val", tmp_path / "north/new photos")
    for more, page in (
        ([], root / "run/evaluation.html"),
        (["--split", "validation"], root / "run/evaluation.html"),
        (["--split", "all"], root / "run/evaluation_all.html"),
        (["--data", "north/new photos"], root / "run/evaluation_north_new-photos.html"),
        (["--data", "north/new photos", "--split", "train"], root / "run/evaluation_north_new-photos_train.html"),
        (["--out", "ev"], tmp_path / "ev.html"),
    ):
        assert command(["evaluate", str(root / "run"), *more]) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[-1] == f"page: {page}"
        assert page.is_file()
        share = "35.71" if page.stem.endswith("train") else "33.33"  # 5 of 14 images, or a third of all
        assert f"for comparison: always 'one' scores {share} % accuracy" in printed


def test_images_that_cannot_be_read_are_left_out_on_request(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "data/val", tmp_path / "new")
    (tmp_path / "new/one/0.png").write_bytes(b"no image")
    evaluate = ["evaluate", str(root / "run"), "--data", str(tmp_path / "new")]
    assert command(evaluate) == 2
    assert "add --on-broken skip" in capsys.readouterr().err
    assert command([*evaluate, "--on-broken", "skip"]) == 0
    printed = capsys.readouterr()
    assert "warning: 1 image cannot be read and is left out (" in printed.err
    assert "on 17 train and validation images" in printed.out


@pytest.mark.situation("evaluate: other data is divided and labelled in another way than the data of the training")
def test_other_data_is_read_in_its_own_way(root: Path, tmp_path: Path) -> None:
    """Its reading was that of the training's table: an error that named flags which evaluate does not have."""
    run, new = shutil.copytree(root / "run", tmp_path / "run"), shutil.copytree(root / "data/val", tmp_path / "new")
    how = {"label_column": "kind", "group": "patient", "validation_split": "fold=0", "test_split": "fold=1"}
    dataclasses.replace(Recipe.load(run / "recipe.yaml"), data_root=str(root), **how).save(run / "recipe.yaml")
    assert score_run(run, data=str(new))["images"] == 18
    rows = [f"{path.relative_to(new)},{path.parent.name},one" for path in sorted(new.rglob("*.png"))]
    for columns in ("file,kind,label", "file,label,other"):
        (tmp_path / "new.csv").write_text("\n".join([columns, *rows]) + "\n")
        by_class = score_run(run, data=str(tmp_path / "new.csv"))["by_class"]
        assert {name: of["images"] for name, of in by_class.items()} == dict.fromkeys(CLASSES, 6), columns
    (tmp_path / "new.csv").write_text("\n".join(["file,a,b", *rows]) + "\n")
    with pytest.raises(InvalidValueError, match=r"column of new\.csv 'kind'"):
        score_run(run, data=str(tmp_path / "new.csv"))


@pytest.mark.parametrize(
    ("below", "classes", "each", "split"),
    [
        ("", ("seven",), 3, "train and validation"),
        ("", ("one", "seven"), 1, "validation"),
        ("", ("seven",), 1, "validation"),
        ("test", ("one", "seven"), 3, "test"),
        ("test", ("seven",), 1, "test"),
        ("val", ("one", "seven"), 3, "validation"),
    ],
)
def test_other_data_need_not_do_for_a_training(
    root: Path, tmp_path: Path, below: str, classes: tuple[str, ...], each: int, split: str
) -> None:
    """Data of one class, of one image of each, or without train/ was rejected with words about a training."""
    for name in classes:
        (tmp_path / "new" / below / name).mkdir(parents=True)
        for number in range(each):
            shutil.copy(root / f"data/val/{name}/{number}.png", tmp_path / "new" / below / name)
    for asked in (None, "all"):
        found = score_run(root / "run", data=str(tmp_path / "new"), split=asked)
        assert (found["images"], found["split"], found["notes"]) == (len(classes) * each, split, [])


def test_test_images_of_other_data_are_scored_alone(root: Path, tmp_path: Path) -> None:
    """Without validation images the training images were scored, too."""
    for split, own in (("train", "train"), ("val", "test")):
        shutil.copytree(root / "data" / split, tmp_path / "new" / own)
    found = score_run(root / "run", data=str(tmp_path / "new"))
    assert (found["images"], found["split"]) == (18, "test")


def test_table_with_one_row_can_be_scored(root: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(f"file,label\n{root}/data/val/one/0.png,one\n")
    assert score_run(root / "run", data=str(tmp_path / "one.csv"))["images"] == 1


def test_own_data_is_not_other_data(root: Path) -> None:
    assert score_run(root / "run", data=str(root / "data/../data"))["images"] == 18
    assert score_run(root / "run", split="all")["images"] == 78
    with pytest.raises(InvalidValueError, match="has no test split; splits: train, validation, all"):
        score_run(root / "run", split="test")


@pytest.mark.situation("evaluate: other images of a class that the network does not know")
def test_images_of_unknown_classes_are_left_out_with_a_note(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "data/val", tmp_path / "new")
    (tmp_path / "new/one").rename(tmp_path / "new/eight")
    assert command(["evaluate", str(root / "run"), "--data", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr()
    assert "images of other classes than classes one, seven, zero left out" in printed.err
    assert "12 train and validation images" in printed.out


def test_worst_masks_come_first() -> None:
    record = {"overlaps": torch.tensor([[[5, 5], [4, 4]], [[1, 5], [1, 5]], [[5, 5], [2, 4]]])}
    found = Segmentation(["a", "b"]).mistakes(record)
    assert [mistake.image for mistake in found] == [1, 2, 0]
    assert found[0].predicted == "mIoU 20.00 %"
