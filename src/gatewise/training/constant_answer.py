"""The score of the same answer for every image, which a network must beat."""

from dataclasses import dataclass
from typing import Any

import torch

from gatewise.data import Dataset, SegmentationDataset
from gatewise.training.tasks import Task


@dataclass(frozen=True)
class ConstantAnswer:
    """An answer that is the same for all images.

    Attributes:
        answer: the answer in words.
        score: its score on the validation images, or None if that is not defined.
        sentence: both in one line, with advice if the labels suggest any.
    """

    answer: str
    score: float | None
    sentence: str


def constant_answer(task: Task, dataset: Dataset | SegmentationDataset) -> ConstantAnswer | None:
    """Return the best constant answer to a task, found from the training labels, or None if the task has none."""
    found = task.constant(dataset)
    if found is None:
        return None
    answer, logits = found
    labels: Any = dataset.validation.labels  # type: ignore[union-attr]  # pyright: ignore
    results = task.new_results(torch.device("cpu"))
    results.update(logits.expand(len(labels), -1), labels)
    score = float(results.results()[task.score.name])
    advice = task.advice(dataset)
    sentence = f"always {answer} scores {task.score.text(score)} {task.score.title}{advice and f'; {advice}'}"
    return ConstantAnswer(answer, score if score == score else None, sentence)
