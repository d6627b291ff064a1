"""Writing files: under a temporary name, then renamed; safe with other writers; files of others are never removed."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from gatewise.core.files import beside_name, check_folder_writable, new_folder, remove_leftovers, write_atomically
from gatewise.errors import DataError, GatewiseError, InvalidValueError, StorageError
from gatewise.models.serialization import not_finite
from gatewise.models.weights.reading import read_weights
from gatewise.training import train
from gatewise.training.checkpoint import complete_states, keep_newest_states
from gatewise.training.learner import Learner
from support.small_runs import DATASET, RECIPE, trained_without_results


def test_concurrent_writers_do_not_conflict(tmp_path: Path) -> None:
    """They shared a temporary name: one renamed what the other had half written."""
    path, failed = tmp_path / "file", list[BaseException]()

    def write(letter: str) -> None:
        try:
            for _ in range(40):
                write_atomically(path, letter * 10_000)
                assert set(path.read_text()) in ({"a"}, {"b"})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_renamed_when_complete(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"

    def half_written() -> None:
        with new_folder(folder) as temporary:
            write_atomically(temporary / "other", "there")
            raise StorageError(f"{temporary}/file cannot be written")

    with pytest.raises(StorageError, match=r"/runs/new/file cannot be written"):
        half_written()
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    with new_folder(folder) as temporary:
        write_atomically(temporary / "file", "new")
        assert list(folder.iterdir()) == []
    assert [path.name for path in folder.parent.rglob("*")] == ["new", "file"]
    with pytest.raises(StorageError, match=r"/runs/new cannot be written: Directory not empty"), new_folder(folder):
        pass
    assert [path.name for path in folder.parent.rglob("*")] == ["new", "file"]


def test_link_is_followed_and_pipe_rejected(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="is a pipe or device, expected a regular file"):
        write_atomically(pipe, "new")
    assert pipe.is_fifo()


def test_rename_is_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, flush = [], os.fsync

    def record(descriptor: int) -> None:
        flushed.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(tmp_path / "file", "content")
    assert flushed[-1] == str(tmp_path.resolve())


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    """A process that began while another wrote removed its half-written file and every other file ending in .part."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f".weights.0123abcd.{dead.pid}.part"
    gone.mkdir()
    alive = tmp_path / f".log.jsonl.0123abcd.{os.getppid()}.part"
    for path in (alive, tmp_path / ".movie.mkv.part", tmp_path / "log.part"):
        path.write_text("kept")
    beside_name(tmp_path / "own").write_text("of an earlier process with this number")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, ".movie.mkv.part", "log.part"])


def test_failed_write_probe_is_removed(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from gatewise.core.files import check_folder_writable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try: check_folder_writable(Path(sys.argv[1]))\n"
        "except OSError: print('rejected')"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path / "a/b"], capture_output=True, text=True, check=True)
    assert (found.stdout, list(tmp_path.iterdir())) == ("rejected\n", [])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
    check_folder_writable(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []


# ---- folders of others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checkpoints", "log.jsonl"])
def test_folder_with_other_files_rejected(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "step_5000").write_text("not ours")
    with pytest.raises(InvalidValueError, match=f"contains {name}, but not a gatewise run. Choose another --out"):
        train(RECIPE, tmp_path, dataset=DATASET)
    assert (tmp_path / name / "step_5000").read_text() == "not ours"


def test_checkpoints_of_other_trainers_are_kept(tmp_path: Path) -> None:
    for name in ("step_5000", "step_000000001", "step_000000002"):
        (tmp_path / name).mkdir()
        for kind in ("json", "safetensors"):
            (tmp_path / name / f"state.{kind}").write_text("")
    (tmp_path / "step_notes.txt").write_text("")
    keep_newest_states(tmp_path, 1)
    assert [state.name for state in complete_states(tmp_path)] == ["step_000000002"]
    assert {path.name for path in tmp_path.iterdir()} == {"step_5000", "step_000000002", "step_notes.txt"}


def test_training_resumes_and_does_not_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart would give the same bytes, so steps are counted."""
    trained_without_results(tmp_path)
    steps, step = [], Learner.step

    def counted(*arguments: object) -> object:
        steps.append(arguments[-1])
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", counted)
    trained_without_results(tmp_path, resume=True)
    assert steps == []
    older, newest = complete_states(tmp_path / "checkpoints")
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    train(RECIPE, tmp_path, dataset=DATASET, resume=True)
    assert steps == list(range(int(older.name[5:]), int(newest.name[5:])))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_weights_containing_themselves_rejected(tmp_path: Path) -> None:
    """A kilobyte ran forever, or ended in a RecursionError."""
    wrapped: dict[str, object] = {}
    wrapped["state_dict"] = wrapped
    nested: dict[str, object] = {"w": torch.zeros(1)}
    nested["x"] = nested
    for number, content in enumerate((wrapped, nested)):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(DataError):
            read_weights(tmp_path / f"{number}.pt")


def test_infinite_statistic_is_detected_and_mask_is_not() -> None:
    norm = nn.BatchNorm2d(2)
    norm.register_buffer("mask", torch.full((2,), -torch.inf))
    assert not_finite(norm) is None
    assert norm.running_mean is not None
    norm.running_mean[0] = -torch.inf
    assert not_finite(norm) == "running_mean"
    assert issubclass(StorageError, GatewiseError)
