"""Read what is kept of finished runs: metrics, logs and predictions, not their weights."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from gatewise import errors
from gatewise.comparison.cluster import check_trained_alike
from gatewise.comparison.given_results import Given
from gatewise.comparison.rival_rows import RivalRows
from gatewise.comparison.rivals import COSTS, RIVALS, Rival, recorded_rivals
from gatewise.comparison.verdicts import score_row
from gatewise.core.run_files import CONFIG, LOG, METRICS, PREDICTIONS, RECIPE, folder_name
from gatewise.core.wording import joined
from gatewise.models.serialization import read_config, read_metrics, read_tensors
from gatewise.training import Recipe, Score, score_named
from gatewise.training.results import on_test_images, trained_as
from gatewise.training.run_folder import read_log
from gatewise.training.runs import stored_task
from gatewise.training.tasks.base import ACCURACY, Task
from gatewise.training.tasks.classify import Classification


def of_runs(folder: Path) -> Given:
    """Read finished runs, VARIANT/seed_N at any depth below a folder; a recipe names the gates of a variant.

    Raises:
        DataError: there are no finished runs, or they have several scores.
        InvalidValueError: they were trained in different precisions, or by different numbers of processes, or runs of
            one seed have different validation images.
    """
    files = sorted(folder.rglob(f"seed_*/{METRICS}"), key=lambda file: (str(file.parents[1]), _seed(file)))
    if not files:
        raise errors.DataError(f"{folder} has no finished runs; expected VARIANT/seed_N/{METRICS} below it.")
    metrics = {file.parent: read_metrics(file.parent) for file in files}
    chosen, plain = recorded_rivals(folder if (folder / RIVALS).exists() else folder.parent)
    names = _variants(list(metrics), [name for rival in chosen for name in (rival.gates, rival.network)])
    check_trained_alike({trained_as(of): f"{trained_as(of)} ({names[run]})" for run, of in metrics.items()})
    kinds = {of.get("score", ACCURACY.name) for of in metrics.values()}
    if len(kinds) > 1:
        raise errors.DataError(
            f"{folder}: the runs are judged by {', '.join(sorted(kinds))}. Judge those of one score."
        )
    given = Given(score_named(kinds.pop()), {})
    for run, of in metrics.items():
        name, seed = names[run], str(_seed(run / METRICS))
        if seed in given.scores.setdefault(name, {}):
            raise errors.DataError(f"{folder} has two runs of {name}, seed {seed}, one of them {run}. Keep one.")
        given.scores[name][seed] = of[given.score.name]
    shared = set[str].intersection(*map(set, given.scores.values()))
    compared = {run: of for run, of in metrics.items() if str(_seed(run / METRICS)) in shared}
    for run, of in compared.items():
        row = given.rows.setdefault(names[run], {"parameters": of["parameters"], "curves": []})
        row["curves"].append(_curve(run, f"validation_{given.score.name}"))
    _add_tests(given, {run: (names[run], of) for run, of in compared.items()})
    given.notes += _differing_recipes(metrics) + _unfinished(folder, metrics)
    records = {run: read_tensors(run / PREDICTIONS) if (run / PREDICTIONS).exists() else {} for run in names}
    alike = _check_same_images(names, records)
    _add_images(given, names, records, alike=alike)
    _add_rivals(given, chosen, plain)
    return given


def _curve(run: Path, entry: str) -> list[float]:
    """Return the values of an entry of the log, one for each epoch."""
    rows = read_log(run)
    for number, row in enumerate(rows, 1):
        if entry not in row:
            raise errors.DataError(f"{run / LOG}, line {number} has no {entry}. Restore the file, or remove the run.")
    return [row[entry] for row in rows]


def _seed(file: Path) -> int:
    number = file.parent.name.removeprefix("seed_")
    if not number.isdecimal():
        raise errors.DataError(f"{file.parent}: expected a folder seed_N with a number N. Rename it.")
    return int(number)


def _variants(runs: Sequence[Path], known: Iterable[str]) -> dict[Path, str]:
    """Return the name of each run's network: its gates or, for another network than that of most runs, this network.

    Without a recipe, it is the known name whose folder is that above the seeds, or else the name of this folder.
    """
    recipes = {run: Recipe.load(run / RECIPE) for run in runs if (run / RECIPE).exists()}
    usual = Counter(recipe.model for recipe in recipes.values()).most_common(1)
    of_folder = {folder_name(name): name for name in known}
    names = {run: of_folder.get(run.parent.name, run.parent.name) for run in runs}
    for run, recipe in recipes.items():
        other = recipe.model if recipe.gate == "none" else f"{recipe.model}+{recipe.gate}"
        names[run] = recipe.gate if recipe.model == usual[0][0] else other
    return names


def _add_rivals(given: Given, chosen: Sequence[Rival], plain: str) -> None:
    """Say which variants are rivals of others, of those that were chosen for a comparison, and which have no runs."""
    networks = {rival.network for rival in chosen} - {plain}
    chosen = [rival for rival in chosen if rival.gates in given.scores]
    given.rivals = RivalRows.among([name for name in given.scores if name not in networks], chosen, plain)
    if chosen:
        given.details["chosen_rivals"] = [dataclasses.asdict(rival) for rival in chosen]
    given.notes += [
        f"rival of {name} by {COSTS[cost]} has no finished runs: {row}"
        for name, rows in given.rivals.of.items()
        for cost, row in rows.items()
        if row not in given.scores
    ]


def _add_tests(given: Given, runs: Mapping[Path, tuple[str, Mapping[str, Any]]]) -> None:
    """Add the scores on the test images to the rows of variants of which all runs have them."""
    for name in given.rows:
        of_seeds = [metrics for variant, metrics in runs.values() if variant == name]
        if (tests := on_test_images(given.score.name, of_seeds)) is not None:
            given.rows[name]["test"] = score_row(given.score, tests)


def _differing_recipes(runs: Mapping[Path, Any]) -> list[str]:
    """Return a warning if trainings differ in more than gates and seed."""
    recipes = [Recipe.load(run / RECIPE) for run in runs if (run / RECIPE).exists()]
    varying = [
        name
        for name in (vars(recipes[0]) if recipes else ())
        if name not in {"model", "gate", "seed", "gate_epochs", "gater_init"}
        and len({getattr(r, name) for r in recipes}) > 1
    ]
    return [f"warning: the runs differ in more than gates and seed: {', '.join(varying)}"] if varying else []


def _unfinished(folder: Path, finished: Collection[Path]) -> list[str]:
    """Return a note about the runs that have begun and are not finished."""
    begun = sorted({log.parent for log in folder.rglob(f"seed_*/{LOG}")}.difference(finished))
    return [f"left out, since they have no {METRICS}: {joined(list(map(str, begun)))}"] if begun else []


def _check_same_images(runs: Mapping[Path, str], records: Mapping[Path, Mapping[str, Tensor]]) -> bool:
    """Raise if runs of one seed have other validation images; return whether runs of all seeds have the same.

    Compared is what is kept of the runs: the division of the files in `config.json`, number and labels of the images in
    the predictions.
    """
    first: dict[tuple[int, str], tuple[str, Path]] = {}
    for run in runs:
        for what, found in _facts_of_images(run, records[run]).items():
            there, other = first.setdefault((_seed(run / METRICS), what), (found, run))
            if there != found:
                raise errors.InvalidValueError(
                    f"{other} and {run} have other {what}, so their difference is not one of gates. Train runs of one "
                    f"seed with the same data, --validation-split and --split-seed, or judge them apart."
                )
    facts = {(what, found) for (_, what), (found, _) in first.items()}
    return len(facts) == len({what for what, _ in facts})


def _facts_of_images(run: Path, record: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what is known of the validation images of a run, the same for the same images."""
    split: dict[str, Any] = (read_config(run).get("split") or {}) if (run / CONFIG).exists() else {}
    facts: dict[str, str] = (
        {"divisions into training and validation images": split["sha256"]} if "sha256" in split else {}
    )
    if record:
        facts["numbers of validation images"] = str(len(next(iter(record.values()))))
    if "labels" in record:
        facts["labels of validation images"] = sha256(save_tensors({"labels": record["labels"]})).hexdigest()
    return facts


def _add_images(
    given: Given, runs: Mapping[Path, str], records: Mapping[Path, Mapping[str, Tensor]], *, alike: bool
) -> None:
    """Add what each image contributes to the score, if all runs have kept their predictions for the same images."""
    if not all(records.values()):
        return
    if not alike:
        given.notes.append("the seeds have different validation images, so there are no differences over images")
        return
    task: Task | None = None
    for run, name in runs.items():
        record = records[run]
        task = task or _task(run, given.score, record)
        if task is None:
            given.notes.append(f"differences over images need {CONFIG} of the runs, which names the classes")
            return
        given.images.setdefault(name, {})[str(_seed(run / METRICS))] = task.by_image(record)
    given.task = task


def _task(run: Path, score: Score, record: Mapping[str, Tensor]) -> Task | None:
    """Return the task of a run; without `config.json`, that of one class per image if the predictions are such."""
    if (run / CONFIG).exists():
        task = stored_task(run / CONFIG, read_config(run))
    elif score in Classification.scores and {"predictions", "labels"} <= record.keys():
        count = 1 + int(max(record["predictions"].max(), record["labels"].max()))
        task = Classification([str(number) for number in range(count)])
    else:
        return None
    task.metric = score
    return task
