"""Killed at any moment: no file is corrupt, and the training ends with the same bytes. `kills.py` does more of it."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gatewise.__main__ import main
from gatewise.cli import run as command
from gatewise.core.stop_signals import stop_signals
from gatewise.training import train
from support.project import ROOT
from support.small_runs import DATASET, RECIPE
from support.whole_files import corrupt_files, leftovers, outcome
from tools.kills import being_written

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def train_slowly(out: Path, flush_s: float) -> None:
    """Train, each flush to the disk taking its time, and end the process."""
    flush = os.fsync
    os.fsync = lambda file: (time.sleep(flush_s), flush(file))[1]  # type: ignore[assignment]
    train(RECIPE, out, dataset=DATASET, resume=True)
    os._exit(0)


def stopped_in_a_save(out: Path, process: int) -> bool:
    """Stop a process, and let it continue unless it is writing a file; return whether it is stopped."""
    os.kill(process, signal.SIGSTOP)
    os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if being_written(out, process):
        return True
    os.kill(process, signal.SIGCONT)
    return False


def killed(out: Path, rng: random.Random, *, in_a_save: bool) -> str:
    """Let a training run for a while, kill it, and return what it was doing."""
    process = multiprocessing.get_context("fork").Process(target=train_slowly, args=(out, 0.05 if in_a_save else 0))
    process.start()
    assert process.pid is not None
    if in_a_save:
        time.sleep(rng.uniform(0, 0.1))
        while process.exitcode is None and not stopped_in_a_save(out, process.pid):
            time.sleep(rng.uniform(0.001, 0.02))
    else:
        time.sleep(rng.uniform(0.05, 1.0))
    process.kill()
    process.join()
    if process.exitcode == 0:
        return "ended"
    return "saving" if being_written(out, process.pid) else "training"


@pytest.mark.extended
def test_killed_training_has_no_corrupt_file_and_same_final_bytes(tmp_path: Path) -> None:
    train(RECIPE, tmp_path / "uninterrupted", dataset=DATASET)
    expected = outcome(tmp_path / "uninterrupted")
    assert {"model.safetensors", "config.json", "metrics.json", "log.jsonl", "recipe.yaml"} <= set(expected)
    rng, doing, out = random.Random(0), Counter[str](), tmp_path / "killed"
    for number in range(12):
        doing[killed(out, rng, in_a_save=number % 4 != 0)] += 1
        assert corrupt_files(out) == []
        if (out / "metrics.json").exists():
            assert outcome(out) == expected
            out = tmp_path / f"killed-{number}"
    assert doing["saving"] >= 3
    train(RECIPE, out, dataset=DATASET, resume=True)
    assert outcome(out) == expected
    assert leftovers(out) == []


def test_corrupt_files_are_detected(tmp_path: Path) -> None:
    train(RECIPE, tmp_path / "run", dataset=DATASET)
    assert corrupt_files(tmp_path / "run") == []
    for path in (path for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        if not path.name.startswith("events."):  # which readers take as far as they go
            assert any(
                str(path.relative_to(tmp_path / "run")) in complaint for complaint in corrupt_files(tmp_path / "run")
            )
        path.write_bytes(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_outside_training_is_one_line_saying_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    def signalled(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("gatewise.training.train", signalled)
    own = {
        signal.SIGINT: signal.default_int_handler,  # a job in the background ignores it
        signal.SIGTERM: lambda *_: pytest.fail("SIGTERM was not taken"),
        signal.SIGHUP: lambda *_: pytest.fail("SIGHUP was not taken"),
    }
    before = {one: signal.signal(one, handler) for one, handler in own.items()}
    try:
        assert command(["train", "--out", "run"]) == code
        assert {one: signal.getsignal(one) for one in own} == own
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert capsys.readouterr().err == "gatewise: interrupted; run the same command again with --resume to continue\n"


def test_nohup_ignores_a_closed_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def end_and_be_signalled(number: signal.Signals) -> None:
    """Run the command line to its end, and send a signal before the process ends."""
    code = main()
    signal.raise_signal(number)
    os._exit(code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [0, 1])
def test_signal_after_end_does_not_change_exit_code(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr("gatewise.cli.run", lambda: code)
    process = multiprocessing.get_context("fork").Process(target=end_and_be_signalled, args=(number,))
    process.start()
    process.join()
    assert process.exitcode == code


@pytest.mark.slow
def test_killed_and_signalled_commands_lose_nothing(tmp_path: Path) -> None:
    script = ROOT / "tools/kills.py"
    arguments = ["--kills", "8", "--signals", "4", "--json", str(tmp_path / "kills.json")]
    result = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    record = json.loads((tmp_path / "kills.json").read_text())
    assert (record["kills"], record["signals"], record["corrupt_files"], record["lost"]) == (8, 4, 0, "nothing")


def test_published_record_has_many_kills_and_no_loss() -> None:
    record = json.loads((ROOT / "docs/results/reliability/kills.json").read_text())
    assert record["kills"] >= 40
    assert record["signals"] >= 8
    assert record["lost"] == "nothing"
    assert record["corrupt_files"] == 0
    assert len(record["each"]) == record["kills"] + record["signals"]
    assert sum(kill["phase"].startswith("writing") for kill in record["each"]) >= 8
