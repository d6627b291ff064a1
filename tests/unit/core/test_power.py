"""Power of the paired test against the noncentral t distribution and against simulated comparisons."""

import numpy as np
import pytest
from scipy import stats

from gatewise.core.power import (
    ALPHA_OF_STOPPED,
    detectable_difference,
    detectable_in_deviations,
    expected_seeds,
    may_stop,
    power,
    seeds_for,
)

DIFFERENCES = [0.1, -0.2, 0.4, 0.3]


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("difference", [0.0, 0.5, 1.2])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_power_is_that_of_noncentral_t(seeds: int, difference: float, alpha: float) -> None:
    critical = stats.t.ppf(1 - alpha / 2, seeds - 1)
    noncentral = stats.nct(seeds - 1, difference * seeds**0.5)
    assert power(difference, seeds, alpha) == pytest.approx(
        noncentral.sf(critical) + noncentral.cdf(-critical), abs=1e-4
    )


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_detectable_difference_is_shown_in_four_of_five_simulated_comparisons(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(detectable_in_deviations(seeds), 1.0, (40_000, seeds))
    shown = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_detectable_difference_scales_with_spread() -> None:
    found = detectable_difference(DIFFERENCES)
    assert found == pytest.approx(float(np.std(DIFFERENCES, ddof=1)) * detectable_in_deviations(4))
    assert detectable_difference([10 * value + 7 for value in DIFFERENCES]) == pytest.approx(10 * found)
    assert detectable_difference(DIFFERENCES, 0.05 / 3) > found


@pytest.mark.parametrize("values", [[0.5], [0.25, 0.25, 0.25]])
def test_without_spread_nothing_is_known(values: list[float]) -> None:
    assert detectable_difference(values) is None
    assert seeds_for(0.1, values) is None


@pytest.mark.parametrize("difference", [2.0, 0.5, 0.2, 0.05])
def test_seeds_are_the_fewest_that_detect(difference: float) -> None:
    seeds = seeds_for(difference, DIFFERENCES)
    deviation = float(np.std(DIFFERENCES, ddof=1))
    assert seeds is not None
    assert deviation * detectable_in_deviations(seeds) <= difference
    assert seeds == 2 or deviation * detectable_in_deviations(seeds - 1) > difference


def test_too_many_seeds_are_not_counted() -> None:
    assert seeds_for(1e-4, DIFFERENCES) is None


def scores(seeds: int, gate_spread: float = 1.0, gain: float = 0.0) -> dict[str, list[float]]:
    """Return scores whose differences and sums have about the same spread."""
    random = np.random.default_rng(1)
    none, gct = random.standard_normal((2, seeds))
    return {"none": none.tolist(), "gct": (gain + gate_spread * gct).tolist()}


@pytest.mark.parametrize("sign", [1, -1])  # turned around, the differences are the sums
def test_rule_needs_small_spread_of_differences_and_of_sums(sign: int) -> None:
    found = scores(6, gate_spread=sign)
    pairs = list(zip(found["gct"], found["none"], strict=True))
    spreads = [float(np.std([a + sign * b for a, b in pairs], ddof=1)) for sign in (-1, 1)]
    enough = max(spreads) * detectable_in_deviations(6, ALPHA_OF_STOPPED)
    assert may_stop(found, "none", enough * 1.001)
    assert not may_stop(found, "none", enough * 0.999)


@pytest.mark.parametrize("gain", [0.0, 3.0, -50.0])
def test_rule_does_not_depend_on_the_gain(gain: float) -> None:
    for difference in np.linspace(0.5, 5, 40):
        assert may_stop(scores(6, gain=gain), "none", difference) == may_stop(scores(6), "none", difference)


def test_rule_asks_every_gate_and_is_stricter_with_more() -> None:
    one = scores(6)
    assert may_stop(one, "none", 4.0)
    assert not may_stop({**one, "se": scores(6, 20.0)["gct"]}, "none", 4.0)
    border = next(value for value in np.linspace(0.5, 9, 1000) if may_stop(one, "none", value))
    assert not may_stop({**one, "se": one["gct"]}, "none", border)


def test_rule_needs_three_seeds_and_some_spread() -> None:
    assert not may_stop(scores(2), "none", 1e6)
    assert may_stop(scores(3), "none", 1e6)
    assert not may_stop({"none": [0.5] * 3, "gct": [0.5] * 3}, "none", 1e6)
    assert not may_stop({"none": [0.5, 0.6, 0.7]}, "none", 1e6)


def test_expected_seeds_satisfy_the_rule_if_spreads_stay() -> None:
    found = scores(4)
    expected = expected_seeds(found, "none", 0.5)
    pairs = list(zip(found["gct"], found["none"], strict=True))
    largest = max(float(np.std([a + sign * b for a, b in pairs], ddof=1)) for sign in (-1, 1))
    assert expected is not None
    assert largest * detectable_in_deviations(expected, ALPHA_OF_STOPPED) <= 0.5
    assert largest * detectable_in_deviations(expected - 1, ALPHA_OF_STOPPED) > 0.5
    assert expected_seeds({"none": [0.5] * 3, "gct": [0.5] * 3}, "none", 0.5) is None
