"""Every command with --out rejects a path that cannot be written, in one line and before any work."""

import inspect
import os
import shlex
from pathlib import Path

import pytest

from gatewise.cli import app, run
from support.disks import disk

LINES = {  # their inputs do not exist: a command that looks at them first says so
    "check": "check --data nowhere",
    "compact": "compact nowhere",
    "compare": "compare --data nowhere",
    "compare a command": "compare --gates a,b --command 'nowhere {gates} {seed} {out}' --score-from a.csv:score:last",
    "bench": "bench nowhere",
    "bench runtimes": "bench nowhere --runtimes torch",
    "demo": "demo",
    "evaluate": "evaluate nowhere",
    "explain": "explain nowhere",
    "export": "export nowhere",
    "judge": "judge nowhere",
    "predict": "predict nowhere photo.jpg",
    "train": "train --data nowhere",
}
FILES = {"evaluate": "page.html", "explain": "page.html", "export": "net.onnx"}  # the others write a folder


def rejected(name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command with this --out, and return its one line of error."""
    assert run([*shlex.split(LINES[name]), "--out", str(out)]) == 2
    printed, said = capsys.readouterr()
    (line,) = said.splitlines()
    assert printed == ""
    return line.removeprefix("gatewise: ")


def new_in(folder: Path, name: str) -> Path:
    """Return what a command could write in a folder."""
    return folder / FILES.get(name, "new")


def test_every_command_with_out_is_here() -> None:
    commands = {name for name in app if not name.startswith("-")}
    with_out = {name for name in commands if "out" in inspect.signature(app[name].default_command).parameters}
    assert with_out == {line.split()[0] for line in LINES.values()}


@pytest.mark.parametrize("name", LINES)
def test_file_in_place_of_folder_rejected_first(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    outs = [new_in(tmp_path / "file", name), new_in(tmp_path / "file/deeper", name)]
    for out in outs if name in FILES else [tmp_path / "file", *outs]:
        assert rejected(name, out, capsys) == f"{tmp_path / 'file'} is not a folder. Choose another --out."
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", FILES)
def test_folder_or_device_in_place_of_file_rejected_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = new_in(tmp_path, name)
    out.mkdir()
    assert rejected(name, out, capsys) == f"{out} is a folder; give the name of a file."
    out.rmdir()
    os.mkfifo(out)
    assert rejected(name, out, capsys) == f"{out} is a pipe or device, expected a regular file. Choose another path."


def test_file_in_place_of_folder_of_figures_rejected_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    words = ["explain", "nowhere", "--out", str(tmp_path / "page.html"), "--figures", str(tmp_path / "file")]
    assert run(words) == 2
    assert capsys.readouterr().err == f"gatewise: {tmp_path / 'file'} is not a folder. Choose another --out.\n"


@pytest.mark.parametrize("name", ["evaluate", "explain"])
def test_file_that_is_no_page_is_not_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_text("kept")
    assert "is no HTML page by its name" in rejected(name, tmp_path / "model.safetensors", capsys)
    assert (tmp_path / "model.safetensors").read_text() == "kept"


def test_pictures_of_check_do_not_become_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (tmp_path, tmp_path / "checked"):
        assert run(["check", "--data", str(tmp_path), "--out", str(out)]) == 2
        assert f"{out} is in the folder of the data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", LINES)
def test_full_disk_rejected_first(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk(tmp_path / "disk", "nr_inodes=1") as full:
        for out in (new_in(full, name), new_in(full / "deeper", name)):
            line = rejected(name, out, capsys)
            assert line.startswith(f"{out} cannot be written: No space left on device. Free some space there")
        assert list(full.iterdir()) == []
