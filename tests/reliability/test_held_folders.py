"""Two trainings use one folder: the second raises an error; no process leaves the folder locked when it ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from gatewise.cli import run
from gatewise.comparison import compare
from gatewise.core.files import held
from gatewise.errors import InvalidValueError, StorageError
from gatewise.training import train
from gatewise.training.run_folder import holds_run
from support.small_runs import DATASET, RECIPE, trained
from support.train_command import start, wait_for_an_epoch

HOLDING = """
import os, sys, time
from pathlib import Path
from gatewise.core.files import held
with held(Path(sys.argv[1])):
    if os.fork() == 0:
        print("holding", flush=True)
        time.sleep(60)
    time.sleep(60)
"""


def at_work(folder: Path) -> str:
    return f"another process is using {folder}. Wait until it has finished, or choose another --out."


@pytest.mark.slow
def test_second_training_rejected_while_first_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    first = start(out, epochs=3)
    wait_for_an_epoch(first)
    before = sorted(out.rglob("*"))
    line = ["train", "--data", "digits", "--model", "resnet20", "--gate", "gct", "--epochs", "3", "--precision", "fp32"]
    assert run([*line, "--out", str(out), "--resume"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"gatewise: {at_work(out)}"]
    assert set(before) - set(out.rglob("*")) <= set((out / "checkpoints").rglob("*"))  # the first keeps two of them
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert run([*line, "--out", str(out), "--resume"]) == 0
    assert (out / "metrics.json").exists()


def test_trainings_and_comparisons_lock_their_folders(tmp_path: Path) -> None:
    with held(tmp_path / "runs" / "a"):
        for resume in (False, True):
            with pytest.raises(InvalidValueError, match=at_work(tmp_path / "runs" / "a")):
                train(RECIPE, tmp_path / "runs" / "a", dataset=DATASET, resume=resume)
        with pytest.raises(InvalidValueError, match=at_work(tmp_path / "runs" / "a")):
            compare(RECIPE, [()], 1, tmp_path / "runs" / "a")
        trained(tmp_path / "runs" / "b")
    assert not (tmp_path / "runs" / "a").exists()
    for resume in (False, True):  # each releases the folder
        trained(tmp_path / "runs" / "a", resume=resume)


def test_killed_process_releases_folder_while_workers_live(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(InvalidValueError, match=at_work(tmp_path)), held(tmp_path):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / ".lock").exists()
        with held(tmp_path):
            os.killpg(process.pid, 0)  # the worker lives
        assert not (tmp_path / ".lock").exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_only_folders_made_by_failed_call_are_removed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "run", tmp_path / "empty"):
        with held(folder):
            assert folder.is_dir()
    assert [folder.name for folder in tmp_path.iterdir()] == ["empty"]
    with held(tmp_path / "new" / "run"):
        (tmp_path / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is not a folder\. Choose another --out"), held(tmp_path / "file"):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_locks_folder_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def no_locks(lock: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with held(tmp_path), held(tmp_path):
        train(RECIPE, tmp_path / "run", dataset=DATASET)
    assert holds_run(tmp_path / "run")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_unreadable_lock_rejected_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of another user who works, or was killed, in a shared folder."""

    def denied(lock: filelock.FileLock) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), lock.lock_file)

    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    (tmp_path / ".lock").touch()
    with pytest.raises(StorageError, match=r"/\.lock cannot be written: Permission denied"), held(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()
