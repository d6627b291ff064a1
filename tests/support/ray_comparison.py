"""`gatewise compare` in a separate process, and what it wrote."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = ["--data", "digits", "--gates", "none,gct", "--seeds", "2", "--precision", "fp32", "--batch-size", "256"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def start(out: Path, *more: str, epochs: int = 8) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gatewise", "compare", *FLAGS, "--epochs", str(epochs), "--out", str(out), *more]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def finished(process: subprocess.Popen[str]) -> str:
    """Return the standard error of a command that ended successfully."""
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return errors


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a comparison of four runs, one after another."""
    out = tmp_path_factory.mktemp("sequential") / "out"
    finished(start(out))
    return out


def same_runs(a: Path, b: Path) -> bool:
    names = sorted(file.parent.relative_to(a) for file in a.glob("runs/*/*/metrics.json"))
    assert len(names) == 4
    return all(
        (a / name / "model.safetensors").read_bytes() == (b / name / "model.safetensors").read_bytes() for name in names
    )
