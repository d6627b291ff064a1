"""Tasks: their registry, their options in text and recipe, their scores, and the task that a file names."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gatewise.data import Dataset, SegmentationDataset
from gatewise.errors import DataError, InvalidValueError
from gatewise.gates.spec import ModelSpec
from gatewise.training import Recipe, Score, TaskSpec, register_task, score_named, task_class, task_names
from gatewise.training.options import Sections
from gatewise.training.runs import stored_task
from gatewise.training.tasks import main_score, registry
from gatewise.training.tasks.classify import Classification
from support.small_runs import DATASET


class Ranked(Classification):
    """Classes with an order, for the tests."""

    summary = "one rank per image"
    scores = (Score("distance", "mean distance", is_fraction=False, higher_is_better=False),)

    def __init__(self, classes: Any, *, width: float = 2.0, label_smoothing: float = 0.0) -> None:
        super().__init__(classes, label_smoothing=label_smoothing)
        self.width = width


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register `Ranked` as "ranked" during a test."""
    monkeypatch.setattr(registry, "_registry", copy.copy(registry._registry))
    register_task("ranked")(Ranked)


@pytest.mark.usefixtures("ranked")
def test_registered_task_is_listed_with_its_score() -> None:
    assert task_names() == ("classify", "multilabel", "ranked", "regress", "segment")
    assert task_class("ranked") is Ranked
    assert score_named("distance").title == "mean distance"
    assert registry.summaries() == (
        "classify (one class per image), multilabel (any number of classes per image), ranked (one rank per image), "
        "regress (numbers per image) or segment (one class per pixel)"
    )


@pytest.mark.usefixtures("ranked")
def test_name_is_registered_once() -> None:
    with pytest.raises(InvalidValueError, match="task 'ranked' is already registered, by Ranked"):
        register_task("ranked")
    with pytest.raises(InvalidValueError, match="letters, digits and '_', got 'a-b'"):
        register_task("a-b")


def test_score_of_another_meaning_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", copy.copy(registry._registry))
    other = type("Other", (Ranked,), {"scores": (Score("accuracy", "share of ranks"),)})
    with pytest.raises(InvalidValueError, match="score 'accuracy' is already Score"):
        register_task("other")(other)
    assert "other" not in task_names()


@pytest.mark.usefixtures("ranked")
def test_derived_task_with_a_score_of_its_own_is_drawn_by_image() -> None:
    values, baseline = torch.tensor([[0.0, 1.0, 2.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0, 2.0]])
    found = TaskSpec.parse("ranked").make("abc").bootstrap(values, baseline)
    assert found.mean == pytest.approx(-0.5)
    assert found.low == pytest.approx(-1.0)


@pytest.mark.usefixtures("ranked")
def test_own_options_are_in_text_and_others_in_recipe() -> None:
    task: Any = Recipe(task="ranked:width=3", label_smoothing=0.1).task_spec.make("abc")
    assert (task.name, task.width, task.label_smoothing, task.classes) == ("ranked", 3, 0.1, ("a", "b", "c"))
    with pytest.raises(InvalidValueError, match=r"mixup is 0\.2, but task ranked does not use it"):
        Recipe(task="ranked", mixup=0.2)
    with pytest.raises(InvalidValueError, match="label_smoothing is an option of the recipe, not of task"):
        Recipe(task="ranked:label_smoothing=0.1")
    with pytest.raises(InvalidValueError, match=r"unknown option of task 'ranked' 'widht'.*Did you mean 'width'\?"):
        Recipe(task="ranked:widht=3")


@pytest.mark.usefixtures("ranked")
def test_stored_task_has_all_its_own_options() -> None:
    assert Recipe(task="ranked").task_in_full == "ranked:width=2.0"
    assert Recipe(task="ranked:width=3").task_in_full == "ranked:width=3"
    assert Recipe().task_in_full == "classify"


def test_sections_have_all_fields_of_recipe_once() -> None:
    recipe = Recipe(data="cifar10", lr=0.3, mixup=0.1, gate="gct", augmentation="none")
    sections = recipe.sections()
    assert isinstance(sections, Sections)
    flat = [vars(getattr(sections, field.name)) for field in dataclasses.fields(sections)]
    assert {name: value for section in flat for name, value in section.items()} == dataclasses.asdict(recipe)
    assert sum(map(len, flat)) == len(dataclasses.fields(Recipe))
    assert (sections.data.data, sections.optimisation.lr, sections.task.mixup) == ("cifar10", 0.3, 0.1)


def test_documentation_of_recipe_has_help_of_every_field() -> None:
    lines = [line.strip() for line in (Recipe.__doc__ or "").splitlines()]
    for field in dataclasses.fields(Recipe):
        assert f"{field.name}: {field.metadata['help']}." in lines


def test_score_is_shown_in_its_unit() -> None:
    accuracy, distance = score_named("accuracy"), Ranked.scores[0]
    assert (accuracy.text(0.12345), accuracy.number(0.01, "+"), accuracy.label) == ("12.35 %", "+1.00", "accuracy (%)")
    assert (distance.text(1.23456), distance.number(-0.5, "+"), distance.label) == ("1.235", "-0.500", "mean distance")
    assert (accuracy.better_is, distance.better_is) == ("above", "below")


def test_main_score_of_log_row_comes_after_loss() -> None:
    row = {"epoch": 1, "validation_loss": 1.0, "validation_miou": 0.5, "validation_iou": 0.1}
    assert main_score(row).name == "miou"


def test_binary_segmenter_is_scored_by_iou_of_its_class() -> None:
    spec = TaskSpec.parse("segment")
    assert [spec.make(classes).score.name for classes in (["car"], ["car", "road"])] == ["iou", "miou"]


def test_backbone_means_segmenter_for_masks_only() -> None:
    spec = ModelSpec.parse("resnet18:output_stride=8+gct")
    assert task_class("classify").network(spec) == spec
    found = task_class("segment").network(spec)
    assert str(found) == "segmenter:backbone=resnet18,output_stride=8+gct"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "detect"}, "config.json: unknown task 'detect'"),
        ({"task": "classify:width=2"}, "config.json: .*unknown option of task 'classify' 'width'|takes no option"),
        ({"num_classes": 4}, "config.json: task classify has 3 outputs for 3 classes, but num_classes is 4"),
    ],
)
def test_damaged_task_in_file_is_rejected_with_its_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stored_task(Path("config.json"), {"classes": ["a", "b", "c"], **config})


def test_file_without_task_is_of_classification() -> None:
    task = stored_task(Path("config.json"), {"classes": ["a", "b"], "num_classes": 2})
    assert (task.name, task.outputs, task.shape((8, 8))) == ("classify", 2, (1, 2))


class Prepared(Classification):
    """Counts how often it is prepared, and on what."""

    seen: list[Dataset | SegmentationDataset]

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:
        self.seen = [*getattr(self, "seen", []), dataset]


def test_building_prepares_task_once_with_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewise.training.from_recipe import build

    monkeypatch.setitem(registry._registry, "classify", Prepared)
    task = build(Recipe(data="memory", batch_size=16).plan(), DATASET).task
    assert isinstance(task, Prepared)
    assert task.seen == [DATASET]


def test_hits_are_correct_predictions() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert Classification("ab").hits(logits, torch.tensor([1, 1])).tolist() == [True, False]
    record = {"predictions": torch.tensor([1, 0]), "labels": torch.tensor([1, 1])}
    assert Classification("ab").by_image(record).tolist() == [True, False]
