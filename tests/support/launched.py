"""Trainings by two processes that torchrun starts, and the processes below it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FLAGS = ["--data", "digits", "--model", "resnet20", "--gate", "gct", "--precision", "fp32", "--batch-size", "256"]


def descendants(process: int) -> Iterator[int]:
    """Yield the processes that a process has started, and theirs."""
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from descendants(child)


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a training has logged so many epochs."""
    for _ in range(3000):
        if (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it takes too long")


def start(out: Path, *more: str, epochs: int = 6) -> subprocess.Popen[str]:
    flags = [*FLAGS, "--epochs", str(epochs), "--out", str(out)]
    command = [*LAUNCHER, *more, "-m", "gatewise", "train", *flags, "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two processes by the command line."""
    out = tmp_path_factory.mktemp("elastic") / "run"
    process = start(out)
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert printed.count("accuracy") == 1, "one process prints"
    assert [errors.count(f"epoch {epoch}/6") for epoch in range(1, 7)] == [1] * 6
    return out
