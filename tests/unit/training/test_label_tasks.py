"""Several classes or numbers per image, and classes of uneven size: losses, scores, bootstraps, constant answers."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torch.testing import assert_close
from torchmetrics import CalibrationError

from gatewise.analysis.score_figures import reliability
from gatewise.core.statistics import redrawn_bootstrap
from gatewise.data import Dataset, Images
from gatewise.errors import DataError, InvalidValueError
from gatewise.training import Recipe, Score, Task
from gatewise.training.constant_answer import constant_answer
from gatewise.training.tasks.classify import (
    ACCURACY,
    BALANCED_ACCURACY,
    MACRO_F1,
    Classification,
    calibration_error,
    class_score,
)
from gatewise.training.tasks.multilabel import AUC, MAP, MICRO_F1, MultiLabel, label_score
from gatewise.training.tasks.regress import MAE, R2, RMSE, Regression, number_score

CPU = torch.device("cpu")


def drawn(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return how often each of `images` is drawn, (1, images), and their indices, repeated so often."""
    counts = torch.randint(0, 3, (images,), generator=torch.Generator().manual_seed(seed))
    return counts.double().unsqueeze(0), torch.arange(images).repeat_interleave(counts)


def scores_of(task: Task, logits: Tensor, labels: Tensor, parts: int = 3) -> dict[str, Any]:
    results = task.new_results(CPU)
    for some, own in zip(logits.chunk(parts), labels.chunk(parts), strict=True):
        results.update(some, own)
    return results.results()


def dataset_of(labels: Tensor, validation: Tensor | None = None) -> Dataset:
    def images(of: Tensor) -> Images:
        return Images(torch.zeros(len(of), 1, 8, 8, dtype=torch.uint8), of)

    return Dataset(
        "memory", ("a", "b", "c"), images(labels), images(labels if validation is None else validation), 1, False
    )


# Classes of uneven size


def test_balanced_scores_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (60,), generator=generator)
    logits = torch.randn(60, 4, generator=generator)
    found = scores_of(Classification("abcd"), logits, labels)
    predicted = logits.argmax(1)
    kept = labels.unique().tolist()
    recalls = sk.recall_score(labels, predicted, labels=kept, average=None)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, labels=kept, average="macro"))
    assert found["recall_by_class"] == {**dict(zip("abc", map(pytest.approx, recalls), strict=True)), "d": None}


def test_calibration_error_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (200,), generator=generator)
    logits = 2 * torch.randn(200, 4, generator=generator)
    expected = CalibrationError("multiclass", num_classes=4, n_bins=15)(logits.softmax(1), labels)
    assert scores_of(Classification("abcd"), logits, labels)["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_bins_of_confidence_hold_all_images_and_give_the_error() -> None:
    task = Recipe(metric="ece").task_spec.make("abcd")
    generator = torch.Generator().manual_seed(4)
    results = task.new_results(CPU)
    labels = torch.randint(0, 4, (100,), generator=generator)
    results.update(2 * torch.randn(100, 4, generator=generator), labels)
    record = results.record()
    bins = task.calibration(record)
    assert bins is not None
    assert bins[:, 0].sum() == 100
    filled = bins[bins[:, 0] > 0]
    lower = torch.arange(15)[bins[:, 0] > 0] / 15
    assert ((lower <= filled[:, 1]) & (filled[:, 1] <= lower + 1 / 15)).all()
    error = (filled[:, 0] * (filled[:, 1] - filled[:, 2]).abs()).sum() / 100
    assert float(error) == pytest.approx(results.results()["ece"])
    counts, index = drawn(100)
    once = torch.ones(1, len(index), dtype=torch.float64)
    pairs = task.by_image(record)
    assert_close(calibration_error(pairs, counts), calibration_error(pairs[index], once))
    assert task.bootstrap(pairs[None], pairs[None]).mean == 0
    assert not task.score.higher_is_better
    drawing = reliability({"net": bins})
    assert drawing.tips["series-0"] == f"net: expected calibration error {100 * float(error):.2f} %"
    assert len(drawing.table.rows) == len(filled)


@pytest.mark.parametrize("score", [BALANCED_ACCURACY, MACRO_F1], ids=lambda score: score.name)
def test_resample_of_classes_is_the_score_of_drawn_images(score: Score) -> None:
    pairs = torch.randint(0, 3, (40, 2), generator=torch.Generator().manual_seed(2))
    counts, index = drawn(40)
    once = torch.ones(1, len(index), dtype=torch.float64)
    assert_close(class_score(score, 3, pairs, counts), class_score(score, 3, pairs[index], once))


def test_class_weights_make_each_class_count_alike() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2)
    task = Classification("ab", class_weights="balanced")
    task.prepare(dataset_of(labels))
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert_close(task.loss(logits, labels), (each[:6].mean() + each[6:].mean()) / 2)
    assert_close(
        task.loss(logits[:2], labels[:2]), 8 / (2 * 6) * each[:2].mean(), msg="weights do not depend on a batch"
    )
    with pytest.raises(InvalidValueError, match="class_weights of task classify 'median_frequency'"):
        Recipe(class_weights="median_frequency")


@pytest.mark.situation("labels: one class is much larger than another")
def test_constant_answer_names_largest_class_and_metric() -> None:
    dataset = dataset_of(torch.tensor([1] * 30 + [0] * 3 + [2] * 5), torch.tensor([1, 1, 1, 0]))
    found = constant_answer(Recipe().task_spec.make("abc"), dataset)
    assert found is not None
    assert found.sentence.startswith(
        "always 'b' scores 75.00 % accuracy; --metric balanced_accuracy judges all classes"
    )
    judged = constant_answer(Recipe(metric="balanced_accuracy").task_spec.make("abc"), dataset)
    assert judged is not None
    assert judged.sentence == "always 'b' scores 50.00 % balanced accuracy"


def test_metric_chooses_score_and_its_bootstrap() -> None:
    task = Recipe(metric="balanced_accuracy").task_spec.make("abc")
    assert task.score is BALANCED_ACCURACY
    assert Recipe().task_spec.make("abc").score is ACCURACY
    with pytest.raises(InvalidValueError, match="metric of task classify 'mae'; expected one of 'accuracy'"):
        Recipe(metric="mae")
    labels = torch.tensor([0, 0, 0, 1])
    record = [{"predictions": torch.tensor(p), "labels": labels} for p in ([0, 0, 0, 0], [0, 0, 1, 1])]
    one, other = (task.by_image(each).unsqueeze(0) for each in record)
    assert task.bootstrap(other, one).mean == pytest.approx((2 / 3 + 1) / 2 - 1 / 2)


# Several classes per image


def labelled(images: int = 50, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits, with many equal ones, and labels, of which the last class has none."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, classes, generator=generator) < 0.4).float()
    labels[:, -1] = 0
    return (torch.randn(images, classes, generator=generator) + labels).mul(2).round() / 2, labels


@pytest.mark.situation("labels: a class has no positive validation image")
def test_scores_of_labels_agree_with_scikit_learn() -> None:
    logits, labels = labelled()
    found = scores_of(MultiLabel("abcd"), logits, labels)
    with_positives = slice(0, 3)
    precision = sk.average_precision_score(labels[:, with_positives], logits[:, with_positives], average=None)
    areas = sk.roc_auc_score(labels[:, with_positives], logits[:, with_positives], average=None)
    assert found["average_precision_by_class"] == {
        **dict(zip("abc", map(pytest.approx, precision), strict=True)),
        "d": None,
    }
    assert found["map"] == pytest.approx(np.mean(precision))
    assert found["auc"] == pytest.approx(np.mean(areas))
    predicted = logits > 0
    assert found["micro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(
        sk.f1_score(labels[:, with_positives], predicted[:, with_positives], average="macro")
    )
    assert found["loss"] == pytest.approx(float(MultiLabel("abcd").loss(logits, labels)))


@pytest.mark.parametrize("score", MultiLabel.scores, ids=lambda score: score.name)
def test_resample_of_labels_is_the_score_of_drawn_images(score: Score) -> None:
    values = torch.stack(labelled(), 2)
    counts, index = drawn(50)
    once = torch.ones(1, len(index), dtype=torch.float64)
    assert_close(label_score(score, values, counts), label_score(score, values[index], once))


def test_positive_images_are_weighted_by_their_rarity() -> None:
    labels = torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * 3)
    task = MultiLabel("ab", class_weights="balanced")
    task.prepare(dataset_of(labels))
    assert task.weights is not None
    assert task.weights.tolist() == pytest.approx([3, 1 / 3])
    logits = torch.tensor([[0.5, -1.0]])
    expected = 3 * torch.nn.functional.softplus(torch.tensor(-0.5)) + torch.nn.functional.softplus(torch.tensor(-1.0))
    assert_close(task.loss(logits, torch.tensor([[1.0, 0.0]])), expected / 2)


def test_mixup_mixes_labels_as_images() -> None:
    task = MultiLabel("ab", mixup=1.0)
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    task.prepare(dataset_of(labels))
    assert task.mix is not None
    random.seed(0)
    np.random.seed(0)
    images = labels.reshape(4, 2, 1, 1).clone()  # so that the images show how they are mixed
    mixed, targets = task.mix(images, labels)
    assert_close(mixed[:, :, 0, 0], targets)
    assert not torch.equal(targets, labels)


def test_labels_are_predicted_with_scores() -> None:
    task = MultiLabel("abc")
    found = task.prediction(torch.tensor([-2.0, 0.0, 3.0]), None, top_k=2, out=None)
    assert [label["class"] for label in found["labels"]] == ["c", "b"]
    assert found["labels"][1]["score"] == 0.5
    assert task.describe(found) == "c 95.3 %, b 50.0 %"
    none = task.prediction(torch.tensor([-2.0, -1.0, -3.0]), None, top_k=2, out=None)
    assert task.describe(none) == "no label of 50 % or more; most probable b 26.9 %"
    assert task.hits(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [
        pytest.approx(2 / 3)
    ]


# Numbers


def test_scores_of_numbers_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(4)
    labels = 1000 + 5 * torch.randn(40, 2, generator=generator)
    task = Regression(["x", "y"])
    task.prepare(dataset_of(labels))
    logits = (labels - task.mean) / task.std + 0.3 * torch.randn(40, 2, generator=generator)
    found, predicted = scores_of(task, logits, labels), task.predicted(logits)
    errors = (predicted - labels).abs().mean(0)
    assert found["mae"] == pytest.approx(float(errors.mean()), rel=1e-4)
    assert found["mae_by_number"] == {
        "x": pytest.approx(float(errors[0]), rel=1e-4),
        "y": pytest.approx(float(errors[1]), rel=1e-4),
    }
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, predicted), rel=1e-4)
    assert found["r2"] == pytest.approx(sk.r2_score(labels, predicted), rel=1e-3)
    assert_close(task.hits(logits, labels).mean(), errors.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("score", Regression.scores, ids=lambda score: score.name)
def test_resample_of_numbers_is_the_score_of_drawn_images(score: Score) -> None:
    values = torch.randn(30, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    counts, index = drawn(30)
    once = torch.ones(1, len(index), dtype=torch.float64)
    assert_close(number_score(score, values, counts), number_score(score, values[index], once))


@pytest.mark.situation("labels: numbers far from 0")
def test_network_learns_standardised_numbers_and_predicts_them_in_their_unit() -> None:
    labels = torch.tensor([[5000.0], [5200.0], [5400.0]])
    task = Regression(["price"])
    task.prepare(dataset_of(labels))
    assert float(task.loss(torch.tensor([[0.0]]), torch.tensor([[5200.0]]))) == pytest.approx(0, abs=1e-6)
    assert task.prediction(torch.tensor([0.0]), None, top_k=5, out=None) == {"value": pytest.approx(5200)}
    again = Regression(["price"])
    again.restore(task.stored())
    assert_close(again.readable(torch.tensor([[1.0]])), task.readable(torch.tensor([[1.0]])))
    both = Regression(["x", "y"])
    assert both.prediction(torch.tensor([1.0, 2.0]), None, top_k=5, out=None) == {"value": {"x": 1.0, "y": 2.0}}
    assert both.describe({"value": {"x": 1.0, "y": 2.0}}) == "x 1, y 2"


def test_numbers_have_ranges_around_their_mean() -> None:
    task = Regression(["age", "size"])
    task.mean, task.std = torch.tensor([40.0, 2.0]), torch.tensor([10.0, 0.5])
    assert task.image_groups[:5] == ("age below 30", "age 30 to 40", "age 40 to 50", "age above 50", "size below 1.5")
    found = task.groups_of(torch.tensor([[29.0, 2.0], [30.0, 9.0], [50.0, 1.0]]))
    assert found.tolist() == [[1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0]]


def test_numbers_that_are_all_equal_are_rejected() -> None:
    with pytest.raises(DataError, match="all training images have the same a, 3"):
        Regression("a").prepare(dataset_of(torch.full((4, 1), 3.0)))


def test_constant_number_is_the_best_for_its_score() -> None:
    dataset = dataset_of(torch.tensor([[0.0], [1.0], [8.0]]))
    median = constant_answer(Recipe(task="regress").task_spec.make(["v"]), dataset)
    mean = constant_answer(Recipe(task="regress", metric="rmse").task_spec.make(["v"]), dataset)
    assert median is not None
    assert mean is not None
    assert median.sentence == "always the median of the labels, 1, scores 2.667 mean absolute error"
    assert mean.score == pytest.approx(np.std([0, 1, 8]))


def test_errors_are_better_if_lower() -> None:
    assert {score.name: score.higher_is_better for score in Regression.scores} == {
        "mae": False,
        "rmse": False,
        "r2": True,
    }


# The bootstrap


def test_bootstrap_of_a_score_redraws_images_or_groups() -> None:
    generator = torch.Generator().manual_seed(6)
    values, baseline = (torch.randn(2, 40, 1, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    found = redrawn_bootstrap(partial(number_score, RMSE), values, baseline, resamples=999)
    once = torch.ones(1, 40, dtype=torch.float64)
    means = [np.mean([float(number_score(RMSE, seed, once)) for seed in side]) for side in (values, baseline)]
    assert found.mean == pytest.approx(means[0] - means[1])
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    doubled, other = (side.repeat(1, 2, 1, 1) for side in (values, baseline))
    groups = torch.arange(40).repeat(2)
    grouped = redrawn_bootstrap(partial(number_score, RMSE), doubled, other, groups, resamples=999)
    assert (grouped.low, grouped.high) == (pytest.approx(found.low), pytest.approx(found.high))


@pytest.mark.parametrize(("task", "score"), [("multilabel", AUC), ("multilabel", MICRO_F1), ("regress", R2)])
def test_every_metric_has_a_bootstrap(task: str, score: Score) -> None:
    made = Recipe(task=task, metric=score.name).task_spec.make("abc")
    assert made.score is score
    generator = torch.Generator().manual_seed(7)
    labels = (torch.rand(20, 3, generator=generator) < 0.5).float()
    records = []
    for noise in (0.1, 2.0):
        results = made.new_results(CPU)
        results.update(labels - 0.5 + noise * torch.randn(20, 3, generator=generator), labels)
        records.append(made.by_image(results.record()).unsqueeze(0))
    assert made.bootstrap(*records).mean > 0


def test_scores_are_described() -> None:
    assert (MAP.text(0.5), MAE.text(0.5), R2.better_is) == ("50.00 %", "0.500", "above")
