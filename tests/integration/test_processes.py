"""Several processes train one network: same result as one, exact metrics, one process writes."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from gatewise.data import Augmentation, make_batches
from gatewise.errors import DataError
from gatewise.models.serialization import load_model, read_tensors
from gatewise.training import Processes, evaluate
from gatewise.training.from_recipe import build_model
from gatewise.training.signals import Interruption
from support.launched import (
    LAUNCHER,
    descendants,
    start,
    uninterrupted,  # noqa: F401 - a fixture
    wait_for_rows,
)
from support.project import SUPPORT
from support.scenes import folder as scenes_folder  # noqa: F401 - fixtures
from support.small_runs import TIMES, equal, log, weights
from support.train_in_processes import CASES, data_of, main, recipe_of

SCRIPT = SUPPORT / "train_in_processes.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> Path:
    """Return a folder in which every case was trained by two processes, and one of them by one."""
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(scenes_folder, folder / "scenes")
    command = [*LAUNCHER, str(SCRIPT), str(folder), *CASES]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    main(folder, "plain")
    return folder


def result_of(folder: Path, rank: int, count: int = 2) -> dict[str, Any]:
    return json.loads((folder / f"{rank}_of_{count}.json").read_text())


@pytest.mark.extended
def test_two_processes_train_to_weights_and_log_of_one(trained: Path) -> None:
    alone, together = (trained / f"of_{count}/plain" for count in (1, 2))
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(together)[name], value, atol=1e-5, rtol=1e-4)
    rows = log(alone, *TIMES), log(together, *TIMES)
    assert len(rows[0]) == 3
    for one, two in zip(*rows, strict=True):
        assert two == {name: pytest.approx(value, rel=1e-4) for name, value in one.items()}
        assert two["train_accuracy"] == one["train_accuracy"], "images of both processes are counted"
    one, two = (read_tensors(run / "predictions.safetensors") for run in (alone, together))
    torch.testing.assert_close(two.pop("confidences"), one.pop("confidences"), atol=1e-5, rtol=1e-4)
    assert equal(one, two)


@pytest.mark.extended
@pytest.mark.parametrize("case", ["plain", "normed", "gater", "scenes"])
def test_metrics_use_kept_weights_and_each_validation_image_once(trained: Path, case: str) -> None:
    """29 images, in batches of 16, are evaluated by two processes; one process finds the same bits."""
    out = trained / "of_2" / case
    metrics = json.loads((out / "metrics.json").read_text())
    recipe = recipe_of(case, trained)
    data = data_of(recipe)
    model, config = load_model(out)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    batches = make_batches(data.validation, recipe.batch_size, mean, std, augmentation=Augmentation())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = evaluate(model, batches.evaluation(), recipe.task_spec.make(data.classes).new_results(torch.device("cpu")))
    assert found.images == len(data.validation)
    assert {name: metrics[name] for name in found.results} == found.results
    assert equal(read_tensors(out / "predictions.safetensors"), found.record)
    for rank in (0, 1):
        assert {name: result_of(trained, rank)[case][name] for name in found.results} == found.results


@pytest.mark.extended
def test_only_main_process_writes(trained: Path) -> None:
    main_process, other = (result_of(trained, rank)["written"] for rank in (0, 1))
    assert any("metrics.json" in line for line in main_process)
    assert other == []
    for case in CASES:
        if case != "uneven":
            rows = (trained / "of_2" / case / "log.jsonl").read_text().splitlines()
            assert [json.loads(row)["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert not list((trained / "of_2").rglob("*.part"))


@pytest.mark.extended
def test_batch_norm_statistics_are_those_of_process_0(trained: Path) -> None:
    recipe = recipe_of("one_step", trained)
    data = data_of(recipe)
    model = build_model(recipe, data)
    mean, std = data.statistics()
    augmentation = data.augmentation(recipe.augmentation)
    batches = make_batches(data.train, 48, mean, std, augmentation=augmentation, share=(0, 2))
    images, _ = next(iter(batches.training(0, seed=0, augmentation=augmentation)))
    assert len(images) == 24
    expected = 0.1 * model.conv1(images).mean((0, 2, 3))  # type: ignore[operator]
    kept = weights(trained / "of_2/one_step")["bn1.running_mean"]
    torch.testing.assert_close(kept, expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.extended
def test_comparison_trains_each_run_with_all_processes(trained: Path) -> None:
    results, other = (result_of(trained, rank)["comparison"] for rank in (0, 1))
    assert results == other == json.loads((trained / "of_2/comparison/results.json").read_text())
    assert results["environment"]["processes"] == "2"
    assert results["training"]["command"].startswith("torchrun --standalone --nproc-per-node 2 -m gatewise compare ")
    alone = result_of(trained, 0, 1)["comparison"]
    for found, expected in zip(results["variants"], alone["variants"], strict=True):
        assert found["accuracy"] == expected["accuracy"]
        assert found["macs"] == expected["macs"]


@pytest.mark.extended
def test_noise_depends_on_process_and_step(trained: Path) -> None:
    seeds = [result_of(trained, rank)["seeds"] for rank in (0, 1)]
    assert len(seeds[0]) == len(seeds[1]) > 10
    assert not set(seeds[0]) & set(seeds[1])


@pytest.mark.extended
def test_pixel_has_same_weight_in_every_process(trained: Path) -> None:
    assert result_of(trained, 0)["gradient"] == pytest.approx(result_of(trained, 0, 1)["gradient"])
    assert any(result_of(trained, 0)["gradient"])


@pytest.mark.extended
def test_unevenly_shared_batch_rejected(trained: Path) -> None:
    expected = (
        "2 processes cannot share a batch of 15 images evenly. "
        "Choose a batch_size that is a multiple of 2, for example 14."
    )
    assert [result_of(trained, rank)["uneven"] for rank in (0, 1)] == [expected, expected]


def test_processes_with_different_folders_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    processes.check_same_everywhere("state of out", "step_000000002")
    monkeypatch.setattr(processes, "all_gather_object", lambda value: [value, ""])
    with pytest.raises(DataError, match=r"the same state of out: 'step_000000002' in 0, '' in 1\. Choose an --out"):
        processes.check_same_everywhere("state of out", "step_000000002")


def test_signal_from_launcher_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Interruption(launched=True) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGTERM
        monkeypatch.setattr("gatewise.training.signals._ECHO_S", 0.0)
        monkeypatch.setattr(interruption, "_previous", {signal.SIGINT: signal.default_int_handler})
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# Lost and restarted processes


def worker(launcher: int, rank: int) -> int | None:
    """Return the process of a rank below a launcher, or None while there is none."""
    for process in descendants(launcher):
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if f"RANK={rank}".encode() in variables:
            return process
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes to kill in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_process_restarts_and_run_has_same_bits(uninterrupted: Path, tmp_path: Path, rank: int) -> None:
    out = tmp_path / "run"
    process = start(out, "--max-restarts", "3")
    for rows in (2, 4):
        wait_for_rows(out, rows, process)
        victim = worker(process.pid, rank)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors.count("exitcode: ") == errors.count("exitcode: -9") == 2, "nothing failed but what was killed"
    assert "Traceback" not in errors
    assert equal(weights(out), weights(uninterrupted))
    assert log(out, *TIMES) == log(uninterrupted, *TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_all_processes_after_same_step(uninterrupted: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = start(out)
    wait_for_rows(out, 2, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "gatewise: stopped after " in errors
    assert "lost the connection to another" not in errors
    assert not (out / "metrics.json").exists()
    again = start(out)
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert equal(weights(out), weights(uninterrupted))
    assert log(out, *TIMES) == log(uninterrupted, *TIMES)
