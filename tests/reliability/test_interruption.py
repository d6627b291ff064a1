"""Stopping by Ctrl-C, SIGTERM or a kill at any moment, and resuming: the final weights have the same bits."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatewise.core.files import write_atomically
from gatewise.training import Interrupted, Progress, checkpoint, loop, train
from gatewise.training.signals import Interruption
from support.small_runs import DATASET, RECIPE, equal, log, trained, weights
from support.train_command import start, wait_for_an_epoch

TIMES = ("seconds", "images_per_second")


class Signalling(Progress):
    """Sends this process a signal after a number of steps."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(quiet=True)
        self.left, self.number = step, number

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interruption") / "run"
    trained(out)
    return out


# In one process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("step", "where"), [(2, "step 2 of epoch 1"), (3, "epoch 1"), (4, "step 1 of epoch 2"), (9, "epoch 3")]
)
def test_signal_ends_training_after_step_and_training_resumes(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals, step: int, where: str
) -> None:
    out = tmp_path / "run"
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=rf"^stopped after {where}, saved in .*run; .*--resume$") as caught:
        trained(out, progress=Signalling(step, number))
    assert caught.value.signal == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    newest = sorted(folder.name for folder in (out / "checkpoints").iterdir())[-1]
    assert newest == f"step_{step:09d}"
    assert equal(trained(out, resume=True), weights(uninterrupted))
    assert log(out, *TIMES) == log(uninterrupted, *TIMES)


def test_training_may_be_stopped_at_every_step(uninterrupted: Path, tmp_path: Path) -> None:
    for _ in range(9):
        with pytest.raises(Interrupted):
            trained(tmp_path / "run", resume=True, progress=Signalling(1, signal.SIGINT))
    assert equal(trained(tmp_path / "run", resume=True), weights(uninterrupted))
    assert log(tmp_path / "run", *TIMES) == log(uninterrupted, *TIMES)


def test_second_signal_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_twice() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_outside_main_thread_ignores_signals(uninterrupted: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(RECIPE, tmp_path / "run"), kwargs={"dataset": DATASET})
    thread.start()
    thread.join()
    assert equal(weights(tmp_path / "run"), weights(uninterrupted))


def test_long_epoch_is_saved_in_between(uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    save_state = checkpoint.save_state
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("gatewise.training.learner.save_state", lambda f, *a: saved.append(f.name) or save_state(f, *a))
    assert equal(trained(tmp_path / "run"), weights(uninterrupted))
    assert saved == [f"step_{step:09d}" for step in range(1, 10)]


class Killed(BaseException):
    """The end of a process at any moment."""


def writes(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, dying at its call number `count`, in the middle: half of what it does is done."""
    calls = [0]

    def dying(path: Path, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.0123abcd.4000001.part").write_bytes(b"half")
            raise Killed
        return function(path, *args)

    return dying


@pytest.mark.parametrize("count", range(1, 15))
def test_kill_during_any_write_loses_nothing(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        dying = writes(count, write_atomically)
        for module in (
            "core.files",
            "models.serialization",
            "training.checkpoint",
            "training.recipe",
            "training.results",
            "training.run_log",
        ):
            patch.setattr(f"gatewise.{module}.write_atomically", dying)
        with pytest.raises(Killed):
            trained(tmp_path / "run")
    assert equal(trained(tmp_path / "run", resume=True), weights(uninterrupted))
    assert log(tmp_path / "run", *TIMES) == log(uninterrupted, *TIMES)


@pytest.mark.parametrize("lost", ["state.json", "state.safetensors"])
def test_half_removed_checkpoint_is_skipped(uninterrupted: Path, tmp_path: Path, lost: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        trained(out, progress=Signalling(7, signal.SIGINT))
    (sorted((out / "checkpoints").iterdir())[-1] / lost).unlink()
    (out / "checkpoints" / ".step_000000009.0123abcd.4000077.part").mkdir()
    assert equal(trained(out, resume=True), weights(uninterrupted))
    assert not (out / "checkpoints").exists()


# In a separate process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_line_stops_with_one_line_saying_how_to_resume(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start(tmp_path / "run")
    wait_for_an_epoch(process)
    process.send_signal(number)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == code
    last = printed.splitlines()[-1]
    assert last.startswith("gatewise: stopped after ")
    assert last.endswith("continue with the same command and --resume")
    assert "Traceback" not in printed
    assert not (tmp_path / "run" / "metrics.json").exists()
