"""Scores that were made elsewhere, and the content of `results.json` from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.comparison.answer import answer
from gatewise.comparison.given_score import GivenScore
from gatewise.comparison.rival_rows import RivalRows
from gatewise.comparison.verdicts import baseline_of, difference_row, judged, level_of, score_row
from gatewise.core import _validation, statistics
from gatewise.core.wording import joined
from gatewise.training import Score
from gatewise.training.tasks.base import Task

SCHEMA = 1


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
        rivals: which variants are rivals of others; None for a table.
    """

    score: Score
    scores: dict[str, dict[str, float | None]]
    images: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])
    task: Task | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])
    rivals: RivalRows | None = None


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
    of_rivals = rivals.entries(scores, rivals.judge(scores, given.score, baseline, verdicts, stopped=stopped))
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
    """Return the seeds that all variants have, and a note about those that some lack."""
    shared = [seed for seed in next(iter(scores.values())) if all(seed in of_seeds for of_seeds in scores.values())]
    if not shared:
        listed = "; ".join(f"{name} has {', '.join(of_seeds)}" for name, of_seeds in scores.items())
        raise errors.InvalidValueError(
            f"no seed is there for all variants, and differences are between trainings of one seed: {listed}. Number "
            f"the trainings of each variant alike."
        )
    lacking: dict[tuple[str, ...], list[str]] = {}
    for seed in dict.fromkeys(seed for of_seeds in scores.values() for seed in of_seeds if seed not in shared):
        names = tuple(name for name, of_seeds in scores.items() if seed not in of_seeds)
        lacking.setdefault(names, []).append(seed)
    notes = [
        f"left out: {'seed' if len(seeds) == 1 else 'seeds'} {joined(seeds)}, which {joined(names)} "
        f"{'lacks' if len(names) == 1 else 'lack'}"
        for names, seeds in lacking.items()
    ]
    return shared, notes


def _shared_images(given: Given, finished: Mapping[str, Any], seeds: Sequence[str]) -> dict[str, Tensor]:
    """Return what each image contributes, (seeds, images, ...), by variant; {} if not all trainings say so."""
    if not all(seed in given.images.get(name, {}) for name in finished for seed in seeds):
        return {}
    return {name: torch.stack([given.images[name][seed] for seed in seeds]) for name in finished}
