"""Without what only Linux has: process groups, fork, signals and modules are taken away in a process of its own."""

import ast
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gatewise.comparison import script_runs
from gatewise.data import load_dataset
from gatewise.data.augmentation import Augmentation
from gatewise.data.batches import BatchParams, _DecodedBatches
from support.fresh import python
from support.picture_folders import by_class
from support.project import ROOT

# Other packages are imported first: what they need of Linux is not ours to guard.
AWAY = """
import asyncio, os, signal, subprocess, sys
import accelerate, cyclopts, matplotlib.figure, rich.progress, sklearn.datasets, timm, torchmetrics

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in ("fork", "getpgid", "getuid", "killpg", "mkfifo", "nice", "sched_getaffinity", "setsid", "statvfs"):
    delattr(os, name)
kept = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
for name in [name for name in dir(signal) if name.startswith("SIG") and name not in kept]:
    delattr(signal, name)

import gatewise
from gatewise.cli import run
from gatewise.comparison import run_results

run_results._ROUNDS = 2
small = ["--data", "digits", "--model", "test_resnet", "--epochs", "1", "--batch-size", "1024", "--precision", "fp32"]
codes = [
    run(["--help"]),
    run(["train", *small, "--gate", "eca", "--out", "run"]),
    run(["compare", *small, "--gates", "none,eca", "--seeds", "1", "--out", "comparison"]),
]
print(codes)
"""


@pytest.mark.extended
def test_command_line_trains_and_compares_without_what_windows_lacks(tmp_path: Path) -> None:
    result = python("-c", AWAY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[0, 0, 0]", result.stderr
    assert "Usage: gatewise" in result.stdout
    assert (tmp_path / "run/metrics.json").exists()
    assert (tmp_path / "comparison/report.html").exists()


def test_command_is_ended_without_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.killpg")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10)"])
    script_runs._stop(process)
    assert process.returncode == -signal.SIGKILL


def test_images_reach_workers_that_are_not_forked(tmp_path: Path) -> None:
    """Such a worker gets the data set pickled."""
    folder = by_class(tmp_path / "pictures", {"a": 6, "b": 6})
    images = load_dataset(str(folder), loading="stream").train
    batches = _DecodedBatches(images, Augmentation(padding=1))
    draw = BatchParams(torch.tensor([1, 0]), torch.ones(2, 2, dtype=torch.long), torch.tensor([True, False]), number=3)
    again = pickle.loads(pickle.dumps(batches))
    assert torch.equal(again[draw], batches[draw])


@pytest.mark.parametrize("kind", ["read_text", "write_text"])
def test_text_files_are_utf_8_on_every_system(kind: str) -> None:
    """Without an encoding, Windows takes that of the country."""
    position = {"read_text": 0, "write_text": 1}[kind]
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == kind:
                named = len(node.args) > position or any(word.arg == "encoding" for word in node.keywords)
                assert named, f"{file}, line {node.lineno}"
