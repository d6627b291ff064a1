"""The trainers on docs/ultralytics.md, in a process of their own: the package changes settings of others on import."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from support.project import SUPPORT

pytest.importorskip("ultralytics")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the trainings found, without the internet."""
    folder = tmp_path_factory.mktemp("ultralytics")
    command = [sys.executable, str(SUPPORT / "ultralytics_in_process.py"), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=500, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.situation("The network is trained by another trainer: the gates first, then everything.")
@pytest.mark.parametrize("task", ["classify", "detect"])
def test_stages(found: dict[str, Any], task: str) -> None:
    alone, everything = found[task]["changed"]
    assert found[task]["gates"] > 70
    assert alone[0] > 0.9 * found[task]["gates"]
    assert alone[1] == 0, "running statistics are frozen too"
    assert everything[1] > 0.9 * found[task]["others"]


def test_beta_does_not_decay(found: dict[str, Any]) -> None:
    assert found["decayed"] == ["alpha", "gamma"]


def test_gates_outlive_fusion(found: dict[str, Any]) -> None:
    """Ultralytics fuses the layers of a checkpoint for validation and prediction."""
    checkpoint = found["checkpoint"]
    assert checkpoint["fused_gates"] == checkpoint["gates"] > 20
    assert checkpoint["fused"] < 1e-4
    assert checkpoint["without"] > 10 * checkpoint["fused"], "the gates have an effect"


@pytest.mark.situation("A training is resumed from the checkpoint of another trainer.")
def test_resumed(found: dict[str, Any]) -> None:
    resumed = found["resumed"]
    assert resumed["epochs"] == 1
    assert resumed["lost"] == [], "the gates are loaded too"
    assert resumed["changed"][0][1] > 0.9 * resumed["others"], "the second stage trains everything"
