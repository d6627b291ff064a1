"""Compare gates under equal conditions: for each seed, the same recipe, data order and initial backbone.

`out/runs/GATES/seed_N` are ordinary run folders; finished runs are not trained again. `results.json`, `results.md`,
`report.html` and two figures are written at the end, from the run folders only.
"""

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from gatewise import errors
from gatewise.analysis.robustness import check_corruptible
from gatewise.comparison.answer import answer
from gatewise.comparison.cluster import train_on_cluster, training_speeds
from gatewise.comparison.report import write_report
from gatewise.comparison.rival_rows import RivalRows, missing_rivals
from gatewise.comparison.rivals import (
    Rival,
    choose_rivals,
    of_rival,
    parse_costs,
    recorded_rivals,
)
from gatewise.comparison.run_results import SCHEMA, add_corruptions, results_of_runs
from gatewise.comparison.seeds import add_seeds
from gatewise.comparison.verdicts import baseline_of
from gatewise.core import _validation
from gatewise.core.files import (
    check_folder_writable,
    check_format_not_newer,
    read_json,
    remove_leftovers,
    write_json,
)
from gatewise.core.run_files import RECIPE, RESULTS, run_folder
from gatewise.data import Dataset, SegmentationDataset
from gatewise.gaternet import GaterNet
from gatewise.gates.registry import Gate
from gatewise.gates.spec import Gates, format_gates
from gatewise.insertion import gates_in
from gatewise.models.serialization import read_metrics
from gatewise.training import (
    Interrupted,
    Processes,
    Progress,
    Recipe,
    build_model,
    check_run_format,
    holds_run,
    is_finished,
    train,
)
from gatewise.training.constant_answer import constant_answer
from gatewise.training.distributed import usable_processors
from gatewise.training.first_facts import all_notes, first_facts
from gatewise.training.results import processes_of
from gatewise.training.trackers import DEFAULT, format_trackers

_GATED = (Gate, GaterNet)


def compare(
    recipe: Recipe,
    gates: Sequence[Gates],
    seeds: int,
    out: str | Path,
    *,
    workers: int | None = 0,
    progress: Progress | None = None,
    ray: bool | str = False,
    detect: float | None = None,
    rivals: Sequence[str] = (),
    corruptions: bool = False,
    track: Sequence[str] = DEFAULT,
) -> dict[str, Any]:
    """Train every choice of gates with every seed, compare the results, and write a report.

    A choice whose training fails for any seed is omitted from the table and listed under "failed".

    Args:
        recipe: recipe of all runs; its gate and seed are replaced.
        gates: one entry per network to compare; () is the network without gates. The baseline of all differences is (),
            or the first entry if () is not listed.
        seeds: number of seeds, counted from 0.
        out: folder of the comparison; an interrupted comparison is resumed.
        workers: see `train`; with `ray`, None takes the number of processors per GPU.
        progress: where to show progress; None shows nothing.
        ray: run on a Ray cluster: True starts one on this machine, a string is the address of a cluster whose machines
            share `out` and the data (see `cluster`). Training speed is then measured on this machine, at the end.
        detect: difference in the unit of the score as shown, such as percentage points: seeds are added, from three
            up to `seeds`, until a difference of that size would be shown with a probability of 80 % for each choice.
            Only the spread between seeds decides, never the differences themselves. None trains all seeds.
        rivals: kinds of cost ("params", "macs", "latency"): for each of them and every choice of gates, also train a
            plain network, wider or narrower, that costs the same, and judge the gates against it.
        corruptions: at the end, also score all networks on corrupted validation images.
        track: see `train`; with `ray` only "tensorboard".

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: fewer than one seed or no gates are given, a kind of cost is unknown, `out` contains runs of another
            recipe or files of a newer format, or another process is using `out`.
        TrainingError: all choices fail, or a file cannot be written.
    """
    _validation.check_integer_at_least(1, seeds=seeds)
    if detect is not None:
        _validation.check_number_between(1e-9, 1e9, detect=detect)
    if not gates:
        raise errors.InvalidValueError("no gates to compare; give at least one choice, for example none,gct.")
    costs = parse_costs(",".join(rivals))
    if ray is not False and tuple(track) != DEFAULT:
        raise errors.InvalidValueError(
            f"track is {','.join(track)}, but the tasks of a Ray cluster write TensorBoard files only. Omit it."
        )
    out, progress, processes = Path(out), progress or Progress(quiet=True), Processes()
    if ray is not False and processes.count > 1:
        raise errors.InvalidValueError(
            f"{processes.count} processes cannot share one Ray cluster. Start compare --ray in a single process."
        )
    if holds_run(out):
        raise errors.InvalidValueError(f"{out} is the folder of a single run. Choose another --out.")
    progress.quiet = progress.quiet or not processes.is_main
    names = [format_gates(choice) for choice in gates]
    asked = _Asked(recipe.resolved(), names, seeds, out, workers, ray, detect, costs, corruptions, track)
    with processes.holding_folder(out):
        return _Comparison(asked, progress, processes).run()


@dataclass(frozen=True)
class _Asked:
    """The arguments of `compare`, checked."""

    recipe: Recipe
    names: list[str]
    seeds: int
    out: Path
    workers: int | None
    ray: bool | str
    detect: float | None
    costs: Sequence[str]
    corruptions: bool
    track: Sequence[str]


class _Comparison:
    """All runs of a comparison, whose folder is locked.

    Attributes:
        runs: run folders of each row (a choice of gates or a rival), by seed.
        recipes: recipe of each run folder.
    """

    def __init__(self, asked: _Asked, progress: Progress, processes: Processes) -> None:
        check_format_not_newer(asked.out / RESULTS, SCHEMA, "schema")
        self.asked, self.progress, self.processes = asked, progress, processes
        recipe, out = asked.recipe, asked.out
        processes.on_main_process(partial(check_folder_writable, out))
        self.dataset = _checked_dataset(recipe, asked.names, asked.seeds, out)
        self.task = recipe.task_spec.make(self.dataset.classes)
        if asked.corruptions:
            check_corruptible(self.task, self.dataset.channels)
        if processes.is_main:
            remove_leftovers(out)
        if self.dataset.division is not None:
            processes.on_main_process(partial(self.dataset.division.record, out))
        self.rivals = self._chosen_rivals()
        self.rows = RivalRows.among(asked.names, self.rivals, recipe.model)
        self.runs = {name: [run_folder(out, name, seed) for seed in range(asked.seeds)] for name in self.rows.rows}
        self.recipes = {
            folder: recipe.of_comparison(name, seed) if name in asked.names else of_rival(recipe, name, seed)
            for name, folders in self.runs.items()
            for seed, folder in enumerate(folders)
        }
        self.constant = constant_answer(self.task, self.dataset)

    def run(self) -> dict[str, Any]:
        """Train all runs, and return and write the results."""
        asked, score = self.asked, self.task.score
        if asked.ray is False:
            self.say_facts()
        seeds, failed = add_seeds(
            self.train_seeds,
            self.scores,
            baseline_of(self.runs),
            most=asked.seeds,
            detect=None if asked.detect is None else asked.detect / score.factor,
            at_once=asked.ray is not False,
        )
        if len(failed) == len(self.runs):
            raise errors.TrainingError("; ".join(f"{name}, {reason}" for name, reason in failed.items()))
        if not self.processes.is_main:
            self.processes.all_gather_object("waits for the results")
            return read_json(asked.out / RESULTS)
        self.progress.say("measuring latency")
        finished = {name: folders[:seeds] for name, folders in self.runs.items() if name not in failed}
        results = self.results(finished, seeds, failed)
        if asked.corruptions:
            add_corruptions(results, finished, self.rows, score, self.progress)
        if self.processes.count == 1:  # several would train each step together
            self.progress.say("timing training steps")
            first = {name: self.recipes[folders[0]] for name, folders in finished.items()}
            _time_training(results, first, self.dataset)
        _save(results, asked.out)
        self.processes.all_gather_object("has written the results")
        return results

    def say_facts(self) -> None:
        """Show what the training begins with."""
        for line in first_facts(self.dataset, self.asked.recipe.sections().optimisation, self.constant):
            self.progress.say(line)

    def train_seeds(self, chosen: range) -> dict[str, str]:
        """Train the runs of the chosen seeds, and return the reason of failure by row."""
        of_seeds = {name: [folders[seed] for seed in chosen] for name, folders in self.runs.items()}
        asked, progress = self.asked, self.progress
        left = [folder for folders in of_seeds.values() for folder in folders if not is_finished(folder)]
        if left:
            _check_same_processes(filter(is_finished, self.recipes), self.processes.count)
        if asked.ray is False:
            return _train_in_turn(of_seeds, self.recipes, self.dataset, asked.workers or 0, progress, asked.track)
        address = asked.ray if isinstance(asked.ray, str) else None
        on_connected = self.say_facts if chosen.start == 0 else lambda: None
        return _train_on_cluster(of_seeds, self.recipes, address, asked.workers, progress, on_connected)

    def scores(self, chosen: range, failed: Mapping[str, str]) -> dict[str, list[float]]:
        """Return the scores of the chosen seeds of all gates that have not failed, the same in all processes."""
        found: dict[str, list[float]] = {}
        if self.processes.is_main:
            for name in self.asked.names:
                if name not in failed:
                    found[name] = [read_metrics(self.runs[name][seed])[self.task.score.name] for seed in chosen]
        return self.processes.all_gather_object(found)[0]

    def results(self, finished: dict[str, list[Path]], seeds: int, failed: dict[str, str]) -> dict[str, Any]:
        """Return the content of `results.json`, without what is measured on the networks."""
        asked, dataset = self.asked, self.dataset
        stopped = asked.detect is not None
        results = {
            **results_of_runs(asked.recipe, self.task, finished, seeds, dataset.division, self.rows, stopped=stopped),
            "failed": failed,
            "notes": all_notes(dataset),
        }
        if stopped:
            results["detect"] = {"points": asked.detect, "most_seeds": asked.seeds}
        if self.rivals:
            results["chosen_rivals"] = [dataclasses.asdict(rival) for rival in self.rivals]
        images = len(dataset.train)
        results["training"] = {
            "command": _command(asked, self.processes.count),
            "images": images,
            "steps": asked.recipe.epochs * (images // min(images, asked.recipe.batch_size)),
            "outputs": list(dataset.classes),
        }
        if self.constant is not None:
            results["constant"] = dataclasses.asdict(self.constant)
        results["summary"] = [*answer(results), *missing_rivals(results)]
        return results

    def _chosen_rivals(self) -> list[Rival]:
        """Return the rivals of all gates; process 0 chooses them, and all processes read them."""
        asked = self.asked
        if not asked.costs:
            return []
        choose = partial(choose_rivals, asked.recipe, asked.names, asked.costs, self.dataset, asked.out)
        self.processes.on_main_process(partial(choose, self.progress.say))
        return choose()


def _command(asked: _Asked, processes: int) -> str:
    """Return the command of a comparison, with all options of the recipe that are not defaults."""
    recipe = asked.recipe
    given = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name not in {"gate", "seed"} and getattr(recipe, field.name) != field.default
    }
    given |= {
        "gates": ",".join(asked.names),
        "seeds": asked.seeds,
        "rivals": ",".join(asked.costs) or None,
        "detect": asked.detect,
        "corruptions": asked.corruptions or None,
        "ray": asked.ray or None,
        "workers": None if asked.workers == usable_processors() else asked.workers,
        "track": None if tuple(asked.track) == DEFAULT else format_trackers(asked.track),
        "out": asked.out,
    }
    flags = (
        (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
        for name, value in given.items()
        if value is not None
    )
    launcher = [] if processes == 1 else ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return shlex.join([*launcher, "gatewise", "compare", *(word for flag in flags for word in flag)])


def _train_in_turn(
    runs: dict[str, list[Path]],
    recipes: dict[Path, Recipe],
    dataset: Dataset | SegmentationDataset,
    workers: int,
    progress: Progress,
    track: Sequence[str],
) -> dict[str, str]:
    """Train runs one after another, and return the reason of failure by choice."""
    failed: dict[str, str] = {}
    for folders in zip(*runs.values(), strict=True):  # seed by seed: a slowdown of the machine affects all gates
        for name, folder in zip(runs, folders, strict=True):
            run = recipes[folder]
            number = run.seed * len(runs) + list(runs).index(name) + 1
            progress.say(f"run {number} of {len(recipes)}: {name}, seed {run.seed}")
            try:
                options: Any = {"dataset": dataset, "workers": workers, "progress": progress, "track": track}
                train(run, folder, resume=True, **options)
            except Interrupted as error:
                raise Interrupted(error.stopped, error.signal, "continue with the same command") from None
            except errors.UnsavedError:  # the next run would fail for the same reason
                raise
            except errors.TrainingError as error:
                failed.setdefault(name, f"seed {run.seed}: {error}")
                progress.say(f"{name} failed, {failed[name]}")
    return failed


def _train_on_cluster(
    runs: dict[str, list[Path]],
    recipes: dict[Path, Recipe],
    address: str | None,
    workers: int | None,
    progress: Progress,
    on_connected: Callable[[], None],
) -> dict[str, str]:
    """Train runs on a Ray cluster, ordered by seed, and return the reason of failure by choice."""
    ordered = {folder: recipes[folder] for folders in zip(*runs.values(), strict=True) for folder in folders}
    reasons = train_on_cluster(ordered, address, workers=workers, progress=progress, on_connected=on_connected)
    names = {folder: name for name, folders in runs.items() for folder in folders}
    return {names[folder]: f"seed {recipes[folder].seed}: {reason}" for folder, reason in reversed(reasons.items())}


def _time_training(results: dict[str, Any], recipes: dict[str, Recipe], dataset: Dataset | SegmentationDataset) -> None:
    """Replace the runs' own training speeds, measured one after another or on several machines, by comparable ones."""
    speeds = training_speeds(recipes, dataset)
    results["training_speed"] = "steps timed in turn on one machine after all trainings"
    for variant in results["variants"]:
        variant["training_images_per_second"] = [speeds[variant["gates"]]]


def _save(results: dict[str, Any], out: Path) -> None:
    try:
        write_json(out / RESULTS, results)
        write_report(results, out)
    except errors.StorageError as error:
        raise errors.UnsavedError(f"{error} All runs are saved; then run the same command again.") from error


def _checked_dataset(recipe: Recipe, names: list[str], seeds: int, out: Path) -> Dataset | SegmentationDataset:
    """Return the images; raise on everything that can be checked before training starts."""
    recipes = [recipe.of_comparison(name, seed) for name in names for seed in range(seeds)]
    for field, unused in (("gate_epochs", 0), ("dense_epochs", None), ("gater_init", None)):
        if getattr(recipe, field) and all(getattr(run, field) == unused for run in recipes):
            raise errors.InvalidValueError(
                f"{field} is {getattr(recipe, field)!r}, but none of {','.join(names)} uses it. Omit it."
            )
    others = {rival.network for rival in recorded_rivals(out)[0]} - {recipe.model}
    for file in sorted((out / "runs").glob(f"*/seed_*/{RECIPE}")):
        if not holds_run(file.parent):
            continue
        check_run_format(file.parent)
        existing = Recipe.load(file)
        base = dataclasses.replace(recipe, model=existing.model) if existing.model in others else recipe
        existing.check_same_recipe(base.of_comparison(existing.gate, existing.seed), file.parent)
    dataset = recipe.source.load()
    for name in names:
        network = build_model(recipe.of_comparison(name, 0), dataset)
        if name == "none":
            _check_plain(network, recipe.model)
    for run in recipes:
        for weights in filter(None, (run.initial_weights, run.initial_gater, run.teacher_folder)):
            _validation.check_path_exists("weights", weights)
    return dataset


def _check_plain(network: nn.Module, model: str) -> None:
    """Raise if the network without gates has gates of its own, which would make it a baseline with gates."""
    found = sorted({type(part).__name__ for part in (network, *gates_in(network).values()) if isinstance(part, _GATED)})
    if found:
        raise errors.InvalidValueError(
            f"none would not be plain: the network {model} has gates of its own ({', '.join(found)}). Name a network "
            f"without gates, and move them into --gates."
        )


def _check_same_processes(finished: Iterable[Path], count: int) -> None:
    """Raise if finished runs were trained by another number of processes than `count`, which trains the others."""
    for folder in finished:
        if (other := processes_of(read_metrics(folder))) != count:
            with_them = f"with torchrun --nproc-per-node {other}" if other > 1 else "without torchrun"
            raise errors.InvalidValueError(
                f"{folder} was trained by {other} process{'es' * (other > 1)}, the other runs would be trained by "
                f"{count}, which changes what BatchNorm learns. Start the command {with_them}, or choose another --out."
            )
