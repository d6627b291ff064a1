"""Judge results that were made elsewhere: a table of scores, or a folder of finished runs without their weights."""

# pyright: basic

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from gatewise import errors
from gatewise.comparison.answer import answer
from gatewise.comparison.cluster import check_trained_alike
from gatewise.comparison.given_score import NAME, GivenScore
from gatewise.comparison.report import write_report
from gatewise.comparison.rivals import COSTS, RIVALS, Rival, RivalRows, recorded_rivals
from gatewise.comparison.verdicts import baseline_of, difference_row, judged, level_of, score_row
from gatewise.core import _validation, statistics
from gatewise.core.files import check_folder_writable, check_format_not_newer, write_json
from gatewise.core.run_files import CONFIG, METRICS, PREDICTIONS, RECIPE, RESULTS, folder_name
from gatewise.data.table_files import read_table
from gatewise.models.serialization import read_config, read_metrics, read_tensors
from gatewise.training import Recipe, Score, score_named
from gatewise.training.results import on_test_images, trained_as
from gatewise.training.run_folder import read_log
from gatewise.training.runs import stored_task
from gatewise.training.tasks.base import ACCURACY, Task
from gatewise.training.tasks.classify import Classification

SCHEMA = 1
_TRUTH: dict[str, Any] = {"true": 1, "false": 0}
_KEYS = ("variant", "seed", "image")


@dataclass
class Given:
    """Scores that were made elsewhere.

    Attributes:
        score: the score.
        scores: variant -> seed -> score; None where the training failed.
        images: variant -> seed -> what each image contributes to the score, (images, ...); {} if it is not known.
        task: the task, if the images are results of one.
        rows: variant -> further entries of its row in `results.json`.
        details: further entries of `results.json`.
        notes: what a reader should know.
        rivals: which variants are rivals of others; None if there are none.
    """

    score: Score
    scores: dict[str, dict[str, float | None]]
    images: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    task: Task | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rivals: RivalRows | None = None


def judge(
    source: str | Path,
    *,
    baseline: str | None = None,
    out: str | Path | None = None,
    lower_is_better: bool = False,
    unit: str = "",
) -> dict[str, Any]:
    """Judge results of trainings: intervals, differences to a baseline, verdicts, what could be seen, and a report.

    Args:
        source: a CSV, TSV, JSON lines or parquet table with columns variant, seed and score (or another name), a row
            for each training, or for each image with a column image too; or a folder of finished runs, VARIANT/seed_N
            with metrics.json and, if kept, log.jsonl, predictions.safetensors, config.json and recipe.yaml; the
            rivals.json of the comparison, in it or in the folder above, says which variants are rivals of others.
        baseline: variant to which the others are compared; None takes none, or the first.
        out: folder for results.json, results.md and report.html; None writes none.
        lower_is_better: whether lower scores of a table are better; a run knows that of its own.
        unit: unit of the scores of a table, for example ms; with "%" they lie between 0 and 100.

    Returns:
        The content of `results.json`, as of `compare`.

    Raises:
        DataError: the table or a file of a run cannot be used.
        InvalidValueError: there is no such baseline, no seed that all variants have, or `out` contains a comparison.
        StorageError: `out` cannot be written.
    """
    if out is not None:
        _check_may_write(Path(out))
    source = _validation.check_path_exists("results", source)
    if source.is_dir():
        if lower_is_better or unit:
            raise errors.InvalidValueError("the score of runs is known; omit the unit and lower-is-better.")
        given = of_runs(source)
    else:
        given = of_table(source, GivenScore(higher_is_better=not lower_is_better, given_unit=unit))
    results = results_of(given, baseline, source)
    if out is not None:
        write_json(Path(out) / RESULTS, results)
        write_report(results, Path(out))
    return results


def _check_may_write(out: Path) -> None:
    """Raise if results cannot be written to a folder, or would replace those of `compare`, which has measured more."""
    check_folder_writable(out)
    check_format_not_newer(out / RESULTS, SCHEMA, "schema")
    if (out / RESULTS).exists() and (out / "runs").is_dir():
        raise errors.InvalidValueError(f"{out} contains a comparison. Choose another --out.")


def results_of(given: Given, baseline: str | None, source: str | Path, *, stopped: bool = False) -> dict[str, Any]:
    """Return the content of `results.json`.

    Args:
        given: the scores.
        baseline: see `judge`.
        source: where the scores are from.
        stopped: see `judged`.
    """
    failed = {
        name: f"seed {seed}: no score"
        for name, of_seeds in given.scores.items()
        for seed, value in reversed(of_seeds.items())
        if value is None
    }
    finished: dict[str, Any] = {name: of for name, of in given.scores.items() if name not in failed}
    if not finished:
        raise errors.DataError(f"{source}: no variant has a score for each of its seeds. Train them again.")
    baseline = _baseline(baseline, given.scores, finished)
    rivals = RivalRows(list(finished), {}) if given.rivals is None else given.rivals.of_finished(finished)
    finished = {name: finished[name] for name in (baseline, *rivals.rows, *finished)}
    seeds, notes = _shared_seeds(finished)
    scores = {name: [of_seeds[seed] for seed in seeds] for name, of_seeds in finished.items()}
    images = _shared_images(given, finished, seeds)
    verdicts = judged(
        {name: scores[name] for name in (baseline, *rivals.gates)}, baseline, given.score, stopped=stopped
    )
    of_rivals = rivals.entries(scores, given.score, stopped=stopped)
    rows = []
    for name, values in scores.items():
        row = {"gates": name, given.score.name: score_row(given.score, values, images.get(name))}
        if name != baseline and images:
            bootstrap = statistics.image_bootstrap if given.task is None else given.task.bootstrap
            row["difference_over_images"] = difference_row(bootstrap(images[name], images[baseline]), given.score)
        rows.append({**row, **verdicts.get(name, {}), **of_rivals[name], **given.rows.get(name, {})})
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "source": str(source),
        "seeds": len(seeds),
        "baseline": baseline,
        "score": given.score.name,
        "level": level_of(stopped=stopped),
        "variants": rows,
        "failed": failed,
        "notes": [*given.notes, *notes],
        **given.details,
    }
    if isinstance(given.score, GivenScore):
        results["given_score"] = given.score.details()
    return {**results, "summary": answer(results)}


def _baseline(chosen: str | None, known: Mapping[str, Any], finished: Mapping[str, Any]) -> str:
    """Return the baseline: the chosen one, none, or the first."""
    name = baseline_of(known) if chosen is None else chosen
    _validation.check_one_of("baseline", name, known)
    if name not in finished:
        raise errors.DataError(
            f"the baseline {name} has a training without a score. Train it again, or choose another."
        )
    return name


def _shared_seeds(scores: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the seeds that all variants have, and a note about each variant that has others."""
    shared = [seed for seed in next(iter(scores.values())) if all(seed in of_seeds for of_seeds in scores.values())]
    if not shared:
        listed = "; ".join(f"{name} has {', '.join(of_seeds)}" for name, of_seeds in scores.items())
        raise errors.InvalidValueError(
            f"no seed is there for all variants, and differences are between trainings of one seed: {listed}. Number "
            f"the trainings of each variant alike."
        )
    notes = [
        f"seeds of {name} that others lack are left out: {', '.join(others)}"
        for name, of_seeds in scores.items()
        if (others := [seed for seed in of_seeds if seed not in shared])
    ]
    return shared, notes


def _shared_images(given: Given, finished: Mapping[str, Any], seeds: Sequence[str]) -> dict[str, Tensor]:
    """Return what each image contributes, (seeds, images, ...), by variant; {} if not all trainings say so."""
    if not all(seed in given.images.get(name, {}) for name in finished for seed in seeds):
        return {}
    return {name: torch.stack([given.images[name][seed] for seed in seeds]) for name in finished}


# Tables


def of_table(file: Path, score: GivenScore) -> Given:
    """Read a table with a row for each training, or for each image.

    Args:
        file: the table.
        score: unit and direction of the scores; the title is the name of their column.

    Raises:
        DataError: a column is missing, a cell is no number, or a row is there twice.
    """
    table = read_table(file)
    column = _score_column(file, list(table.columns))
    score = dataclasses.replace(score, title=column)
    by_image = "image" in table.columns
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for index in range(len(table)):
        variant, seed, image = (str(table.columns[key][index]) if key in table.columns else "" for key in _KEYS)
        of_seed = found.setdefault(variant, {}).setdefault(seed, {})
        if image in of_seed:
            what = f"{variant}, seed {seed}" + (f", image {image}" if by_image else "")
            raise errors.DataError(f"{table.row(index)}: {what} is there twice. Keep one row for each.")
        of_seed[image] = _number(table.row(index), column, table.columns[column][index], score.limits)
    if not by_image:
        return Given(score, {name: {seed: of[""] for seed, of in of_seeds.items()} for name, of_seeds in found.items()})
    names, images = _same_images(file, found), {}
    for variant, of_seeds in found.items():
        for seed, of_seed in of_seeds.items():
            values = [of_seed[name] for name in names]
            if None not in values:
                images.setdefault(variant, {})[seed] = torch.tensor(values, dtype=torch.float64)
    scores = {
        variant: {
            seed: float(images[variant][seed].mean()) if seed in images.get(variant, {}) else None for seed in of_seeds
        }
        for variant, of_seeds in found.items()
    }
    if all(((of == 0) | (of == 1)).all() for of_seeds in images.values() for of in of_seeds.values()):
        images = {name: {seed: of.bool() for seed, of in of_seeds.items()} for name, of_seeds in images.items()}
        if not score.given_unit:  # right or wrong: the mean is an accuracy, or a fraction of another kind
            share = dataclasses.replace(score, is_fraction=True)
            return Given(ACCURACY if score.higher_is_better else share, scores, images)
    return Given(score, scores, images)


def _score_column(file: Path, columns: Sequence[str]) -> str:
    """Return the name of the column with the scores: score, or the only one that is left."""
    for key in _KEYS[:2]:
        if key not in columns:
            raise errors.DataError(
                f"{file} has no column {key!r}; expected variant, seed, score and, for a row an image, image; its "
                f"columns are {_validation.listed(columns)}. Rename one."
            )
    others = [name for name in columns if name not in _KEYS]
    if NAME in others:
        return NAME
    if len(others) != 1:
        raise errors.DataError(
            f"{file}: which column is the score? Expected one in addition to variant, seed and image, got "
            f"{_validation.listed(others) or 'none'}. Call it score."
        )
    return others[0]


def _number(where: str, column: str, cell: Any, limits: tuple[float, float] | None) -> float | None:
    """Return the number in a cell; None for an empty cell and NaN, which are trainings that failed."""
    if cell is None or cell == "":
        return None
    try:
        value = float(_TRUTH.get(str(cell).lower(), cell))
    except (TypeError, ValueError):
        raise errors.DataError(
            f"{where}: expected a number as {column}, got {_validation.safe_repr(cell)}. Correct it, or leave the cell "
            f"empty for a training that failed."
        ) from None
    if not math.isfinite(value):
        return None
    if limits is not None and not limits[0] <= value <= limits[1]:
        raise errors.DataError(f"{where}: expected a {column} from {limits[0]:g} to {limits[1]:g} %, got {value:g}.")
    return value


def _same_images(file: Path, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the names of the images; raise if a training has others."""
    trainings = [(variant, seed, of) for variant, of_seeds in found.items() for seed, of in of_seeds.items()]
    names = list(trainings[0][2])
    for variant, seed, of in trainings:
        if odd := set(of) ^ set(names):
            raise errors.DataError(
                f"{file}: {variant}, seed {seed} has other images than {trainings[0][0]}, seed {trainings[0][1]}: "
                f"{len(odd)} are in one of both, such as {min(odd)}. Score the same images with all."
            )
    return names


# Finished runs


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
        row["curves"].append([epoch[f"validation_{given.score.name}"] for epoch in read_log(run)])
    _add_tests(given, {run: (names[run], of) for run, of in compared.items()})
    given.notes += _differing_recipes(metrics)
    records = {run: read_tensors(run / PREDICTIONS) if (run / PREDICTIONS).exists() else {} for run in names}
    alike = _check_same_images(names, records)
    _add_images(given, names, records, alike=alike)
    _add_rivals(given, chosen, plain)
    return given


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
    chosen = [rival for rival in chosen if rival.gates in given.scores]
    networks = {rival.network for rival in chosen} - {plain}
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
    split = (read_config(run).get("split") or {}) if (run / CONFIG).exists() else {}
    facts = {"divisions into training and validation images": split["sha256"]} if "sha256" in split else {}
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
