"""The score of the same answer for every image, which a network must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise.data import Dataset, SegmentationDataset
from gatewise.training.tasks import Task


@dataclass(frozen=True)
class ConstantAnswer:
    """An answer that is the same for all images.

    Attributes:
        answer: the answer in words.
        score: its score on the images that are scored, or None if that is not defined.
        sentence: both in one line, with advice if the labels suggest any.
    """

    answer: str
    score: float | None
    sentence: str


def constant_answer(
    task: Task, dataset: Dataset | SegmentationDataset, labels: Tensor | None = None
) -> ConstantAnswer | None:
    """Return the best constant answer to a task, found from the training labels, or None if the task has none.

    Args:
        task: what is answered, and how answers are scored.
        dataset: its training labels give the answer.
        labels: labels by which the answer is scored; None takes those of the validation images.
    """
    found = task.constant(dataset)
    if found is None:
        return None
    answer, logits = found
    if labels is None:
        labels = dataset.validation.labels  # type: ignore[union-attr]  # pyright: ignore
    assert labels is not None
    results = task.new_results(torch.device("cpu"))
    results.update(logits.expand(len(labels), -1), labels)
    score = float(results.results()[task.score.name])
    advice = task.advice(dataset)
    sentence = f"always {answer} scores {task.score.text(score)} {task.score.title}{advice and f'; {advice}'}"
    return ConstantAnswer(answer, score if score == score else None, sentence)
