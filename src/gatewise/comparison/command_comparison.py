"""Compare what any command trains: every label with every seed, resumable, on this machine or a Ray cluster."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

from gatewise import errors
from gatewise.comparison.cluster import train_on_cluster
from gatewise.comparison.given_results import SCHEMA, Given, results_of
from gatewise.comparison.given_score import GivenScore
from gatewise.comparison.report import write_report
from gatewise.comparison.score_files import ScoreFile
from gatewise.comparison.script_runs import ScriptRun, check_command, output_of
from gatewise.comparison.seeds import add_seeds
from gatewise.core import _validation
from gatewise.core.files import check_folder_writable, check_format_not_newer, held, write_json
from gatewise.core.run_files import METRICS, RESULTS, folder_name, run_folder
from gatewise.core.wording import counted
from gatewise.training import Progress

Runs = Mapping[str, Sequence[Path]]


def compare_command(
    command: str,
    labels: Sequence[str],
    seeds: int,
    out: str | Path,
    *,
    score_from: str,
    baseline: str | None = None,
    lower_is_better: bool = False,
    unit: str = "",
    detect: float | None = None,
    ray: bool | str = False,
    progress: Progress | None = None,
    written_as: str | None = None,
) -> dict[str, Any]:
    """Run a command for every label and seed, read a score of each, compare the scores, and write a report.

    Args:
        command: a command with {gates}, {seed} and {out}, the label, the seed and an empty folder of each training.
        labels: what {gates} stands for, one for each variant.
        seeds: number of seeds, counted from 0; the most with `detect`.
        out: folder of the comparison; trainings that have succeeded there are not repeated.
        score_from: FILE:COLUMN:last, see `ScoreFile`.
        baseline: label to which the others are compared; None takes none, or the first.
        lower_is_better: whether lower scores are better.
        unit: unit of the scores; with "%" they lie between 0 and 100.
        detect: see `compare`.
        ray: see `compare`.
        progress: where to show progress; None shows nothing.
        written_as: the whole command line, for the report.

    Returns:
        The content of `results.json`, as of `compare`.

    Raises:
        InvalidValueError: an argument has an invalid form, or `out` has runs of another command.
        DataError: a training has no score file, several, or no such score in it.
        TrainingError: the trainings of all labels failed.
    """
    _validation.check_integer_at_least(1, seeds=seeds)
    if detect is not None:
        _validation.check_number_between(1e-9, 1e9, detect=detect)
    where, names = ScoreFile.parse(score_from), _checked_labels(labels)
    check_command(command, names)
    base = baseline or ("none" if "none" in names else names[0])
    _validation.check_one_of("baseline", base, names)
    out, progress = Path(out), progress or Progress(quiet=True)
    check_format_not_newer(out / RESULTS, SCHEMA, "schema")
    check_folder_writable(out)
    score = GivenScore(title=where.entry, given_unit=unit, higher_is_better=not lower_is_better)
    runs = {name: [run_folder(out, name, seed) for seed in range(seeds)] for name in names}
    scripts = {
        folder: ScriptRun(command, name, seed) for name, folders in runs.items() for seed, folder in enumerate(folders)
    }
    for folder, script in scripts.items():
        script.is_finished(folder)  # raises if it is another command's
    if trained := sorted(out.glob(f"runs/*/seed_*/{METRICS}")):
        raise errors.InvalidValueError(
            f"{out} contains runs of gatewise, such as {trained[0].parent}. Choose another --out."
        )
    with held(out):
        used, failed, found = _train(runs, scripts, where, score, base, detect, ray, progress)
        given = Given(score, {name: {str(seed): found[folders[seed]] for seed in range(used)}
                              for name, folders in runs.items() if name not in failed})  # fmt: skip
        if base in failed or not given.scores:
            raise errors.TrainingError("; ".join(f"{name}, {reason}" for name, reason in failed.items()))
        if where.which == "last":
            of_used = [folder for name in given.scores for folder in runs[name][:used]]
            given.notes += _empty_ends(where, of_used)
        given.details = {"failed": failed, "training": {"command": written_as} if written_as else {}}
        if detect is not None:
            given.details["detect"] = {"points": detect, "most_seeds": seeds}
        results = results_of(given, base, command, stopped=detect is not None)
        write_json(out / RESULTS, results)
        write_report(results, out)
    return results


def _checked_labels(labels: Sequence[str]) -> list[str]:
    names = [label.strip() for label in labels if label.strip()]
    if len({folder_name(name) for name in names}) < len(names) or not names:
        raise errors.InvalidValueError(f"expected different labels as gates, got {', '.join(labels) or 'none'}.")
    return names


def _train(
    runs: Runs,
    scripts: Mapping[Path, ScriptRun],
    where: ScoreFile,
    score: GivenScore,
    baseline: str,
    detect: float | None,
    ray: bool | str,
    progress: Progress,
) -> tuple[int, dict[str, str], dict[Path, float]]:
    """Run the command until there are enough seeds.

    Returns:
        The number of seeds, the reasons of failed labels, and the score of each training.
    """
    found: dict[Path, float] = {}

    def train_seeds(chosen: range) -> dict[str, str]:
        todo = {folders[seed]: scripts[folders[seed]] for seed in chosen for folders in runs.values()}
        address = ray if isinstance(ray, str) else None
        reasons = train_on_cluster(todo, address, progress=progress) if ray is not False else {}
        failed: dict[str, str] = {}
        for folder, script in todo.items():
            reason = reasons.get(folder) if ray is not False else _failure(script, folder, progress)
            if reason is None:
                reason = _read_score(where, folder, score, found)
            if reason is not None:
                failed.setdefault(script.gate, f"seed {script.seed}: {reason}")
        return failed

    def scores(chosen: range, failed: Mapping[str, str]) -> dict[str, list[float]]:
        return {name: [found[of[seed]] for seed in chosen] for name, of in runs.items() if name not in failed}

    most = len(next(iter(runs.values())))
    used, failed = add_seeds(train_seeds, scores, baseline, most=most, detect=detect, at_once=ray is not False)
    return used, failed, found


def _failure(script: ScriptRun, folder: Path, progress: Progress) -> str | None:
    """Run the command of one training on this machine, and return why it failed, or None."""
    if not script.is_finished(folder):
        progress.say(f"{script.gate}, seed {script.seed}: {folder / 'log.txt'}")
    try:
        script.train(folder)
    except errors.UnsavedError:  # the next one would fail for the same reason
        raise
    except errors.TrainingError as error:
        progress.say(f"{script.gate}, seed {script.seed} failed: {error}")
        return str(error)
    return None


def _read_score(where: ScoreFile, folder: Path, score: GivenScore, found: dict[Path, float]) -> str | None:
    """Read the score of a finished training into `found`, and return why it has none, or None.

    Raises:
        DataError: no training has a score so far, so --score-from may be wrong; or a score is no percentage.
    """
    try:
        value = where.read(output_of(folder), higher_is_better=score.higher_is_better)
    except errors.DataError as error:
        reason = f"{error} To train it again, delete {folder}."
        if not found:
            raise errors.DataError(reason) from None
        return reason
    if not math.isfinite(value):
        return f"{where.entry} is {value}"
    score.check(value, str(folder))
    found[folder] = value
    return None


def _empty_ends(where: ScoreFile, folders: Sequence[Path]) -> list[str]:
    """Return a note for each training that has not as many empty rows at the end as most have."""
    empty = {folder: where.empty_rows(output_of(folder)) for folder in folders}
    usual = mode(empty.values())
    return [
        f"{folder.parent.name}/{folder.name} has {counted(rows, 'row')} without {where.entry} at the end, most "
        f"trainings have {usual}; its score may be that of an earlier epoch"
        for folder, rows in empty.items()
        if rows != usual
    ]
