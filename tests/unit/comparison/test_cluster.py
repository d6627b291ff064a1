"""A comparison on a Ray cluster: the same table as in sequence, if any worker is killed, and errors in one line."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gatewise.cli import run
from gatewise.comparison import cluster
from gatewise.comparison.cluster import train_on_cluster, train_run, training_speeds
from gatewise.comparison.script_runs import ScriptRun
from gatewise.errors import InvalidValueError, TrainingError, UnsavedError
from gatewise.graph import measure
from gatewise.graph.measure import Latency
from gatewise.training import Interrupted, Progress, Recipe
from support.few_digits import few_digits, few_rounds  # noqa: F401 - fixtures
from support.launched import descendants
from support.ray_comparison import (
    finished,
    needs_ray,
    same_runs,
    sequential,  # noqa: F401 - a fixture
    start,
)
from support.whole_files import without_times

QUICK = Recipe(data="digits", epochs=1, batch_size=32, lr=0.05, precision="fp32")
COMMAND = ["compare", "--data", "digits", "--gates", "none,gct", "--seeds", "1", "--epochs", "1"]

# Errors


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a command prints."""
    assert run(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = complaint(capsys, *COMMAND, "--ray", "--out", str(tmp_path / "out"))
    assert line == (
        "gatewise: compare --ray needs the package 'ray', which is not installed. "
        "Install it with: pip install 'gatewise[ray]'\n"
    )


@needs_ray
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", r"no Ray cluster at '127.0.0.1:1' ([Errno 111] Connection ref"),
        ("127.0.0.1:99999", "no Ray cluster at '127.0.0.1:99999' ("),
        ("auto", "no Ray cluster at 'auto' (Could not find any running Ray instance."),
        ("somewhere", "--ray takes HOST:PORT such as 192.168.0.1:6379, or auto, got 'somewhere'. Without an address"),
    ],
)
def test_address_without_cluster_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str, expected: str
) -> None:
    import ray

    def no_cluster(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance. Please specify ...")

    monkeypatch.setattr(ray, "init", no_cluster)  # another test may have a cluster on this machine
    line = complaint(capsys, *COMMAND, "--ray", address, "--out", str(tmp_path / "out"))
    assert line.startswith(f"gatewise: {expected}")


# Tasks


def test_task_trains_into_folder_and_returns_short_result(few_digits: None, tmp_path: Path) -> None:
    folder = tmp_path / "out/runs/none/seed_0"
    (tmp_path / "out").mkdir()
    found = train_run(dataclasses.asdict(QUICK), str(folder), str(tmp_path), 0)
    assert found == {"host": os.uname().nodename, "precision": "fp32"}
    assert len(pickle.dumps(found)) < 1000
    assert (folder / "metrics.json").exists()


def test_task_on_machine_without_folders_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "out/runs/none/seed_0"
    host = os.uname().nodename
    for here, out in ((tmp_path / "gone", tmp_path / "out"), (tmp_path, tmp_path / "out")):
        found = train_run(dataclasses.asdict(QUICK), str(folder), str(here), 0)
        missing = here if here.name == "gone" else out
        assert found["invalid"].startswith(
            f"{host} has no folder {missing}. Use a working folder and an --out that all"
        )


def test_task_separates_failed_training_from_invalid_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    folder = str(tmp_path / "out/runs/none/seed_0")

    def train(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cluster, "train", train)
    error: Exception = TrainingError("the loss is nan")
    assert train_run(dataclasses.asdict(QUICK), folder, str(tmp_path), 0) == {"failed": "the loss is nan"}
    error = UnsavedError("no space left")
    unsaved = {"unsaved": f"{os.uname().nodename}: no space left"}
    assert train_run(dataclasses.asdict(QUICK), folder, str(tmp_path), 0) == unsaved
    error = InvalidValueError("no such gate")
    invalid = {"invalid": f"{os.uname().nodename}: no such gate"}
    assert train_run(dataclasses.asdict(QUICK), folder, str(tmp_path), 0) == invalid


def test_task_runs_a_command(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    folder, host = tmp_path / "out/runs/a/seed_0", os.uname().nodename
    script = ScriptRun(f"{sys.executable} -c 'import sys; sys.exit(sys.argv[1])' {{gates}} {{seed}} {{out}}", "a", 0)
    found = train_run(dataclasses.asdict(script), str(folder), str(tmp_path), 0)
    assert found["failed"].startswith("the command ended with exit code 1: a (")
    assert not script.is_finished(folder)
    succeeding = dataclasses.replace(script, command=script.command.replace("sys.argv[1]", "0"))
    assert train_run(dataclasses.asdict(succeeding), str(folder), str(tmp_path), 0) == {"host": host}
    assert succeeding.is_finished(folder)


def test_finished_commands_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / f"runs/{name}/seed_0" for name in ("a", "b")]
    scripts = {folder: ScriptRun("true {gates} {seed} {out}", folder.parent.name, 0) for folder in folders}
    scripts[folders[0]].train(folders[0])
    ray = Ray({"b": {"failed": "exit code 1"}})
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    assert train_on_cluster(scripts, None, progress=Listening()) == {folders[1]: "exit code 1"}
    assert ray.submitted == ["b"]


# The driver, with tasks that run immediately


class Ray:
    """A cluster that runs each task when its result is requested."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, results: dict[str, Any], **resources: float) -> None:
        self.results, self.resources = results, resources
        self.options: dict[str, Any] = {}
        self.submitted: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self.cancelled: list[str] = []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0, **self.resources}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}, {"Alive": True}, {"Alive": False}]

    def remote(self, **options: Any) -> Any:
        self.options = options
        outer = self

        class Task:
            def remote(self, fields: dict[str, Any], folder: str, *more: Any) -> str:
                outer.submitted.append(Path(folder).parent.name)
                outer.arguments.append((fields, folder, *more))
                return outer.submitted[-1]

        return lambda _: Task()

    def wait(self, tasks: list[str], num_returns: int = 1, **_: float) -> tuple[list[str], list[str]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: str) -> Any:
        found = self.results[task]
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self, task: str) -> None:
        self.cancelled.append(task)


class Listening(Progress):
    """Records reported lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


DONE = {"host": "a", "precision": "fp32"}


def recipes(tmp_path: Path, *names: str) -> dict[Path, Recipe]:
    """Return recipes by folder."""
    found = {}
    for name in names:
        folder = tmp_path / "runs" / name / "seed_0"
        found[folder] = dataclasses.replace(QUICK, gate=name)
    return found


def spread(monkeypatch: pytest.MonkeyPatch, ray: Ray, runs: dict[Path, Recipe], **options: Any) -> Any:
    """Train on the cluster, whose tasks that succeed leave metrics."""
    get = ray.get

    def leaving(task: str) -> Any:
        found = get(task)
        folder = next(folder for folder in runs if folder.parent.name == task)
        if found.get("host") and not found.get("lost"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text("{}")
        return found

    monkeypatch.setattr(ray, "get", leaving)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    return train_on_cluster(runs, None, **options)


def test_finished_runs_are_skipped_and_task_arguments_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = recipes(tmp_path, "none", "se", "gct")
    first = next(iter(runs))
    first.mkdir(parents=True)
    (first / "metrics.json").write_text("{}")
    ray, listening = Ray({"se": DONE, "gct": DONE}), Listening()
    assert spread(monkeypatch, ray, runs, progress=listening) == {}
    assert ray.submitted == ["se", "gct"]
    assert max(len(pickle.dumps(arguments)) for arguments in ray.arguments) < 2000
    assert listening.lines == [
        "2 of 3 runs to train on 2 machines with 4 processors and 0 GPUs",
        "se, seed 0 is done on a; 2 of 3 runs",
        "gct, seed 0 is done on a; 3 of 3 runs",
    ]
    monkeypatch.setitem(sys.modules, "ray", Ray({}))  # type: ignore[arg-type]
    assert train_on_cluster(runs, None) == {}


def test_run_gets_gpu_and_share_of_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"max_retries": 10, "scheduling_strategy": "SPREAD"}
    for resources, workers, expected in (
        ({}, None, {"num_cpus": 1, "num_gpus": 0}),
        ({"GPU": 2.0, "CPU": 16.0}, None, {"num_cpus": 8, "num_gpus": 1}),
        ({}, 3, {"num_cpus": 4, "num_gpus": 0}),
    ):
        ray = Ray({"none": DONE}, **resources)
        spread(monkeypatch, ray, recipes(tmp_path / str(expected), "none"), workers=workers)
        assert ray.options == {**alone, **expected}
        assert ray.arguments[0][3] == expected["num_cpus"] - 1


def test_failed_and_lost_runs_are_reported_and_others_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Ray.exceptions.RayError("the worker died")
    ray, runs = (
        Ray({"none": {"failed": "the loss is nan"}, "se": lost, "gct": DONE}),
        recipes(tmp_path, "none", "se", "gct"),
    )
    failed = spread(monkeypatch, ray, runs)
    assert {folder.parent.name: reason for folder, reason in failed.items()} == {
        "none": "the loss is nan",
        "se": "its process was lost 11 times (the worker died)",
    }


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"invalid": "b: no such data"}, "b: no such data"),
        ({"host": "b", "precision": "bf16"}, "runs were trained in fp32 on a and bf16 on b, which compares machines"),
        ({"host": "b", "precision": "fp32", "lost": True}, "b has finished .*/se/seed_0, which does not exist on"),
    ],
)
def test_permanent_error_stops_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Any, expected: str
) -> None:
    ray = Ray({"none": DONE, "se": found, "gct": DONE})
    with pytest.raises(InvalidValueError, match=expected):
        spread(monkeypatch, ray, recipes(tmp_path, "none", "se", "gct"))
    assert ray.cancelled == ["gct"]


@needs_ray
def test_machine_without_gatewise_is_named() -> None:
    from ray import cloudpickle

    script = """
import sys
sys.modules["gatewise"] = None
from ray import cloudpickle
task = cloudpickle.loads(sys.stdin.buffer.read())
print(task.__name__, task({}, "out", ".", 0)["invalid"])
"""
    task = cloudpickle.dumps(cluster._task())
    done = subprocess.run([sys.executable, "-c", script], input=task, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith("train_run a machine of the cluster cannot import gatewise (")


def test_task_of_a_cluster_trains_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "train_run", lambda *arguments: {"got": arguments})
    assert cluster._task()({}, "out", ".", 0) == {"got": ({}, "out", ".", 0)}


def test_bug_in_a_task_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = Ray.exceptions.RayTaskError("ray::train_run() ZeroDivisionError")
    with pytest.raises(Ray.exceptions.RayTaskError, match="ZeroDivisionError"):
        spread(monkeypatch, Ray({"none": bug}), recipes(tmp_path, "none"))


def test_full_disk_stops_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray({"none": DONE, "se": {"unsaved": "b: no space left"}, "gct": DONE})
    with pytest.raises(UnsavedError, match=r"^b: no space left$"):
        spread(monkeypatch, ray, recipes(tmp_path, "none", "se", "gct"))
    assert ray.cancelled == ["gct"]


def test_signal_cancels_remaining_runs_and_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray, runs = Ray({"none": DONE, "se": DONE, "gct": DONE}), recipes(tmp_path, "none", "se", "gct")

    def note(self: Any, task: str, folder: Path, take: Any = cluster._Runs._take) -> None:
        take(self, task, folder)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cluster._Runs, "_take", note)
    with pytest.raises(
        Interrupted, match=r"^stopped with 1 of 3 runs finished; run the same command again to continue$"
    ) as caught:
        spread(monkeypatch, ray, runs)
    assert caught.value.signal == signal.SIGTERM
    assert ray.cancelled == ["se", "gct"]


def test_epochs_are_reported_once_as_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, listening = recipes(tmp_path, "se"), Listening()
    folder = next(iter(runs))
    folder.mkdir(parents=True)
    row = {"loss": 0.5, "train_accuracy": 0.5, "validation_accuracy": 0.25, "images_per_second": 10.0}
    lines = [json.dumps({"epoch": epoch, **row}) + "\n" for epoch in (1, 2)]
    (folder / "log.jsonl").write_text(lines[0])
    ray = Ray({"se": DONE})
    waits = iter(([], [], ["se"]))

    def wait(_: list[str], **__: float) -> tuple[list[str], list[str]]:
        (folder / "log.jsonl").write_text("".join(lines))
        return next(waits), []

    monkeypatch.setattr(ray, "wait", wait)
    spread(monkeypatch, ray, runs, progress=listening)
    assert listening.lines[1:-1] == ["se seed 0: epoch 2/1, loss 0.5000, accuracy 25.00 %, 10 images/s"]


def test_training_speed_is_batch_over_median_step_time(few_digits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: dict[str, list[float]] = {}

    def clock(calls: Mapping[str, Callable[[], float]], **_: Any) -> dict[str, Latency]:
        """Report half a second or one second per step; repeated steps must give the same loss."""
        timed.update({name: [call(), call()] for name, call in calls.items()})
        return {name: Latency(s, s, s, (s,)) for name, s in zip(calls, (0.5, 1.0), strict=True)}

    monkeypatch.setattr(measure, "interleaved_latency", clock)
    names = ("none", "gct")
    speeds = training_speeds({name: QUICK.of_comparison(name, 0) for name in names}, QUICK.source.load())
    assert speeds == {"none": 64.0, "gct": 32.0}
    assert all(first == again > 0 for first, again in timed.values()), "a timed step has changed the weights"


# A real cluster on this machine


def tasks_of(driver: int) -> Iterator[int]:
    """Yield the processes of a driver's cluster that have a run's task at work."""
    for process in descendants(driver):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::train_run"):
            yield process


def wait_for_epochs(out: Path, count: int, process: subprocess.Popen[str]) -> dict[Path, str]:
    """Wait until an unfinished run has so many epochs; return the logs of all unfinished ones."""
    for _ in range(3000):
        logs = {
            file: file.read_text()
            for file in out.glob("runs/*/*/log.jsonl")
            if not file.with_name("metrics.json").exists()
        }
        if any(log.count("\n") >= count for log in logs.values()):
            return logs
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it takes too long")


@needs_ray
@pytest.mark.slow
def test_killed_workers_are_replaced_and_table_is_unchanged(sequential: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "--ray")
    kept: dict[Path, str] = {}
    for epochs in (2, 5):
        logs = wait_for_epochs(out, epochs, process)
        victims = list(tasks_of(process.pid))
        assert victims
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        kept |= logs
    said = finished(process)
    assert same_runs(sequential, out)
    assert without_times(out / "results.json", out) == without_times(sequential / "results.json", sequential)
    for file, log in kept.items():
        saved = log.splitlines()[:-1]  # an epoch is logged just before it is saved
        assert file.read_text().splitlines()[: len(saved)] == saved, (
            "epochs are not trained again: the seconds are kept"
        )
    assert any(log.count("\n") > 1 for log in kept.values())
    assert "4 of 4 runs to train on 1 machine" in said
    assert "none seed 1: epoch 8/8" in said


@needs_ray
@pytest.mark.slow
def test_ctrl_c_saves_steps_and_same_command_resumes(sequential: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "--ray")
    wait_for_epochs(out, 2, process)
    cluster_s = set(descendants(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    last = errors.splitlines()[-1]
    assert last == "gatewise: stopped with 0 of 4 runs finished; run the same command again to continue"
    assert "Traceback" not in errors
    steps = [int(file.name.removeprefix("step_")) for file in out.glob("runs/*/*/checkpoints/step_*")]
    assert steps
    time.sleep(2)
    assert not [p for p in cluster_s if Path(f"/proc/{p}/stat").exists()], "the cluster has ended"
    finished(start(out, "--ray"))
    assert same_runs(sequential, out)
    assert without_times(out / "results.json", out) == without_times(sequential / "results.json", sequential)
