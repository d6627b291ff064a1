"""The content of a comparison's `results.json`, from its finished runs."""

import dataclasses
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.analysis.robustness import score_corruptions, summarised
from gatewise.comparison.cluster import check_trained_alike
from gatewise.comparison.rival_rows import RivalRows
from gatewise.comparison.verdicts import baseline_of, difference_row, judged, level_of, score_row
from gatewise.core import statistics
from gatewise.core.run_files import PREDICTIONS
from gatewise.data.division import Division
from gatewise.graph import measure
from gatewise.training import Progress, Recipe, Score, Task
from gatewise.training.results import on_test_images, trained_as
from gatewise.training.runs import Run

SCHEMA = 1
_ROUNDS = 15


def results_of_runs(
    recipe: Recipe,
    task: Task,
    runs: dict[str, list[Path]],
    seeds: int,
    division: Division | None,
    rivals: RivalRows,
    *,
    stopped: bool,
) -> dict[str, Any]:
    """Return the content of `results.json`, from finished runs."""
    baseline = baseline_of(runs)
    opened = {name: [Run.open(folder) for folder in folders] for name, folders in runs.items()}
    metrics = {name: [run.metrics for run in of_seeds] for name, of_seeds in opened.items()}
    check_trained_alike({
        trained_as(run): f"{trained_as(run)} ({name}, seed {seed})"
        for name, of_seeds in metrics.items()
        for seed, run in enumerate(of_seeds)
    })
    score = task.score.name
    scores = {name: [run[score] for run in of_seeds] for name, of_seeds in metrics.items()}
    images = {name: torch.stack([_by_image(task, run) for run in of_seeds]) for name, of_seeds in opened.items()}
    rivals = rivals.of_finished(runs)
    verdicts = judged({name: scores[name] for name in (baseline, *rivals.gates)}, baseline, task.score, stopped=stopped)
    of_rivals = rivals.entries(scores, rivals.judge(scores, task.score, baseline, verdicts, stopped=stopped))
    costs = _costs({name: of_seeds[0] for name, of_seeds in opened.items()}, task.latency_batch)
    variants = []
    for name, of_seeds in opened.items():
        variant = _row(task, name, of_seeds, images[name], costs[name])
        if name != baseline:
            difference = statistics.paired_difference(scores[name], scores[baseline])
            by_image = task.bootstrap(images[name], images[baseline], None if division is None else division.groups)
            variant["difference"] = difference_row(difference, task.score)
            variant["difference_over_images"] = difference_row(by_image, task.score)
            variant.update(verdicts.get(name, {}))
        variants.append(variant | of_rivals[name])
    return {
        "schema": SCHEMA,
        "recipe": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in {"gate", "seed"}},
        "seeds": seeds,
        "baseline": baseline,
        "precision": metrics[baseline][0]["precision"],
        "score": score,
        "level": level_of(stopped=stopped),
        "validation_images": images[baseline].shape[1],
        **(
            {}
            if division is None or not division.recorded
            else {"split": division.details, "leaks": division.leaks_by_split}
        ),
        "environment": metrics[baseline][0]["environment"],
        "latency": f"float32, eager, median of {_ROUNDS} interleaved rounds; results.json has quartiles",
        "variants": variants,
        **_calibration(task, opened),
    }


def add_corruptions(
    results: dict[str, Any], runs: dict[str, list[Path]], rivals: RivalRows, score: Score, progress: Progress
) -> None:
    """Add scores on corrupted images to each row, and their differences to the baseline, paired by seed."""
    opened = {name: [Run.open(folder) for folder in folders] for name, folders in runs.items()}
    found = iter(score_corruptions([run for of_seeds in opened.values() for run in of_seeds], progress))
    by_row = {name: [next(found) for _ in of_seeds] for name, of_seeds in opened.items()}
    means = {name: [summarised(one)["mean"] for one in of_seeds] for name, of_seeds in by_row.items()}
    differences = {
        name: statistics.paired_difference(means[name], means[results["baseline"]])
        for name in means
        if name != results["baseline"]
    }
    of_gates = [name for name in differences if name in rivals.gates]
    corrected = dict(zip(of_gates, statistics.holm([differences[name].p for name in of_gates]), strict=True))
    for variant in results["variants"]:
        name, of_seeds = variant["gates"], by_row[variant["gates"]]
        scores = {
            corruption: [fmean(values) for values in zip(*(one["scores"][corruption] for one in of_seeds), strict=True)]
            for corruption in of_seeds[0]["scores"]
        }
        row: dict[str, Any] = {
            "images": of_seeds[0]["images"],
            "clean": fmean(one["clean"] for one in of_seeds),
            "scores": scores,
            **summarised({"scores": scores}),
            **score_row(score, means[name]),
        }
        if name in differences:
            row["difference"] = dataclasses.asdict(differences[name])
        if name in corrected:
            row["p_holm"] = corrected[name]
            row["verdict"] = statistics.verdict(
                differences[name],
                corrected[name],
                higher_is_better=score.higher_is_better,
                alpha=results["level"],
            )
        variant["corruptions"] = row


def _row(task: Task, name: str, runs: list[Run], images: Tensor, costs: dict[str, Any]) -> dict[str, Any]:
    """Return scores and costs of the trainings of one variant, a run per seed, without its differences to others."""
    metrics = [run.metrics for run in runs]
    score = task.score.name
    row: dict[str, Any] = {
        "gates": name,
        score: score_row(task.score, [run[score] for run in metrics], images),
        "parameters": metrics[0]["parameters"],
        **costs,
        **_work(metrics),
        "training_images_per_second": [run["images_per_second"] for run in metrics],
        **_peak_memory(metrics),
        "scores": _further_scores(task, metrics),
        "curves": [[epoch[f"validation_{score}"] for epoch in run.log] for run in runs],
    }
    if (tests := on_test_images(score, metrics)) is not None:
        row["test"] = score_row(task.score, tests)
    return row


def _further_scores(task: Task, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and interval over seeds of the task's scores other than the main one, and scores by class."""
    found: dict[str, Any] = {
        score.name: score_row(score, [run[score.name] for run in runs])
        for score in task.scores
        if score != task.score and all(run.get(score.name) is not None for run in runs)
    }
    for name in (key for key in runs[0] if key.endswith("_by_class")):
        classes = [key for key in runs[0][name] if all(run[name].get(key) is not None for run in runs)]
        found[name] = {key: fmean(run[name][key] for run in runs) for key in classes}
    return found


def _peak_memory(runs: list[dict[str, Any]]) -> dict[str, int]:
    """Return the largest memory of the trainings in bytes, which only GPUs count."""
    return {"peak_memory": max(run["peak_memory"] for run in runs)} if all("peak_memory" in run for run in runs) else {}


def _work(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return executed MACs and open fraction of GaterNets on the validation images; {} for other networks."""
    if not all({"executed_macs", "open_fraction"} <= run.keys() for run in runs):
        return {}
    return {
        "macs": statistics.mean_interval([run["executed_macs"] for run in runs]).mean,
        "open_fraction": [run["open_fraction"] for run in runs],
        **({"budget": runs[0]["budget"]} if "budget" in runs[0] else {}),
    }


def _costs(runs: dict[str, Run], images: int) -> dict[str, dict[str, Any]]:
    """Measure MACs, and latency for one image and for a batch of `images`; the networks are timed in turn."""
    for run in runs.values():
        run.check_image_entries()
    nets = {name: run.model for name, run in runs.items()}
    first = next(iter(runs.values()))
    image = torch.randn(1, first.config["in_chans"], *first.config["image_size"], device=first.device)
    costs: dict[str, dict[str, Any]] = {
        name: {"macs": measure.macs_per_sample(net, image), "latency_ms": {}} for name, net in nets.items()
    }
    for batch in (1, images):
        example = image.repeat(batch, 1, 1, 1)
        for name, latency in measure.inference_latency(nets, example, rounds=_ROUNDS).items():
            costs[name]["latency_ms"][str(batch)] = {
                "median": 1e3 * latency.median_s,
                "low": 1e3 * latency.low_s,
                "high": 1e3 * latency.high_s,
            }
    return costs


def _calibration(task: Task, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Return bins of confidences of each network, of the first seed, or {} for tasks without."""
    bins = {name: task.calibration(of_seeds[0].predictions) for name, of_seeds in runs.items()}
    if any(found is None for found in bins.values()):
        return {}
    return {"calibration": {name: found.nan_to_num().tolist() for name, found in bins.items() if found is not None}}


def _by_image(task: Task, run: Run) -> Tensor:
    """Return what each validation image contributes to the score."""
    try:
        return task.by_image(run.predictions)
    except KeyError as error:
        raise errors.DataError(f"{run.folder / PREDICTIONS} has no {error}. Train the run again.") from None
