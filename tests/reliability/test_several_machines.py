"""Two machines train together, or share a comparison; one of them fails during the work."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launched import (
    FLAGS,
    uninterrupted,  # noqa: F401 - a fixture
    wait_for_rows,
)
from support.ray_comparison import FLAGS as COMPARISON
from support.ray_comparison import (
    needs_ray,
    same_runs,
    sequential,  # noqa: F401 - a fixture
)
from support.small_runs import TIMES, equal, log, weights
from support.two_machines import Machine, two_machines
from support.whole_files import without_times

pytestmark = pytest.mark.slow


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    with two_machines() as machines:
        yield machines


def launch(machine: Machine, head: Machine, out: Path) -> subprocess.Popen[bytes]:
    """Start one process of two on a machine."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head.address}:29511", "--rdzv-id", "gatewise"]
    meeting += ["--rdzv-conf", f"is_host={int(machine is head)}"]  # both have one host name here
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
    return machine.start(command, out.with_name(f"{machine.name}.log"), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")


def ended(process: subprocess.Popen[bytes], *logs: Path) -> None:
    assert process.wait(timeout=600) == 0, "\n".join(log.read_text()[-5000:] for log in logs)


def test_two_machines_train_like_two_processes_after_power_loss(
    uninterrupted: Path,
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
    assert "lost the connection to another process" in logs[0].read_text()
    assert equal(weights(out), weights(uninterrupted))
    assert log(out, *TIMES) == log(uninterrupted, *TIMES)


def wait_for_logs(out: Path, count: int, driver: subprocess.Popen[bytes], said: Path) -> None:
    """Wait until so many unfinished runs have logged two epochs."""
    for _ in range(3000):
        logs = [file for file in out.glob("runs/*/*/log.jsonl") if not file.with_name("metrics.json").exists()]
        if sum(log.read_text().count("\n") >= 2 for log in logs) >= count:
            return
        assert driver.poll() is None, said.read_text()
        time.sleep(0.1)
    raise AssertionError(said.read_text())


def wait_for_ray(said: Path) -> None:
    for _ in range(600):
        if "Ray runtime started" in said.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(said.read_text())


@needs_ray
def test_comparison_on_two_machines_finishes_on_remaining_one(
    sequential: Path,
    machines: list[Machine],
    tmp_path: Path,
) -> None:
    out, said = tmp_path / "out", tmp_path / "said.log"
    head, other = machines
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    ray += ["--object-store-memory", "80000000"]
    address = f"{head.address}:6399"
    here = ["--head", "--port", "6399", "--include-dashboard", "false", "--node-ip-address", head.address]
    clusters = [head.start([*ray, *here], tmp_path / "head.log", RAY_AUTH_MODE="token")]
    wait_for_ray(tmp_path / "head.log")
    there = ["--address", address, "--node-ip-address", other.address]
    clusters.append(other.start([*ray, *there], tmp_path / "other.log", RAY_AUTH_MODE="token"))
    wait_for_ray(tmp_path / "other.log")
    command = [sys.executable, "-m", "gatewise", "compare", *COMPARISON, "--epochs", "8", "--out", str(out)]
    driver = head.start([*command, "--ray", address], said, RAY_AUTH_MODE="token")
    wait_for_logs(out, 2, driver, said)
    assert "4 of 4 runs to train on 2 machines with 2 processors and 0 GPUs" in said.read_text()
    other.lose_power()
    ended(driver, said)
    assert same_runs(sequential, out)
    assert without_times(out / "results.json", out) == without_times(sequential / "results.json", sequential)
    head.lose_power()
    for cluster in clusters:
        cluster.wait(timeout=60)
