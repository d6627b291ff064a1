"""Recipes and fixtures for comparisons that take a moment."""

import dataclasses
from collections.abc import Iterator

import pytest

from gatewise.comparison import run as comparing
from gatewise.comparison import run_results
from gatewise.data import Dataset, Images, load_dataset
from gatewise.training import Recipe

RECIPE = Recipe(data="digits", epochs=2, batch_size=128, lr=0.05, precision="fp32")
QUICK = dataclasses.replace(RECIPE, epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def few_rounds() -> Iterator[None]:
    """Measure latency as briefly as possible: no test depends on speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_results, "_ROUNDS", 2)
        original = run_results.measure.inference_latency
        patch.setattr(
            run_results.measure, "inference_latency", lambda *a, **k: original(*a, **{**k, "seconds_per_turn": 1e-3})
        )
        patch.setattr(comparing, "training_speeds", lambda recipes, _: dict.fromkeys(recipes, 100.0))
        yield


def first_digits(count: int = 64) -> Dataset:
    """Return the first digits of each split."""
    digits = load_dataset("digits")
    parts = (Images(part.pixels[:count], part.labels[:count]) for part in (digits.train, digits.validation))
    return Dataset("digits", digits.classes, *parts, padding=1, flip=False)


@pytest.fixture
def few_digits(few_rounds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on a few digits, which is fast."""
    small = first_digits()
    monkeypatch.setattr("gatewise.data.load.load_dataset", lambda *_: small)
