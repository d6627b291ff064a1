"""The Triton kernels of the gates: values in the interpreter, and compilation for GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.project import SUPPORT
from support.releases import release

triton = pytest.importorskip("triton", reason="triton is not installed")
interpreted = pytest.mark.skipif(
    release(triton.__version__) <= (3, 6),
    reason="the interpreter of Triton 3.6, that of torch 2.11, fails with numpy 2.4",
)


def printed(script: str, *arguments: str) -> str:
    command = [sys.executable, str(SUPPORT / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.extended
@interpreted
def test_kernels_in_interpreter_match_definition() -> None:
    assert printed("gates_in_interpreter.py") == "168 cases\n"


@pytest.mark.slow
def test_kernels_compile_for_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert printed("gates_compiled.py") == "30 programs\n"


@interpreted
@pytest.mark.slow
def test_every_combination_matches_definition() -> None:
    assert printed("gates_in_interpreter.py", "--all") == "1928 cases\n"


@pytest.mark.slow
def test_kernels_compile_for_two_gpu_generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert printed("gates_compiled.py", "--all") == "872 programs\n"


@pytest.mark.slow
@interpreted
def test_gates_train_on_kernels_in_interpreter() -> None:
    launches = int(printed("fused_in_interpreter.py").split()[0])
    assert launches >= 24
