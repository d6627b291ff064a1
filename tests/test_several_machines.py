"""Two machines train together, or share a comparison; one of them loses its power on the way."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cluster import needs_ray, same_runs, sequential, without_times  # noqa: F401
from test_interruption import TIMES
from test_processes import FLAGS, undisturbed, wait_for_rows  # noqa: F401
from test_training import equal, log, weights
from two_machines import Machine, two_machines

pytestmark = pytest.mark.slow


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    with two_machines() as machines:
        yield machines


def launch(machine: Machine, head: Machine, out: Path) -> subprocess.Popen[bytes]:
    """Start one process of two on a machine."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head.address}:29511", "--rdzv-id", "gatewise"]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "3",
        *meeting,
    ]
    train = ["-m", "gatewise", "train", *FLAGS, "--epochs", "6", "--resume", "--out", str(out)]
    command = [sys.executable, *launcher, "--local-addr", machine.address, *train]
    return machine.start(command, out.with_name(f"{machine.name}.log"))


def ended(process: subprocess.Popen[bytes], *logs: Path) -> None:
    assert process.wait(timeout=600) == 0, "\n".join(log.read_text()[-5000:] for log in logs)


def test_two_machines_train_the_run_of_two_processes_though_one_loses_its_power(
    undisturbed: Path,
    machines: list[Machine],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    head, other = machines
    launched = [launch(machine, head, out) for machine in machines]
    wait_for_rows(out, 2, launched[0])  # type: ignore[arg-type]
    other.lose_power()
    launched[1].wait(timeout=60)
    assert len((out / "log.jsonl").read_text().splitlines()) < 6
    again = launch(other, head, out)
    logs = [out.with_name(f"{machine.name}.log") for machine in machines]
    ended(launched[0], *logs)
    ended(again, *logs)
    assert "has lost another one" in logs[0].read_text()
    assert equal(weights(out), weights(undisturbed))
    assert log(out, *TIMES) == log(undisturbed, *TIMES)
