"""Seeds are added by their spread alone, and a comparison that is continued ends with the same number."""

from collections.abc import Mapping

import numpy as np
import pytest

from gatewise.comparison.seeds import add_seeds

RANDOM = np.random.default_rng(5).standard_normal((3, 40))
SCORES = {"none": RANDOM[0], "gct": RANDOM[1], "se": RANDOM[2]}


class Trainings:
    """Trainings whose scores are known, and some of which fail."""

    def __init__(self, failing: Mapping[str, int] | None = None) -> None:
        self.trained: list[range] = []
        self.failing = failing or {}

    def train(self, seeds: range) -> dict[str, str]:
        self.trained.append(seeds)
        return {name: f"seed {seed}: failed" for name, seed in self.failing.items() if seed in seeds}

    def scores(self, seeds: range, failed: Mapping[str, str]) -> dict[str, list[float]]:
        return {name: values[list(seeds)].tolist() for name, values in SCORES.items() if name not in failed}

    def add(self, detect: float | None, most: int = 40, *, at_once: bool = False) -> tuple[int, dict[str, str]]:
        return add_seeds(self.train, self.scores, "none", most=most, detect=detect, at_once=at_once)


def test_all_seeds_without_a_difference_to_detect() -> None:
    trainings = Trainings()
    assert trainings.add(None, 4) == (4, {})
    assert trainings.trained == [range(4)]


def test_seeds_are_added_one_by_one_until_enough() -> None:
    trainings = Trainings()
    count, failed = trainings.add(3.0)
    assert 3 < count < 40
    assert failed == {}
    assert trainings.trained == [range(3), *(range(n, n + 1) for n in range(3, count))]


@pytest.mark.parametrize("detect", [1.5, 2.0, 3.0, 6.0, 20.0])
def test_at_once_ends_with_the_same_number(detect: float) -> None:
    one_by_one, at_once = Trainings(), Trainings()
    assert one_by_one.add(detect) == at_once.add(detect, at_once=True)
    assert len(at_once.trained) <= len(one_by_one.trained)


def test_most_seeds_end_it() -> None:
    assert Trainings().add(0.01, 7)[0] == 7
    assert Trainings().add(0.01, 7, at_once=True)[0] == 7
    assert Trainings().add(100.0, 2)[0] == 2


def test_failed_choice_is_left_out() -> None:
    count, failed = Trainings({"se": 1}).add(3.0)
    assert failed == {"se": "seed 1: failed"}
    assert 3 <= count < 40


def test_nothing_to_compare_with_ends_it() -> None:
    assert Trainings({"none": 0}).add(3.0) == (3, {"none": "seed 0: failed"})
    assert Trainings({"gct": 0, "se": 2}).add(3.0)[0] == 3
