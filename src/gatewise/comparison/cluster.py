"""Train the runs of a comparison on a Ray cluster, one task per run.

A task receives a recipe, trains into the run's folder and returns a short summary. All machines share the folders, and
only the folders record what is finished: a task that Ray restarts on any machine resumes from the last checkpoint.
"""

# pyright: basic

import dataclasses
import functools
import importlib
import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gatewise import errors
from gatewise.comparison.script_runs import ScriptRun
from gatewise.core import _validation
from gatewise.core.reasons import reason_of
from gatewise.data import Dataset, DataSource, SegmentationDataset
from gatewise.graph import measure
from gatewise.insertion.tuning import set_total_steps
from gatewise.models import import_network, imported_networks
from gatewise.training import Interrupted, Progress, Recipe, is_finished, train
from gatewise.training.from_recipe import build
from gatewise.training.learner import Learner
from gatewise.training.progress import epoch_line
from gatewise.training.run_folder import read_log
from gatewise.training.signals import Interruption

_RETRIES = 10  # of a run whose process or machine is lost; each resumes from the last checkpoint
_POLL_S = 1.0
_GRACE_S = 120.0  # seconds in which cancelled runs finish their step and save it
_STORE_BYTES = 100 * 2**20  # tasks return short texts only


def train_on_cluster(
    recipes: Mapping[Path, Recipe | ScriptRun],
    address: str | None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    on_connected: Callable[[], None] = lambda: None,
) -> dict[Path, str]:
    """Train every recipe into its folder, and return the reasons of failed runs.

    Args:
        recipes: recipes, or runs of a command, by run folder, in the order in which to start them; finished runs are
            skipped.
        address: HOST:PORT of a cluster, or auto for the cluster of this machine. None takes the environment variable
            RAY_ADDRESS; if it is not set, Ray is started on this machine and stopped at the end.
        workers: processes per run that decode images; None takes the number of processors per GPU, less one.
        progress: where to show progress; None shows nothing.
        on_connected: called before the first training.

    Returns:
        The reasons of failed runs by folder.

    Raises:
        Interrupted: SIGINT or SIGTERM was received; running trainings were stopped after saving a checkpoint.
        MissingExtraError: Ray is not installed.
        UnsavedError: a file of a run could not be written.
        InvalidValueError: there is no cluster at the address, a machine rejects a recipe or lacks a folder, or machines
            would train in different precisions.
    """
    todo = {folder: recipe for folder, recipe in recipes.items() if not _is_finished(recipe, folder)}
    ray = _validation.import_optional("ray", "compare --ray", "ray")
    if not todo:
        return {}
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    on_connected()
    try:
        with Interruption() as interruption:  # after ray.init, which installs its own signal handlers
            return _Runs(ray, todo, len(recipes), workers, progress or Progress(quiet=True)).finish(interruption)
    finally:
        if own:
            ray.shutdown()


def _is_finished(recipe: Recipe | ScriptRun, folder: Path) -> bool:
    return recipe.is_finished(folder) if isinstance(recipe, ScriptRun) else is_finished(folder)


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
    """Raise if the address is invalid or does not accept connections; Ray itself would wait for minutes."""
    if address in {"auto", "local"}:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise errors.InvalidValueError(
            f"--ray takes HOST:PORT such as 192.168.0.1:6379, or auto, got {address!r}. Without an address, it "
            f"starts Ray on this machine."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> errors.InvalidValueError:
    return errors.InvalidValueError(
        f"no Ray cluster at {address!r} ({reason_of(error)}). Start one with ray start --head and use the address that "
        f"it prints, or give --ray without an address to start Ray on this machine."
    )


def check_trained_alike(trained: Mapping[str, str]) -> None:
    """Raise if runs were trained in different precisions; `trained` maps each precision to where it was used.

    A number of processes belongs to the precision.
    """
    if len(trained) > 1:
        raise errors.InvalidValueError(
            f"runs were trained in {' and '.join(trained.values())}, which compares machines and not gates. Choose "
            f"another --out, and train all runs with one --precision and one number of processes."
        )


class _Runs:
    """The unfinished runs, as tasks of a cluster."""

    def __init__(
        self, ray: Any, todo: Mapping[Path, Recipe | ScriptRun], count: int, workers: int | None, progress: Progress
    ) -> None:
        self.ray, self.todo, self.count, self.progress = ray, todo, count, progress
        self.failed: dict[Path, str] = {}
        self.seen = {folder: len(read_log(folder)) for folder in todo}  # epochs that were logged or shown before
        self.trained_by: dict[str, str] = {}  # each precision, and its first machine
        resources = ray.cluster_resources()
        processors, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        if workers is None:
            workers = max(0, processors // gpus - 1) if gpus else 0
        machines = sum(node["Alive"] for node in ray.nodes())
        progress.say(
            f"{len(todo)} of {count} runs to train on {machines} machine{'s' * (machines > 1)} with {processors} "
            f"processors and {gpus} GPUs"
        )
        # SPREAD: runs on the same machine slow each other down.
        options = {"max_retries": _RETRIES, "scheduling_strategy": "SPREAD", "num_cpus": 1 + workers}
        task = ray.remote(**options, num_gpus=1 if gpus else 0)(_task())
        working_folder = str(Path.cwd())
        self.pending = {
            task.remote(
                dataclasses.asdict(recipe), str(folder.absolute()), working_folder, workers, imported_networks()
            ): folder
            for folder, recipe in todo.items()
        }

    def finish(self, interruption: Interruption) -> dict[Path, str]:
        """Wait for all runs, show their progress, and return the reasons of failed runs."""
        try:
            while self.pending and interruption.signal is None:
                done, _ = self.ray.wait(list(self.pending), timeout=_POLL_S)
                self._show_epochs()
                for task in done:
                    self._take(task, self.pending.pop(task))
        except BaseException:
            self._stop()
            raise
        if interruption.signal is not None:
            self._stop()
            finished = self.count - sum(not _is_finished(recipe, folder) for folder, recipe in self.todo.items())
            stopped = f"stopped with {finished} of {self.count} runs finished"
            raise Interrupted(stopped, interruption.signal, "run the same command again to continue")
        return self.failed

    def _stop(self) -> None:
        """Cancel all runs; running trainings finish their step and save a checkpoint."""
        for task in self.pending:
            self.ray.cancel(task)
        if self.pending:
            self.ray.wait(list(self.pending), num_returns=len(self.pending), timeout=_GRACE_S)

    def _take(self, task: Any, folder: Path) -> None:
        """Handle the return value of a finished task."""
        recipe, exceptions = self.todo[folder], self.ray.exceptions
        name = f"{recipe.gate}, seed {recipe.seed}"
        try:
            outcome = self.ray.get(task)
        except exceptions.RayTaskError:
            raise  # a bug: keep the traceback
        except exceptions.RayError as error:
            outcome = {"failed": f"its process was lost {_RETRIES + 1} times ({reason_of(error)})"}
        if "invalid" in outcome:
            raise errors.InvalidValueError(outcome["invalid"])
        if "unsaved" in outcome:  # the next run would fail for the same reason
            raise errors.UnsavedError(outcome["unsaved"])
        if "failed" in outcome:
            self.failed[folder] = outcome["failed"]
            self.progress.say(f"{name} failed, {outcome['failed']}")
            return
        if not _is_finished(recipe, folder):
            raise errors.InvalidValueError(
                f"{outcome['host']} has finished {folder}, which does not exist on {platform.node()}. Choose an --out "
                f"that all machines share."
            )
        if "precision" in outcome:
            self.trained_by.setdefault(outcome["precision"], f"{outcome['precision']} on {outcome['host']}")
        check_trained_alike(self.trained_by)
        finished = self.count - len(self.pending)
        self.progress.say(f"{name} is done on {outcome['host']}; {finished} of {self.count} runs")

    def _show_epochs(self) -> None:
        """Show the epochs that runs have logged since the last call."""
        if self.progress.quiet:
            return
        for folder in self.pending.values():
            recipe, rows = self.todo[folder], read_log(folder)
            if isinstance(recipe, ScriptRun):
                continue
            for row in rows[self.seen[folder] :]:
                self.progress.say(epoch_line(f"{recipe.gate} seed {recipe.seed}", recipe.epochs, row))
            self.seen[folder] = max(self.seen[folder], len(rows))


def _task() -> Callable[..., dict[str, str]]:
    """Return `train_run` for machines that may not have gatewise: Ray pickles a local function with its code."""

    def task(*arguments: Any) -> dict[str, str]:
        try:
            cluster = importlib.import_module("gatewise.comparison.cluster")
        except ImportError as error:
            where = f"a machine of the cluster cannot import gatewise ({error})"
            return {"invalid": f"{where}. Install the same version on all of them."}
        return cluster.train_run(*arguments)

    task.__name__ = task.__qualname__ = "train_run"  # Ray shows it as the title of the process
    return task


def train_run(
    fields: dict[str, Any], folder: str, here: str, workers: int, networks: Sequence[str] = ()
) -> dict[str, str]:
    """Train one run in a process of the cluster.

    Args:
        fields: fields of the recipe, or of a `ScriptRun`.
        folder: run folder.
        here: working folder, to which the recipe's paths are relative.
        workers: see `train`.
        networks: functions of the user that were imported by the driver, and are imported here too.

    Returns:
        "host" and, for a recipe, "precision" of a finished run; or the reason under "failed" (the training failed),
        "unsaved" (a file could not be written) or "invalid" (the recipe or a folder is invalid on this machine).
    """
    host = platform.node()
    missing = [path for path in (here, str(Path(folder).parents[2])) if not Path(path).is_dir()]
    if missing:
        return {
            "invalid": f"{host} has no folder {missing[0]}. Use a working folder and an --out that all machines share."
        }
    os.chdir(here)
    try:
        if "command" in fields:
            ScriptRun(**fields).train(Path(folder))
            return {"host": host}
        for network in networks:
            import_network(network)
        recipe = Recipe.from_dict(fields)
        metrics = train(recipe, folder, resume=True, dataset=_dataset(recipe.source), workers=workers)
    except errors.UnsavedError as error:
        return {"unsaved": f"{host}: {error}"}
    except errors.TrainingError as error:
        return {"failed": str(error)}
    except errors.GatewiseError as error:
        return {"invalid": f"{host}: {error}"}
    return {"host": host, "precision": metrics["precision"]}


@functools.lru_cache(maxsize=1)
def _dataset(source: DataSource) -> Dataset | SegmentationDataset:
    """Load the images; cached for the next run in this process."""
    return source.load()


def training_speeds(recipes: Mapping[str, Recipe], dataset: Dataset | SegmentationDataset) -> dict[str, float]:
    """Return the training speed of each recipe in images per second, timed in turn on this machine.

    The speeds logged by runs of a cluster are not comparable: machines differ, and runs share them.
    """
    calls = {}
    for name, recipe in recipes.items():
        setup = build(recipe.plan(), dataset)
        setup.learner.begin(setup.plan.stages[-1])
        set_total_steps(setup.learner.plain_model, 1)
        setup.learner.model.train()
        batch = next(iter(setup.batches.training(0, seed=0, augmentation=setup.augmentation)))
        calls[name] = functools.partial(_step, setup.learner, *batch)
    size = min(next(iter(recipes.values())).batch_size, len(dataset.train))
    return {name: size / seconds.median_s for name, seconds in measure.interleaved_latency(calls, rounds=5).items()}


def _step(learner: Learner, images: Any, labels: Any) -> float:
    """Run a training step with learning rate 0 and wait for the device."""
    loss, _, _ = learner.step(images, labels, 0.0, 0)
    return float(loss)
