"""The results of a training: weights, predictions and, as the last file, the metrics."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from gatewise.core.files import write_atomically
from gatewise.core.run_files import PREDICTIONS
from gatewise.gates.spec import ModelSpec
from gatewise.graph.measure import environment, macs_per_sample, parameter_count
from gatewise.models.serialization import save_model, write_metrics
from gatewise.training.evaluation import Evaluation
from gatewise.training.learner import Learner
from gatewise.training.run_log import RunLog


def write_results(
    out: Path,
    learner: Learner,
    evaluation: Evaluation,
    log: RunLog,
    spec: ModelSpec,
    details: Mapping[str, Any],
    test: Evaluation | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the results of a finished training; return the metrics.

    Args:
        out: the run folder.
        learner: the trained network.
        evaluation: its evaluation.
        log: the log.
        spec: specification of the network.
        details: further entries of `config.json`, in_chans and image_size among them.
        test: its evaluation on the test images, if there are any.
        before: scores of the initial weights, if there are any.
    """
    trained, count = f"train_{learner.task.hit.name}", learner.processes.count
    metrics = {
        "score": learner.task.score.name,
        **evaluation.results,
        **({} if test is None else {"test": {**test.results, "images": test.images}}),
        **({} if before is None else {"before": before}),
        trained: log.rows[-1][trained],
        **({} if (budget := getattr(learner.plain_model, "budget", None)) is None else {"budget": budget}),
        "epochs": len(log.rows),
        "parameters": parameter_count(learner.plain_model),
        **({} if "executed_macs" in evaluation.work else _macs(learner, details)),
        "images_per_second": statistics.median(row["images_per_second"] for row in log.rows),
        **_peak_memory(learner),
        "precision": learner.precision,
        "environment": environment(learner.accelerator.device) | ({"processes": str(count)} if count > 1 else {}),
    }
    if learner.processes.is_main:
        save_model(out, learner.best_model, spec, details)
        write_atomically(out / PREDICTIONS, save_tensors(evaluation.record))
        metrics = write_metrics(out, metrics)
    learner.accelerator.wait_for_everyone()
    return metrics


def _macs(learner: Learner, details: Mapping[str, Any]) -> dict[str, float]:
    """Return the multiply-adds per image of a network without a gater; {} if they cannot be counted."""
    image = torch.zeros(1, details["in_chans"], *details["image_size"], device=learner.accelerator.device)
    try:
        return {"executed_macs": float(macs_per_sample(learner.best_model, image))}
    except Exception:  # of a user's network; a training does not fail for a count
        return {}


def trained_as(metrics: Mapping[str, Any]) -> str:
    """Return how a run was trained, apart from its recipe: runs that differ in it cannot be compared.

    >>> trained_as({"precision": "fp32", "environment": {"processes": "2"}}), trained_as({"precision": "fp32"})
    ('fp32, 2 processes', 'fp32')
    """
    count = processes_of(metrics)
    return f"{metrics['precision']}, {count} processes" if count > 1 else metrics["precision"]


def on_test_images(score: str, metrics: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Return a score of each run on its test images, or None if it is not known, or not defined, for one."""
    found = [run.get("test", {}).get(score) for run in metrics]
    return None if None in found else found


def processes_of(metrics: Mapping[str, Any]) -> int:
    """Return the number of processes that trained a run."""
    return int(metrics.get("environment", {}).get("processes", 1))


def _peak_memory(learner: Learner) -> dict[str, int]:
    """Return the largest memory of a training on a GPU in bytes; a CPU does not count it."""
    device = learner.accelerator.device
    return {"peak_memory": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
