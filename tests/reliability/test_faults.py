"""Full disks, unwritable folders, changed and truncated files, newer formats: one line, and nothing is lost."""

import contextlib
import dataclasses
import json
import math
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gatewise.cli import run
from gatewise.core.files import check_folder_writable, read_record, write_atomically, write_record
from gatewise.errors import DataError, NewerFormatError, StorageError, UnsavedError
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import (
    details_in,
    load_model,
    read_metrics,
    read_source,
    save_model,
    write_metrics,
)
from gatewise.training import train
from gatewise.training.checkpoint import keep_newest_states, load_state, save_state
from gatewise.training.runs import open_runs
from gatewise.training.tensorboard import Board
from support.disks import disk, remount
from support.small_runs import DATASET, RECIPE, content_of, equal, trained, trained_without_results, weights
from support.whole_files import corrupt_files, leftovers, outcome

FLAGS = ["--data", "digits", "--model", "resnet20", "--precision", "fp32", "--workers", "0"]
TRAIN = ["train", *FLAGS, "--gate", "gct", "--epochs", "4"]
COMPARE = ["compare", *FLAGS, "--gates", "none,gct", "--seeds", "1", "--epochs", "1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk on which two checkpoints have room, but not a third."""
    with disk(tmp_path / "disk", "size=5500k") as mounted:
        yield mounted


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; tests only read it."""
    out = tmp_path_factory.mktemp("faults") / "run"
    trained(out)
    return out


@pytest.fixture(scope="module")
def without_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was killed before its results, with checkpoints of steps 6 and 9."""
    return trained_without_results(tmp_path_factory.mktemp("faults") / "run")


@pytest.fixture
def unfinished(without_results: Path, tmp_path: Path) -> Path:
    """Return a copy of the run without its results."""
    return shutil.copytree(without_results, tmp_path / "run")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one error line, the last on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("gatewise: ") for line in lines) == 1
    assert lines[-1].startswith("gatewise: ")
    return lines[-1]


# Full disks


@pytest.mark.extended
def test_training_on_full_disk_keeps_and_names_last_checkpoint(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "run"
    assert run([*TRAIN, "--out", str(out)]) == 1
    line = said(capsys)
    assert re.search(r"step_000000033 cannot be written|step_000000033/state\.safetensors cannot be written", line)
    assert "No space left on device. Free some space there" in line
    assert f"The last good checkpoint is {out / 'checkpoints/step_000000022'}." in line
    assert corrupt_files(out) == leftovers(out) == []
    assert len(list(out.glob("checkpoints/step_*"))) == 2
    remount(small_disk, "size=20m")
    assert run([*TRAIN, "--out", str(out), "--resume"]) == 0
    assert run([*TRAIN, "--out", str(tmp_path / "uninterrupted")]) == 0
    assert outcome(out) == outcome(tmp_path / "uninterrupted")


def test_comparison_stops_at_first_unwritable_file(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remount(small_disk, "size=1m")
    assert run([*COMPARE, "--out", str(small_disk / "all")]) == 1
    printed = capsys.readouterr().err
    assert "run 1 of 2" in printed
    assert "run 2 of 2" not in printed
    assert "No space left on device" in printed.splitlines()[-1]
    assert corrupt_files(small_disk) == leftovers(small_disk) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """Allow no file of more than 1.5 MB: a checkpoint has 2.2 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_above_limit_error_says_so(small_files: None, tmp_path: Path) -> None:
    with pytest.raises(UnsavedError, match=r"File too large\. Raise the limit .*No checkpoint had been written"):
        trained(tmp_path / "run")
    assert leftovers(tmp_path) == []
    assert corrupt_files(tmp_path) == []


def test_write_error_has_file_size_and_reason(small_files: None, tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(StorageError) as caught:
        write_atomically(tmp_path / "file", b"x" * 2_000_000)
    assert str(caught.value).startswith(f"{tmp_path / 'file'} cannot be written (2,000,000 bytes): File too large.")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_unprintable_output_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert run(["gates", "--markdown"]) == 2
    assert said(capsys) == (
        "gatewise: cannot write to standard output: No space left on device. All output files are complete."
    )


def test_unwritable_curves_do_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def add_scalar(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

        flush = close = add_scalar

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Full)
    lines: list[str] = []
    board = Board(tmp_path, 1, lines.append)
    board.add({"epoch": 1, "loss": 0.5})
    board.add({"epoch": 2, "loss": 0.5})
    board.close()
    assert lines == ["warning: cannot write TensorBoard files, logging to them stops: No space left on device"]


# Folders that cannot be written


@pytest.fixture
def read_only(tmp_path: Path, finished: Path, unfinished: Path) -> Iterator[Path]:
    """Return a disk that cannot be written, with a finished and an unfinished run."""
    with disk(tmp_path / "disk", "size=50m") as mounted:
        shutil.copytree(finished, mounted / "finished")
        shutil.copytree(unfinished, mounted / "unfinished")
        remount(mounted, "ro")
        yield mounted


def test_unwritable_folder_rejected_first(
    read_only: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in (TRAIN, COMPARE):
        assert run([*line, "--out", str(read_only / "new" / "run")]) == 2
        error = said(capsys)
        assert (
            f"{read_only / 'new' / 'run'} cannot be written: Read-only file system. Make its folder writable" in error
        )
        assert "epoch" not in error
    monkeypatch.setattr("gatewise.training.from_recipe.Training", lambda *_: pytest.fail("something was begun"))
    with pytest.raises(StorageError, match="unfinished cannot be written: Read-only"):
        train(RECIPE, read_only / "unfinished", dataset=DATASET, resume=True)
    metrics = train(RECIPE, read_only / "finished", dataset=DATASET, resume=True)
    assert metrics == json.loads((read_only / "finished/metrics.json").read_text())


def test_writability_check_does_not_make_folder(tmp_path: Path) -> None:
    check_folder_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


# Changed and truncated files


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a small checkpoint."""
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    progress = {"epoch": 3, "step": 5, "losses": [0.5, 0.25], "correct": 7.0, "scaler": None}
    save_state(tmp_path / "state", {"model": net}, optimizer, progress)
    return tmp_path / "state"


def loaded(state: Path) -> tuple[dict[str, object], dict[str, Tensor], object]:
    """Return everything that a checkpoint restores."""
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    progress = load_state(state, {"model": net}, optimizer)
    return progress, net.state_dict(), repr(optimizer.state_dict())


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("change", [1, 128, 0x2A])
def test_checkpoint_with_changed_byte_rejected(state: Path, name: str, change: int) -> None:
    whole = (state / name).read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= change
        if name.endswith("json") and chr(whole[position]).isspace() and chr(content[position]).isspace():
            continue  # JSON means the same whether a line ends or a space stands there
        (state / name).write_bytes(content)
        with pytest.raises(DataError, match=re.escape(name)) as caught:
            loaded(state)
        assert "\n" not in str(caught.value)
    (state / name).write_bytes(whole)
    assert loaded(state)[0]["epoch"] == 3


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_truncated_checkpoint_rejected(state: Path, name: str) -> None:
    whole = (state / name).read_bytes()
    for length in range(len(whole) - 1):  # the last byte of JSON is a line's end
        (state / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=re.escape(name)):
            loaded(state)


def test_saved_network_with_changed_byte_rejected_or_config_edit(tmp_path: Path) -> None:
    """The weights have a checksum; the values in config.json may be edited, and are checked one by one."""
    net = nn.Linear(2, 2)
    save_model(tmp_path, net, ModelSpec("resnet20"), {"num_classes": 2, "mean": [0.5], "std": [0.25]})
    for name in ("model.safetensors", "config.json"):
        whole = (tmp_path / name).read_bytes()
        for position in range(len(whole)):
            content = bytearray(whole)
            content[position] ^= 1
            (tmp_path / name).write_bytes(content)
            with contextlib.suppress(DataError):
                assert equal(read_source(tmp_path)[1], net.state_dict())
                assert name == "config.json"
        (tmp_path / name).write_bytes(whole)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=7))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_damaged_checkpoint_error_names_last_good_one_to_resume_from(
    unfinished: Path, finished: Path, damage: Callable[[Path], None], name: str
) -> None:
    newest = unfinished / "checkpoints/step_000000009"
    damage(newest / name)
    before = content_of(unfinished)
    with pytest.raises(DataError, match=rf"{name} .*Or remove {newest}: .* continues from step_000000006\.$"):
        trained(unfinished, resume=True)
    assert content_of(unfinished) == before
    shutil.rmtree(newest)
    assert equal(trained(unfinished, resume=True), weights(finished))
    assert outcome(unfinished) == outcome(finished)


def test_damaged_checkpoint_is_not_called_good(unfinished: Path, finished: Path) -> None:
    states = [unfinished / "checkpoints" / name for name in ("step_000000009", "step_000000006")]
    flip(states[0] / "state.json")
    flip(states[1] / "state.safetensors")
    with pytest.raises(DataError, match=rf"Or remove {states[0]} and {states[1]}: .* continues from the beginning\.$"):
        trained(unfinished, resume=True)
    for state in states:
        shutil.rmtree(state)
    assert equal(trained(unfinished, resume=True), weights(finished))


def spoil(path: Path) -> None:
    """Write an invalid value into a file."""
    edit(path, parameters=None)


@pytest.mark.parametrize("damage", [spoil, cut])
@pytest.mark.parametrize(
    ("keep", "again"),
    [
        (True, r"--resume writes it again\. The last good checkpoint is .*step_000000009\.$"),
        (False, r"--resume trains the run again\.$"),
    ],
)
def test_damaged_metrics_can_be_rewritten(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], keep: bool, again: str
) -> None:
    out, recipe = tmp_path / "run", dataclasses.replace(RECIPE, keep_checkpoint=keep)
    trained(out, recipe)
    before = outcome(out)
    damage(out / "metrics.json")
    with pytest.raises(DataError, match=rf"metrics\.json:? .*Or remove it: the same command with {again}"):
        trained(out, recipe, resume=True)
    (out / "metrics.json").unlink()
    assert equal(trained(out, recipe, resume=True), weights(finished))
    assert outcome(out) == before


def test_partial_file_of_killed_process_is_removed(unfinished: Path) -> None:
    (unfinished / ".model.safetensors.0123abcd.4000077.part").write_bytes(b"half")
    (unfinished / "checkpoints/.step_000000009.0123abcd.4000077.part").mkdir()
    trained(unfinished, resume=True)
    assert leftovers(unfinished) == []


def test_half_removed_checkpoint_is_not_counted(state: Path) -> None:
    folder = state.parent / "checkpoints"
    for number in range(3):
        shutil.copytree(state, folder / f"step_00000000{number}")
    (folder / "step_000000002" / "state.json").unlink()
    keep_newest_states(folder, 1)
    assert [path.name for path in folder.iterdir()] == ["step_000000001"]


def test_failed_state_write_frees_its_space(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise StorageError(f"{path} cannot be written")

    monkeypatch.setattr("gatewise.training.checkpoint.write_record", full)
    net = nn.Linear(3, 2)
    with pytest.raises(StorageError, match=r"/other/state\.json cannot be written"):
        save_state(state.parent / "other", {"model": net}, torch.optim.SGD(net.parameters()), {})
    assert [path.name for path in state.parent.iterdir()] == ["state"]


def test_checkpoint_of_other_network_is_one_line(state: Path) -> None:
    with pytest.raises(DataError, match=r"state\.safetensors does not fit the network \(.*size mismatch") as caught:
        load_state(state, {"model": nn.Linear(4, 2)}, None)
    assert "\n" not in str(caught.value)


# Files of a newer version


def of_format(path: Path, number: object, key: str = "format") -> None:
    """Write a file as another version would."""
    values = json.loads(path.read_text()) | {key: number}
    values.pop("values_sha256", None)
    path.write_text(json.dumps(values))


NEWER = r"{} has format 2, but this version of gatewise supports formats up to 1\. Install a newer"


@pytest.mark.parametrize("name", ["metrics.json", "checkpoints/step_000000006/state.json"])
def test_run_of_newer_version_is_not_modified(finished: Path, without_results: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished if name == "metrics.json" else without_results, out)
    of_format(out / name, 2)
    with (out / "recipe.yaml").open("a") as recipe:
        recipe.write("an_option_of_tomorrow: 1\n")
    before = content_of(out)
    for resume in (False, True):
        with pytest.raises(NewerFormatError, match=NEWER.format(re.escape(str(out / name)))):
            train(RECIPE, out, dataset=DATASET, resume=resume)
    assert content_of(out) == before


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("config.json", f"predict RUN {__file__}"),
        ("config.json", "explain RUN --out page.html"),
        ("metrics.json", "explain RUN --out page.html"),
        ("config.json", "export RUN --out net.onnx"),
        ("config.json", "train --data digits --init RUN --out new"),
    ],
)
def test_every_command_rejects_run_of_newer_version(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, line: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    of_format(tmp_path / "run" / file, 2)
    before = content_of(tmp_path)
    words = [word.replace("RUN", str(tmp_path / "run")) for word in line.split()]
    words = [str(tmp_path / word) if word in {"page.html", "net.onnx", "new"} else word for word in words]
    assert run(words) == 2
    assert re.search(NEWER.format(f"{tmp_path}/run/{file}"), said(capsys))
    assert content_of(tmp_path) == before


def test_comparison_of_newer_version_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"schema": 2}')
    assert run([*COMPARE, "--out", str(tmp_path)]) == 2
    assert re.search(NEWER.format(f"{tmp_path}/results.json"), said(capsys))
    assert (tmp_path / "results.json").read_text() == '{"schema": 2}'
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_run_of_newer_version_in_comparison_is_found_first(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "runs/gct/seed_0"
    shutil.copytree(finished, there)
    of_format(there / "metrics.json", 2)
    monkeypatch.setattr("gatewise.comparison.run.train", lambda *_, **__: pytest.fail("something was trained"))
    assert run([*COMPARE, "--out", str(tmp_path)]) == 2
    assert re.search(NEWER.format(there / "metrics.json"), said(capsys))


@pytest.mark.parametrize("number", [0, "1", True, None, 1.5])
def test_non_numeric_format_rejected(tmp_path: Path, number: object) -> None:
    write_record(tmp_path / "file.json", {"a": 1}, 1)
    of_format(tmp_path / "file.json", number)
    with pytest.raises(DataError, match=rf"has format {re.escape(repr(number))}; expected a number from 1 to 1"):
        read_record(tmp_path / "file.json", 1)


@pytest.mark.parametrize("checksum", ["none", "stale"])
def test_files_of_older_versions_are_read(finished: Path, tmp_path: Path, checksum: str) -> None:
    """The oldest have no format; later ones have a checksum of their values, which is ignored."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("config.json", "metrics.json"):
        values = json.loads((tmp_path / "run" / name).read_text())
        assert values["format"] == 1
        assert "values_sha256" not in values
        if checksum == "none":
            del values["format"]
        else:
            values["values_sha256"] = "0" * 64
        (tmp_path / "run" / name).write_text(json.dumps(values))
    assert train(RECIPE, tmp_path / "run", resume=True)["epochs"] == 3
    assert run(["explain", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 2  # without images
    assert (tmp_path / "page.html").exists()
    assert "values_sha256" not in details_in(load_model(tmp_path / "run")[1])
    assert "values_sha256" not in write_metrics(tmp_path, read_metrics(tmp_path / "run"))


def test_config_and_metrics_may_be_edited(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    edit(tmp_path / "run/config.json", classes=["cat", "dog", "cow"])
    edit(tmp_path / "run/metrics.json", note="the second of three", accuracy=0.5)
    net, config = load_model(tmp_path / "run")
    assert config["classes"] == ["cat", "dog", "cow"]
    assert equal(net.state_dict(), weights(finished))
    assert train(RECIPE, tmp_path / "run", resume=True)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "std", [0.0], "std[0] must be a number >= 1e-06, got 0.0"),
        ("config.json", "mean", [math.nan], "mean[0] must be a number >= -1000000.0, got nan"),
        ("config.json", "num_classes", "3", "num_classes must be an integer or null, got '3'"),
        ("metrics.json", "accuracy", 1.5, "accuracy must be a number <= 1.0, got 1.5"),
        ("metrics.json", "loss", math.inf, "loss must be a number <= 1e+38, got inf"),
        ("metrics.json", "images_per_second", "fast", "images_per_second must be a number, got 'fast'"),
    ],
)
def test_invalid_edited_value_is_named_with_file_and_expectation(
    finished: Path, tmp_path: Path, file: str, key: str, value: object, message: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    edit(tmp_path / "run" / file, **{key: value})
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/run/{file}: {message}")):
        open_runs([tmp_path / "run"])
