"""Relative paths of a recipe mean the same place from every folder, and data may move between two runs of a command."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from gatewise.cli import run
from gatewise.data import load_dataset
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError
from gatewise.training import Recipe
from support.picture_folders import by_class

QUICK = shlex.split("--model resnet20_wider:parameters=3000 --epochs 1 --batch-size 8 --precision fp32 --track none")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with pictures of two classes in photos; its neighbour `elsewhere` is empty."""
    for split, seed in (("train", 0), ("val", 100)):
        by_class(tmp_path / "project/photos" / split, {"cat": 8, "dog": 8}, seed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def elsewhere(project: Path) -> Path:
    return project.parent / "elsewhere"


def stored(recipe: Recipe) -> Path:
    """Write a recipe file outside both folders, from the working folder."""
    file = Path.cwd().parent / "recipe.yaml"
    recipe.save(file)
    return file


# The file


@pytest.mark.parametrize("field", ["data", "data_root", "init", "gater_init", "teacher"])
def test_relative_path_is_read_from_where_it_was_written(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    file = stored(dataclasses.replace(Recipe(), **{field: "photos"}))
    assert getattr(Recipe.load(file), field) == "photos"
    monkeypatch.chdir(elsewhere)
    (elsewhere / "photos").mkdir()  # another folder of that name
    assert getattr(Recipe.load(file), field) == str(project / "photos")


@pytest.mark.parametrize("data", ["photos/{000..002}.tar", "photos/train-*.tar", "./photos/../photos"])
def test_patterns_and_ranges_are_paths(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    file = stored(Recipe(data=data))
    monkeypatch.chdir(elsewhere)
    assert Recipe.load(file).data == str(project / data)


@pytest.mark.parametrize(
    "values", [{"data": "digits"}, {"data": "hub:cats/dogs"}, {"gate": "gaternet", "teacher": "self"}]
)
def test_names_stay_names(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    for name in ("digits", "self"):
        (project / name).mkdir()
    recipe = Recipe(**{"data": "digits", "init": "photos", **values})
    file = stored(recipe)
    monkeypatch.chdir(elsewhere)
    assert Recipe.load(file) == dataclasses.replace(recipe, init=str(project / "photos"))


def test_file_without_relative_paths_names_no_folder(project: Path) -> None:
    assert "relative_to" not in stored(Recipe(data=str(project / "photos"))).read_text()
    assert stored(Recipe(data="photos")).read_text().endswith(f"relative_to: {project}\n")


def test_folder_that_is_no_text_rejected(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3\nrelative_to: [a]\n")
    with pytest.raises(InvalidTypeError, match=r"recipe\.yaml: relative_to must be a string, got \['a'\]"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_data_that_is_gone_is_named_by_where_it_was(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored(Recipe(data="photos"))
    project.rename(project.with_name("moved"))
    monkeypatch.chdir(elsewhere)
    assert Recipe.load(file).data == str(project / "photos")
    monkeypatch.chdir(project.with_name("moved"))  # a whole project may be moved, also to another machine
    assert Recipe.load(file).data == "photos"


def test_images_of_a_split_are_found_by_the_recipe_beside_it(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recipe(data="photos").save(project / "run/recipe.yaml")
    files = [file.relative_to(project / "photos") for file in sorted((project / "photos").rglob("*.png"))]
    rows = [f"{file},{file.parts[1]},{file.parts[0]}" for file in files]
    (project / "run/split.csv").write_text("\n".join(["file_name,label,split", *rows]) + "\n")
    monkeypatch.chdir(elsewhere)
    assert len(load_dataset("../project/run/split.csv").train) == 16


@pytest.mark.parametrize("data", ["~nobody-of-this-name/photos", "~/photos"])
def test_home_folders_are_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert "relative_to" not in stored(Recipe(data=data)).read_text()
    with pytest.raises(DataError, match=rf"{data}.*expected"):
        load_dataset(data)


# The same recipe


def check_same(there: str, here: str, field: str = "data") -> None:
    one, other = (dataclasses.replace(Recipe(), **{field: value}) for value in (there, here))
    one.check_same_recipe(other, Path("run"))


def test_two_names_of_one_place_are_the_same(project: Path, elsewhere: Path) -> None:
    (elsewhere / "link").symlink_to(project / "photos")
    for other in (str(project / "photos"), "../project/photos", "../elsewhere/link"):
        check_same("photos", other)
        check_same("photos", other, "init")


def test_moved_data_is_the_same_and_moved_weights_are_not(project: Path) -> None:
    check_same("/gone/photos", "photos")
    with pytest.raises(InvalidValueError, match=r"init '/gone/photos' there, 'photos' now"):
        check_same("/gone/photos", "photos", "init")


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("photos", "photos/train"),
        ("digits", "./digits"),  # a name, and a folder
        ("hub:a/b", "hub:a/c"),
        ("/gone/photos", "digits"),
        ("/gone/photos", "nowhere"),
        ("photos/{0..3}.tar", "photos/{0..4}.tar"),
        ("~/photos", "photos"),
    ],
)
def test_other_data_is_another_recipe(project: Path, monkeypatch: pytest.MonkeyPatch, there: str, here: str) -> None:
    monkeypatch.setenv("HOME", str(project.parent))
    (project.parent / "photos").mkdir()
    (project / "digits").mkdir()
    with pytest.raises(InvalidValueError, match="another recipe: data"):
        check_same(there, here)


# Commands


@pytest.mark.extended
def test_run_is_used_from_another_folder(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", *QUICK, "--workers", "0", "--keep-checkpoint", "--out"]
    assert run([*train, "run", "--data", "photos"]) == 0
    monkeypatch.chdir(elsewhere)
    assert run(["evaluate", "../project/run", "--json"]) == 0
    assert run([*train, "../project/run", "--data", "../project/photos", "--resume"]) == 0
    (project / "photos").rename(elsewhere / "moved")
    capsys.readouterr()
    assert run(["evaluate", "../project/run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"gatewise: the images of ../project/run are needed: data folder '{project / 'photos'}' does"
    )
    assert line.endswith("Give them with data (--data).")
    assert run(["evaluate", "../project/run", "--data", "moved", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 16
    (project / "run/metrics.json").unlink()  # as if it had been killed
    assert run([*train, "../project/run", "--data", "moved", "--resume"]) == 0
    assert run(["evaluate", "../project/run", "--json"]) == 0


@pytest.mark.extended
def test_comparison_is_continued_from_another_folder_and_with_moved_data(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = ["compare", *QUICK, "--workers", "0", "--gates", "none", "--seeds", "1", "--out"]
    assert run([*compare, "all", "--data", "photos"]) == 0
    (project / "all/runs/none/seed_0/metrics.json").unlink()  # as if it had been killed
    monkeypatch.chdir(elsewhere)
    (project / "photos").rename(elsewhere / "moved")
    assert run([*compare, "../project/all", "--data", "moved"]) == 0
    assert Recipe.load(project / "all/runs/none/seed_0/recipe.yaml").data == "moved"
    by_class(elsewhere / "moved/train", {"cat": 9}, seed=1000)
    assert run([*compare, "../project/all", "--data", "moved"]) == 2
    assert "split.csv lists 32 images, the data has 33 now" in capsys.readouterr().err
