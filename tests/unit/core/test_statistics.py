"""Statistics against SciPy called directly, values worked by hand, and slow definitions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gatewise.core.statistics import (
    Estimate,
    PairedDifference,
    binomial_interval,
    holm,
    image_bootstrap,
    interval_within,
    mean_interval,
    paired_difference,
    verdict,
)

VALUES = [0.91, 0.93, 0.88, 0.95, 0.9]
BASELINE = [0.90, 0.91, 0.89, 0.90, 0.9]

# Means over seeds


def test_interval_equals_scipy_t_interval() -> None:
    expected = stats.t.interval(0.95, len(VALUES) - 1, loc=sum(VALUES) / len(VALUES), scale=stats.sem(VALUES))
    estimate = mean_interval(VALUES)
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.mean == pytest.approx(0.914)


def test_two_values_match_hand_computed_interval() -> None:
    estimate = mean_interval([1.0, 3.0])  # standard error 1, and the t quantile of one degree of freedom is 12.7062
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-4)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5]])
def test_one_value_or_no_spread_gives_no_interval(values: list[float]) -> None:
    assert mean_interval(values) == Estimate(0.5, None, None)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_rounding_is_relative_to_the_scores(size: float) -> None:
    assert mean_interval([size * value for value in (0.3, 0.3 + 1e-8)]).low is None
    assert mean_interval([size * value for value in (0.3, 0.3 + 1e-5)]).low is not None
    nearly, apart = ([size * (value + more) for value in (0.9, 0.7)] for more in (1e-8, 1e-5))
    assert paired_difference(nearly, [0.9 * size, 0.7 * size]) == PairedDifference(0.0, None, None, None)
    assert paired_difference(apart, [0.9 * size, 0.6 * size]).p is not None


def test_interval_stays_within_limits() -> None:
    found = interval_within([40.0, 48.0], 0.0, 100.0)
    reach = 12.7062 * 4.0 / 100 / (0.44 * 0.56)  # the standard error is 4
    expected = [100 / (1 + math.exp(-math.log(0.44 / 0.56) - sign * reach)) for sign in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-3)
    assert found.mean == 44.0


def test_interval_stays_on_its_side_of_one_limit() -> None:
    """A mean absolute error could lie between -4 and 9."""
    reach = 12.7062 * 0.5 / 2.5  # the standard error is 0.5
    above = interval_within([2.0, 3.0], 0.0, math.inf)
    assert [above.low, above.high] == pytest.approx([2.5 * math.exp(-reach), 2.5 * math.exp(reach)], rel=1e-4)
    below = interval_within([-3.0, -2.0], -math.inf, 0.0)
    assert [below.low, below.high] == pytest.approx([-above.high, -above.low])
    assert interval_within([2.0, 3.0], -math.inf, math.inf) == mean_interval([2.0, 3.0])


@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.0, math.inf), (-math.inf, 1.0)])
def test_narrow_interval_is_the_t_interval(limits: tuple[float, float]) -> None:
    within, plain = interval_within([0.9, 0.901, 0.902], *limits), mean_interval([0.9, 0.901, 0.902])
    assert (within.low, within.high) == pytest.approx((plain.low, plain.high), abs=7e-5)


@pytest.mark.parametrize(("share", "count"), [(0.5, 10), (1.0, 20), (0.0, 7), (0.93, 10_000)])
def test_binomial_interval_is_that_of_scipy(share: float, count: int) -> None:
    expected = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    found = binomial_interval(share, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


# Paired differences


def test_difference_equals_scipy_paired_test() -> None:
    found = paired_difference(VALUES, BASELINE)
    expected = stats.ttest_rel(VALUES, BASELINE)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(0.014)


def test_difference_is_paired_by_position() -> None:
    apart, noisy = [0.1, 0.5, 0.9], [0.11, 0.52, 0.91]
    assert paired_difference(noisy, apart).p == pytest.approx(stats.ttest_rel(noisy, apart).pvalue)
    assert paired_difference(noisy, apart).p < 0.06 < 0.9 < stats.ttest_ind(noisy, apart).pvalue


def test_swapping_groups_only_changes_sign() -> None:
    there, back = paired_difference(VALUES, BASELINE), paired_difference(BASELINE, VALUES)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)


@pytest.mark.parametrize(
    ("values", "baseline", "mean"),
    [([0.5], [0.25], 0.25), ([0.5, 0.75], [0.5, 0.75], 0.0), ([1.0, 0.5], [0.75, 0.25], 0.25)],
)
def test_differences_without_spread_cannot_be_tested(values: list[float], baseline: list[float], mean: float) -> None:
    assert paired_difference(values, baseline) == PairedDifference(mean, None, None, None)


@pytest.mark.parametrize("images", [360, 1000, 5000, 10_000, 50_000])
@pytest.mark.parametrize("better", [1, 3])
def test_equal_differences_with_rounding_have_no_spread(images: int, better: int) -> None:
    right = [images - 7, images // 2 + 1, images // 3, images // 7]
    single = [float(torch.tensor(count / images)) for count in right]
    raised = [float(torch.tensor((count + better) / images)) for count in right]
    found = paired_difference(raised, single)
    assert found.mean == pytest.approx(better / images, abs=1e-7)
    assert (found.low, found.high, found.p) == (None, None, None)


def test_one_different_image_is_a_spread() -> None:
    found = paired_difference([0.5, 0.5 + 1 / 50_000, 0.5], [0.5, 0.5, 0.5])
    assert found.p == pytest.approx(stats.ttest_rel([0, 1, 0], [0, 0, 0]).pvalue)


def test_lists_of_different_lengths_rejected() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired_difference([0.5, 0.6], [0.5, 0.6, 0.7])


# Several tests at once


def holm_by_definition(p_values: list[Fraction]) -> list[Fraction]:
    """Return, for each hypothesis, the smallest level at which Holm's sequence of tests rejects it."""

    def rejected(level: Fraction) -> set[int]:
        done: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            done.add(index)
        return done

    levels = sorted({p * k for p in p_values for k in range(1, len(p_values) + 1)} | {Fraction(1)})
    return [min(level for level in levels if level >= 1 or index in rejected(level)) for index in range(len(p_values))]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 40), max_size=6))
def test_holm_gives_smallest_rejecting_level(hundredths: list[int]) -> None:
    p_values = [Fraction(value, 40) for value in hundredths]
    expected = [min(Fraction(1), level) for level in holm_by_definition(p_values)]
    assert holm([float(p) for p in p_values]) == pytest.approx([float(level) for level in expected])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_corrected_values_keep_order_and_never_decrease(p_values: list[float | None]) -> None:
    corrected = holm(p_values)
    pairs = [(p, c) for p, c in zip(p_values, corrected, strict=True) if p is not None]
    assert [c is None for c in corrected] == [p is None for p in p_values]
    assert all(p <= c <= 1 for p, c in pairs)
    assert all(a[1] <= b[1] for a in pairs for b in pairs if a[0] <= b[0])


def test_undefined_p_values_are_not_counted() -> None:
    assert holm([0.01, None, 0.03]) == pytest.approx([0.02, None, 0.03])


def test_single_test_needs_no_correction() -> None:
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


# Differences over images


def drawn(rate: float, images: int, seed: int, seeds: int = 1) -> torch.Tensor:
    """Return which images a classifier of this accuracy gets right."""
    return torch.rand(seeds, images, generator=torch.Generator().manual_seed(seed)) < rate


def test_equal_classifiers_have_no_interval() -> None:
    correct = drawn(0.7, 50, 0)
    assert image_bootstrap(correct, correct) == Estimate(0.0, None, None)


def test_mean_is_difference_of_accuracies() -> None:
    one, other = drawn(0.8, 300, 0, seeds=3), drawn(0.6, 300, 1, seeds=3)
    estimate = image_bootstrap(one, other, resamples=99)
    assert estimate.mean == pytest.approx(float(one.double().mean() - other.double().mean()))


def test_interval_equals_normal_approximation_for_many_images() -> None:
    one, other = drawn(0.8, 4000, 0), drawn(0.7, 4000, 1)
    differences = (one.double() - other.double()).flatten()
    reach = 1.96 * float(differences.std()) / math.sqrt(4000)
    estimate = image_bootstrap(one, other, resamples=2000)
    assert estimate.mean - estimate.low == pytest.approx(reach, rel=0.1)
    assert estimate.high - estimate.mean == pytest.approx(reach, rel=0.1)


def test_interval_is_paired_by_image() -> None:
    hard = drawn(0.5, 1000, 0)
    nearly = hard.clone()
    nearly[0, :10] = ~nearly[0, :10]
    paired = image_bootstrap(nearly, hard, resamples=999)
    unrelated = image_bootstrap(
        nearly, hard[:, torch.randperm(1000, generator=torch.Generator().manual_seed(1))], resamples=999
    )
    assert paired.high - paired.low < 0.3 * (unrelated.high - unrelated.low)


def test_interval_is_deterministic() -> None:
    one, other = drawn(0.8, 100, 0), drawn(0.7, 100, 1)
    torch.manual_seed(0)
    first = image_bootstrap(one, other, resamples=99)
    torch.manual_seed(1)
    assert image_bootstrap(one, other, resamples=99) == first


def test_about_95_of_100_intervals_contain_true_difference() -> None:
    held = 0
    for trial in range(100):
        estimate = image_bootstrap(drawn(0.8, 200, 2 * trial), drawn(0.7, 200, 2 * trial + 1), resamples=199)
        held += estimate.low <= 0.1 <= estimate.high
    assert 88 <= held <= 99


# Verdicts


@pytest.mark.parametrize(
    ("mean", "corrected", "expected"),
    [
        (0.01, 0.049, "better"),
        (-0.01, 0.049, "worse"),
        (0.01, 0.051, "no difference shown"),
        (-0.01, 0.5, "no difference shown"),
        (0.01, None, "no difference shown"),
    ],
)
def test_verdict_follows_sign_and_corrected_p(mean: float, corrected: float | None, expected: str) -> None:
    assert verdict(PairedDifference(mean, None, None, 0.001), corrected) == expected
