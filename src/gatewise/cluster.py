"""The runs of a comparison spread over a Ray cluster: a task each, which trains into the run's folder.

A task gets a recipe and returns a few words; weights stay in the folder, which all machines share. What is finished is
what the folders say, so a task that Ray starts again, on whatever machine, goes on behind the run's last checkpoint.
"""

# pyright: basic

import dataclasses
import functools
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gatewise import _validation, errors, measure
from gatewise.data import Dataset, DataSource, SegmentationDataset, make_batches
from gatewise.files import read_json_lines
from gatewise.training import Interrupted, Processes, Progress, Recipe, train
from gatewise.training.learner import Learner
from gatewise.training.progress import epoch_line
from gatewise.training.signals import Interruption
from gatewise.tuning import set_total_steps

_RETRIES = 10  # of a run whose process or machine is lost; each goes on where the last one saved
_POLL_S = 1.0
_GRACE_S = 120.0  # for runs that are asked to stop: they finish their step and save it
_STORE_BYTES = 100 * 2**20  # what tasks return are words


def train_on_cluster(
    recipes: Mapping[Path, Recipe],
    address: str | None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[Path, str]:
    """Train every recipe into its folder, and return why runs failed, by folder.

    Args:
        recipes: by run folder, in the order in which they shall begin; runs that are finished are left alone.
        address: HOST:PORT of a cluster, or auto for one that runs here. None takes the environment's RAY_ADDRESS, and
            where that is not set starts Ray on this machine for as long as it takes.
        workers: processes of each run that decode images; None takes the share of the processors that a GPU has.
        progress: where to show progress; None shows nothing.

    Raises:
        Interrupted: SIGINT or SIGTERM came; runs were asked to save their step, and what is finished stays.
        MissingExtraError: there is no Ray.
        UnsavedError: a file of a run could not be written.
        InvalidValueError: there is no cluster at the address, a machine cannot do what this one can, or machines would
            train in different precisions.
    """
    todo = {folder: recipe for folder, recipe in recipes.items() if not (folder / "metrics.json").exists()}
    ray = _validation.import_optional("ray", "compare --ray", "ray")
    if not todo:
        return {}
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        with Interruption() as interruption:  # behind the connection, which has handlers of its own
            return _Runs(ray, todo, len(recipes), workers, progress or Progress(quiet=True)).finish(interruption)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    """Connect to a cluster, or start one."""
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", include_dashboard=False, object_store_memory=_STORE_BYTES, **options)
        return
    _check_reachable(address)
    try:
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, error) from None


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens, for which Ray itself would wait long."""
    if address in {"auto", "local"}:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise errors.InvalidValueError(
            f"--ray takes HOST:PORT such as 192.168.0.1:6379, or auto, got {address!r}. Alone it starts Ray here."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> errors.InvalidValueError:
    reason = " ".join(str(error).split())[:200]
    return errors.InvalidValueError(
        f"no Ray cluster at {address!r} ({reason}). Start one with ray start --head and take the address that it "
        f"prints, or give --ray alone, which starts Ray on this machine."
    )


def check_one_precision(trained: Mapping[str, str]) -> None:
    """Refuse runs of which "auto" made more than one precision; `trained` says for each of them where that was."""
    if len(trained) > 1:
        raise errors.InvalidValueError(
            f"runs were trained in {' and '.join(trained.values())}, which compares machines and not gates. Choose one "
            f"--precision for all, and another --out."
        )


class _Runs:
    """The runs that are missing, as tasks of a cluster."""

    def __init__(
        self, ray: Any, todo: Mapping[Path, Recipe], count: int, workers: int | None, progress: Progress
    ) -> None:
        self.ray, self.todo, self.count, self.progress = ray, todo, count, progress
        self.failed: dict[Path, str] = {}
        self.seen = {folder: len(_rows(folder)) for folder in todo}  # epochs that were told, or there before
        self.trained_by: dict[str, str] = {}  # each precision, and its first machine
        there = ray.cluster_resources()
        processors, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0))
        if workers is None:
            workers = max(0, processors // gpus - 1) if gpus else 0
        machines = sum(node["Alive"] for node in ray.nodes())
        progress.say(
            f"{len(todo)} of {count} runs to train on {machines} machine{'s' * (machines > 1)} with {processors} "
            f"processors and {gpus} GPUs"
        )
        # Spread, because runs on one machine slow each other down.
        options = {"max_retries": _RETRIES, "scheduling_strategy": "SPREAD", "num_cpus": 1 + workers}
        task = ray.remote(**options, num_gpus=1 if gpus else 0)(train_run)
        here = str(Path.cwd())
        self.pending = {
            task.remote(dataclasses.asdict(recipe), str(folder.absolute()), here, workers): folder
            for folder, recipe in todo.items()
        }

    def finish(self, interruption: Interruption) -> dict[Path, str]:
        """Wait for all runs, tell what they do, and return why some failed."""
        try:
            while self.pending and interruption.signal is None:
                done, _ = self.ray.wait(list(self.pending), timeout=_POLL_S)
                self._tell_epochs()
                for task in done:
                    self._take(task, self.pending.pop(task))
        except BaseException:
            self._stop()
            raise
        if interruption.signal is not None:
            self._stop()
            finished = self.count - sum(not (folder / "metrics.json").exists() for folder in self.todo)
            message = f"stopped with {finished} of {self.count} runs finished; go on with the same command"
            raise Interrupted(message, interruption.signal)
        return self.failed

    def _stop(self) -> None:
        """Ask runs to stop; those that are running save their step."""
        for task in self.pending:
            self.ray.cancel(task)
        if self.pending:
            self.ray.wait(list(self.pending), num_returns=len(self.pending), timeout=_GRACE_S)

    def _take(self, task: Any, folder: Path) -> None:
        """Take what a task has returned."""
        recipe, exceptions = self.todo[folder], self.ray.exceptions
        name = f"{recipe.gate}, seed {recipe.seed}"
        try:
            found = self.ray.get(task)
        except exceptions.RayTaskError as error:
            if "failed to import on the worker" not in str(error):
                raise  # a defect, with its traceback
            raise errors.InvalidValueError(
                "a machine of the cluster cannot import gatewise. Install the same version on all of them."
            ) from None
        except exceptions.RayError as error:
            found = {"failed": f"its process was lost {_RETRIES + 1} times ({' '.join(str(error).split())[:200]})"}
        if "refused" in found:
            raise errors.InvalidValueError(found["refused"])
        if "unsaved" in found:  # the next one would find the disk as full
            raise errors.UnsavedError(found["unsaved"])
        if "failed" in found:
            self.failed[folder] = found["failed"]
            self.progress.say(f"{name} failed, {found['failed']}")
            return
        if not (folder / "metrics.json").exists():
            raise errors.InvalidValueError(
                f"{found['host']} has finished {folder}, which is not there on {platform.node()}. Choose an --out that "
                f"all machines share."
            )
        self.trained_by.setdefault(found["precision"], f"{found['precision']} on {found['host']}")
        check_one_precision(self.trained_by)
        left = len(self.pending)
        self.progress.say(f"{name} is done on {found['host']}; {self.count - left} of {self.count} runs")

    def _tell_epochs(self) -> None:
        """Show the epochs that runs have logged since the last look."""
        if self.progress.quiet:
            return
        for folder in self.pending.values():
            recipe, rows = self.todo[folder], _rows(folder)
            for row in rows[self.seen[folder] :]:
                self.progress.say(epoch_line(f"{recipe.gate} seed {recipe.seed}", recipe.epochs, row))
            self.seen[folder] = max(self.seen[folder], len(rows))


def _rows(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []


def train_run(fields: dict[str, Any], folder: str, here: str, workers: int) -> dict[str, str]:
    """Train one run in a process of the cluster; return where and in which precision, or why not.

    Args:
        fields: of the recipe.
        folder: of the run.
        here: the folder from which the recipe's paths are meant.
        workers: see `train`.
    """
    host = platform.node()
    missing = [path for path in (here, str(Path(folder).parents[2])) if not Path(path).is_dir()]
    if missing:
        return {"refused": f"{host} has no folder {missing[0]}. Work in a folder, and with an --out, that all share."}
    os.chdir(here)
    recipe = Recipe.from_dict(fields)
    try:
        metrics = train(recipe, folder, resume=True, dataset=_dataset(recipe.source), workers=workers)
    except errors.UnsavedError as error:
        return {"unsaved": f"{host}: {error}"}
    except errors.TrainingError as error:
        return {"failed": str(error)}
    except errors.GatewiseError as error:
        return {"refused": f"{host}: {error}"}
    return {"host": host, "precision": metrics["precision"]}


@functools.lru_cache(maxsize=1)
def _dataset(source: DataSource) -> Dataset | SegmentationDataset:
    """Return the images, which the next run of this process needs too."""
    return source.load()


def training_speeds(recipes: Mapping[str, Recipe], dataset: Dataset | SegmentationDataset) -> dict[str, float]:
    """Return images per second in a step of each recipe, timed in turn on this machine.

    Runs of a cluster were trained on several machines and beside each other, so their own speeds compare nothing.
    """
    calls = {}
    for name, recipe in recipes.items():
        learner = Learner(recipe, dataset)
        learner.begin(recipe.stages[-1])
        set_total_steps(learner.plain_model, 1)
        learner.model.train()
        processes = Processes()
        batches = make_batches(
            dataset.train,
            recipe.batch_size,
            learner.mean,
            learner.std,
            augmentation=dataset.augmentation(recipe.augmentation),
            device=processes.device,
        )
        batch = next(iter(batches.training(0, seed=0, augmentation=dataset.augmentation(recipe.augmentation))))
        calls[name] = functools.partial(_step, learner, *batch)
    size = min(next(iter(recipes.values())).batch_size, len(dataset.train))
    return {name: size / seconds.median_s for name, seconds in measure.interleaved_latency(calls, rounds=5).items()}


def _step(learner: Learner, images: Any, labels: Any) -> float:
    """Take a step that changes no weight; waits for the device."""
    loss, _ = learner.step(images, labels, 0.0, 0)
    return float(loss)
