"""A run as teacher: of the same task, with numbers in the unit of the labels."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from gatewise.data import Dataset, Images
from gatewise.errors import DataError
from gatewise.training.tasks.multilabel import MultiLabel
from gatewise.training.tasks.regress import Regression
from gatewise.training.teacher import load_teacher

ZERO, ONE = torch.zeros(1), torch.ones(1)


def with_labels(labels: Tensor) -> Dataset:
    images = Images(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    return Dataset("memory", ("age",), images, images, 1, False)


def run_of(monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
    """Make every run folder one whose network returns the pixel of an image."""
    found = {"classes": ["age"], "mean": [0.0], "std": [1.0], **config}
    monkeypatch.setattr("gatewise.training.teacher.load_model", lambda _: (nn.Flatten(), found))


def test_teacher_of_numbers_on_another_scale_teaches_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its standardised outputs were taken for those of the training: another function was taught."""
    run_of(monkeypatch, task="regress", targets={"mean": [50.0], "std": [10.0]})
    dataset, task = with_labels(torch.tensor([[0.0], [1.0], [2.0]])), Regression(["age"])
    task.prepare(dataset)
    taught = load_teacher("run", task, dataset, ZERO, ONE)(torch.tensor([-1.0, 0.0, 2.0]).reshape(3, 1, 1, 1))
    assert_close(task.readable(taught), torch.tensor([[40.0], [50.0], [70.0]]))


def test_teacher_of_another_task_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same class names it was accepted, and logits of a softmax were read as those of sigmoids."""
    run_of(monkeypatch)
    with pytest.raises(DataError, match="trained with task classify, this training has task multilabel"):
        load_teacher("run", MultiLabel(["age"]), with_labels(torch.ones(3, 1)), ZERO, ONE)
