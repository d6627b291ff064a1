"""Inputs that once caused a defect: they raise a one-line error, and nothing is executed."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.core.files import read_json, read_json_lines
from gatewise.data import Dataset, Images, load_dataset
from gatewise.data.folders import Location
from gatewise.data.load import load_pairs
from gatewise.data.pixel_format import RGB
from gatewise.errors import DataError, GatewiseError, InvalidValueError
from gatewise.exporting.prediction import predict
from gatewise.models.weights.reading import read_weights
from gatewise.training import Recipe, train
from gatewise.training.checkpoint import _checksum
from gatewise.training.runs import open_runs

CORPUS = Path(__file__).parent / "corpus"
TINY = "resnet20_wider:parameters=3000"


def listed(name: str) -> list[dict[str, Any]]:
    return json.loads((CORPUS / f"{name}.json").read_text())


def revived(value: Any) -> Any:
    """Return the decoded value of a corpus entry: {"tensor": shape}, {"network": 0}, {"repeat": [text, times]}."""
    if isinstance(value, dict) and set(value) == {"tensor"}:
        return torch.zeros(value["tensor"])
    if isinstance(value, dict) and set(value) == {"network"}:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    if isinstance(value, dict) and set(value) == {"repeat"}:
        return value["repeat"][0] * value["repeat"][1]
    return value


def one_line(error: GatewiseError) -> None:
    text = str(error)
    assert text.strip()
    assert len(text) < 3000


@pytest.mark.parametrize("case", listed("calls"), ids=lambda case: f"{case['call']}: {case['was'][:60]}")
def test_call_in_corpus_rejected(case: dict[str, Any]) -> None:
    call: Any = {"Recipe": Recipe, "Recipe.from_dict": Recipe.from_dict}.get(case["call"])
    if call is None:
        call = gw
        for name in case["call"].split("."):
            call = getattr(call, name)
    arguments = [revived(value) for value in case["arguments"]]
    options = {name: revived(value) for name, value in case["options"].items()}
    with pytest.raises(GatewiseError) as caught:
        call(*arguments, **options)
    one_line(caught.value)


def test_error_fits_on_a_screen() -> None:
    assert len(str(DataError("x" * 10**6))) < 2600
    assert str(DataError("x" * 2000 + "end")).endswith("xend")


def test_network_larger_than_memory_rejected_before_building(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the allocator's RuntimeError, or the end of the process."""
    with pytest.raises(InvalidValueError, match=r"would have [\d,]+ weights; the maximum is 2,147,483,648"):
        gw.make_model(f"resnet18_cifar:width={2**20}")
    with pytest.raises(InvalidValueError, match="would have more than torch can count"):
        gw.make_gate("se", 2**62)
    monkeypatch.setattr("gatewise.core._validation._MOST_NUMBERS", 100_000)
    assert gw.make_gate("gct", 5000).channels == 5000
    with pytest.raises(InvalidValueError, match=r"gate 'se' would have [\d,]+ weights; the maximum is 100,000"):
        gw.make_gate("se", 5000)
    with pytest.raises(
        InvalidValueError, match=r"resnet20 with these sizes would have [\d,]+ weights; the maximum is 100,000"
    ):
        gw.make_model("resnet20", num_classes=5000)


READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": Recipe.load,
    "json": read_json,
    "json lines": read_json_lines,
    "weights": read_weights,
    "image": lambda file: RGB.decode(str(file), file.read_bytes()),
}


def files() -> dict[str, dict[str, str]]:
    return json.loads((CORPUS / "files.json").read_text())


@pytest.mark.parametrize("name", files())
def test_file_in_corpus_rejected_with_its_name(name: str) -> None:
    before = (CORPUS / name).read_bytes()
    with pytest.raises(GatewiseError, match=name.replace(".", r"\.")) as caught:
        READERS[files()[name]["read"]](CORPUS / name)
    one_line(caught.value)
    assert (CORPUS / name).read_bytes() == before


def test_every_corpus_file_is_replayed() -> None:
    kept = {path.name for path in CORPUS.iterdir()}
    lists = {"calls.json", "files.json", "configs.json", "metrics.json", "states.json"}
    assert kept == set(files()) | lists


# Run folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(model=TINY, gate="gct@inner", epochs=1, batch_size=32, precision="fp32", keep_checkpoint=True)
    digits = load_dataset("digits")
    parts = (Images(part.pixels[:64], part.labels[:64]) for part in (digits.train, digits.validation))
    train(recipe, folder, dataset=Dataset("digits", digits.classes, *parts, padding=1, flip=False))
    return folder


def changed(file: Path, changes: dict[str, Any]) -> None:
    values = json.loads(file.read_text()) | changes
    if file.name == "state.json":
        values["values_sha256"] = _checksum(values)  # so that the values are checked
    file.write_text(json.dumps(values))


def picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("L", (8, 8)).save(folder / "x.png")
    return folder / "x.png"


@pytest.mark.parametrize("case", listed("configs"), ids=lambda case: case["was"][:60])
def test_config_in_corpus_rejected(trained: Path, tmp_path: Path, case: dict[str, Any]) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    changed(run / "config.json", case["changes"])
    calls: list[Callable[[Path], Any]] = [
        lambda run: list(predict(run, [picture(tmp_path)])),
        lambda run: open_runs([run]),
    ]
    if not case.get("only_of_task"):  # which these do not read
        calls += [gw.load_model, gw.PretrainedNet.from_pretrained]
    for call in calls:
        with pytest.raises(DataError, match=r"config\.json") as caught:
            call(run)
        one_line(caught.value)


@pytest.mark.parametrize("case", listed("metrics"), ids=lambda case: case["was"][:60])
def test_metrics_in_corpus_rejected(trained: Path, tmp_path: Path, case: dict[str, Any]) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    changed(run / "metrics.json", case["changes"])
    for call in (gw.PretrainedNet.of_run, lambda run: open_runs([run])):
        with pytest.raises(DataError, match=r"metrics\.json"):
            call(run)


@pytest.mark.parametrize("case", listed("states"), ids=lambda case: case["was"][:60])
def test_checkpoint_in_corpus_rejected(trained: Path, tmp_path: Path, case: dict[str, Any]) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.json").unlink()
    (state,) = (run / "checkpoints").iterdir()
    changed(state / "state.json", case["changes"])
    with pytest.raises(DataError, match=r"state\.json|the beginning|log\.jsonl") as caught:
        train(Recipe.load(run / "recipe.yaml"), run, resume=True)
    one_line(caught.value)
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize("name", ["config.json", "recipe.yaml", "metrics.json", "model.safetensors", "log.jsonl"])
def test_folder_instead_of_file_rejected(trained: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(DataError, match=rf"{name} is not a regular file"):
        open_runs([run])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"3\n", "must be a mapping of names to values, got 3"),
        (b"{}\n", "has no 'epoch', got nothing"),
        (b'{"epoch": "x"}\n', "epoch must be an integer, got 'x'"),
    ],
)
def test_log_without_numbers_rejected_on_resume(trained: Path, tmp_path: Path, rows: bytes, message: str) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.json").unlink()
    (run / "log.jsonl").write_bytes(rows)
    with pytest.raises(DataError, match=rf"log\.jsonl, line 1: .*{message}"):
        train(Recipe.load(run / "recipe.yaml"), run, resume=True)


# Tables and folders of images


METADATA = {
    b"3": "class names",
    b"{": "not valid JSON",
    b'{"info": []}': None,
    b'{"info": {"features": {"label": {"names": 3}}}}': "class names",
}


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_of_other_form_rejected_or_ignored(tmp_path: Path, metadata: bytes) -> None:
    """They were AttributeError: 'float' object has no attribute 'get', and JSONDecodeError (tables.py)."""
    import pyarrow as pa
    from pyarrow import parquet

    content = picture(tmp_path).read_bytes()
    table = pa.table({"image": [content, content], "label": [0, 1]}).replace_schema_metadata({"huggingface": metadata})
    for split in ("train", "val"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    message = METADATA[metadata]
    if message is None:
        assert load_dataset(tmp_path).classes == ("0", "1")
        return
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_endless_device_as_image_rejected(tmp_path: Path) -> None:
    """It was read until the memory was full."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copyfile(picture(tmp_path), tmp_path / split / name / "x.png")
    (tmp_path / "x.png").unlink()
    (tmp_path / "train/cat/x.png").unlink()
    (tmp_path / "train/cat/x.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"cat/x\.png is not a regular file"):
        load_dataset(tmp_path, 8, "memory")


def test_circular_links_rejected(tmp_path: Path) -> None:
    """Two of them were followed 2 to the power of 40 times (torchvision's ImageFolder)."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copyfile(picture(tmp_path), tmp_path / split / name / "x.png")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "train/cat", elsewhere)
    (tmp_path / "train/cat/more").symlink_to(elsewhere)
    assert len(load_dataset(tmp_path, 8, "memory").train) == 3
    (tmp_path / "train/cat/back").symlink_to(".")  # one ends after 40 times, where the system stops
    with pytest.raises(
        DataError, match=r"train/cat/back is a symbolic link to a folder that contains it\. Remove the link\."
    ):
        load_dataset(tmp_path, 8, "memory")
    assert Location(tmp_path / "train").image_counts() == {"cat": 2, "dog": 1}  # the link was not followed even once


@pytest.mark.parametrize("names", [3, {"a": 1}, 10**30])
def test_non_text_class_names_rejected(tmp_path: Path, names: Any) -> None:
    """It was AttributeError: 'dict' object has no attribute 'split' (load.py)."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
            shutil.copyfile(picture(tmp_path), tmp_path / split / kind / "0.png")
    with pytest.raises(GatewiseError, match="class_names must be a string"):
        load_pairs(tmp_path, class_names=names)


def test_every_case_is_described() -> None:
    for name in ("calls", "configs", "metrics", "states"):
        assert all(case["was"] for case in listed(name))
    assert all(case["was"] for case in files().values())
    assert inspect.getdoc(test_endless_device_as_image_rejected)
