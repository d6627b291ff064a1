"""Writing files: beside and renamed, whoever else writes there, and nothing that is not ours is taken away."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_training import DATASET, RECIPE
from torch import nn

from gatewise.errors import DataError, GatewiseError, InvalidValueError, StorageError
from gatewise.files import beside_name, check_writable, new_folder, remove_leftovers, write_atomically
from gatewise.interop.reading import read_weights
from gatewise.serialization import METRICS, not_finite
from gatewise.training import train
from gatewise.training.checkpoint import complete_states, keep_newest_states
from gatewise.training.learner import Learner


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """They shared a name beside it: one renamed what the other had half written."""
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


def test_a_folder_has_its_name_when_all_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"

    def half_written() -> None:
        with new_folder(folder) as beside:
            write_atomically(beside / "other", "there")
            raise StorageError(f"{beside}/file cannot be written")

    with pytest.raises(StorageError, match=r"/runs/new/file cannot be written"):
        half_written()
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    with new_folder(folder) as beside:
        write_atomically(beside / "file", "new")
        assert list(folder.iterdir()) == []
    assert [path.name for path in folder.parent.rglob("*")] == ["new", "file"]
    with pytest.raises(StorageError, match=r"/runs/new cannot be written: Directory not empty"), new_folder(folder):
        pass
    assert [path.name for path in folder.parent.rglob("*")] == ["new", "file"]


def test_a_link_is_followed_and_a_pipe_refused(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="is a pipe or device, expected a regular file"):
        write_atomically(pipe, "new")
    assert pipe.is_fifo()


def test_a_rename_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, flush = [], os.fsync

    def record(descriptor: int) -> None:
        flushed.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(tmp_path / "file", "content")
    assert flushed[-1] == str(tmp_path.resolve())


def test_leftovers_of_the_dead_go_and_nothing_else(tmp_path: Path) -> None:
    """A process that began while another wrote took its half-written file away, and whatever else ended in .part."""
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


def test_a_probe_that_cannot_be_written_is_not_left(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from gatewise.files import check_writable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try: check_writable(Path(sys.argv[1]))\n"
        "except OSError: print('refused')"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path / "a/b"], capture_output=True, text=True, check=True)
    assert (found.stdout, list(tmp_path.iterdir())) == ("refused\n", [])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
    check_writable(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []


# ---- folders that are not ours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checkpoints"])
def test_a_folder_with_work_of_others_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "step_5000").write_text("not ours")
    with pytest.raises(InvalidValueError, match=f"holds {name}, but no run of gatewise. Choose another --out"):
        train(RECIPE, tmp_path, dataset=DATASET)
    assert (tmp_path / name / "step_5000").read_text() == "not ours"


def test_checkpoints_of_other_trainers_stay(tmp_path: Path) -> None:
    for name in ("step_5000", "step_000000001", "step_000000002"):
        (tmp_path / name).mkdir()
        for kind in ("json", "safetensors"):
            (tmp_path / name / f"state.{kind}").write_text("")
    (tmp_path / "step_notes.txt").write_text("")
    keep_newest_states(tmp_path, 1)
    assert [state.name for state in complete_states(tmp_path)] == ["step_000000002"]
    assert {path.name for path in tmp_path.iterdir()} == {"step_5000", "step_000000002", "step_notes.txt"}


def test_a_training_goes_on_and_does_not_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes would come of beginning again, so steps are counted."""
    train(RECIPE, tmp_path, dataset=DATASET)
    (tmp_path / METRICS).unlink()
    steps, step = [], Learner.step

    def counted(*arguments: object) -> object:
        steps.append(arguments[-1])
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", counted)
    train(RECIPE, tmp_path, dataset=DATASET, resume=True)
    assert steps == []
    (tmp_path / METRICS).unlink()
    older, newest = complete_states(tmp_path / "checkpoints")
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    train(RECIPE, tmp_path, dataset=DATASET, resume=True)
    assert steps == list(range(int(older.name[5:]), int(newest.name[5:])))


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_weights_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    """A kilobyte ran forever, or ended in a RecursionError."""
    wrapped: dict[str, object] = {}
    wrapped["state_dict"] = wrapped
    nested: dict[str, object] = {"w": torch.zeros(1)}
    nested["x"] = nested
    for number, content in enumerate((wrapped, nested)):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(DataError):
            read_weights(tmp_path / f"{number}.pt")


def test_a_statistic_of_minus_infinity_is_seen_and_a_mask_is_not() -> None:
    norm = nn.BatchNorm2d(2)
    norm.register_buffer("mask", torch.full((2,), -torch.inf))
    assert not_finite(norm) is None
    assert norm.running_mean is not None
    norm.running_mean[0] = -torch.inf
    assert not_finite(norm) == "running_mean"
    assert issubclass(StorageError, GatewiseError)
