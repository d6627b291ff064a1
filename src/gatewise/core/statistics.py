"""Confidence intervals, paired tests and the correction for multiple comparisons."""

# pyright: basic

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise.core import _validation

LEVEL = 0.95
# Of the largest score. Scores are float32: equal differences of accuracies, such as 1/360, differ by up to 1.2e-7. Such
# a spread must not be tested.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; low and high are None if there is only one value or no spread."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """A mean of paired differences with its interval; p is None if it cannot be tested."""

    p: float | None


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n - 1), or None where it is 0 up to rounding or there is one value.

    >>> spread([1.0, 2.0, 3.0])
    1.0
    """
    if len(values) < 2:
        return None
    deviation = float(torch.tensor(values, dtype=torch.float64).std())
    return deviation if deviation > ROUNDING * max(map(abs, values)) else None


def paired_differences(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return values - baseline, pair by pair; differences that differ by the rounding of the scores alone are equal.

    >>> paired_differences([0.75, 0.25], [0.5, 0.5]), paired_differences([0.75, 0.75 + 1e-9], [0.5, 0.5])
    ([0.25, -0.25], [0.25..., 0.25...])
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    rounding = ROUNDING * max(map(abs, (*values, *baseline)))
    centre = sum(differences) / len(differences)
    if max(abs(difference - centre) for difference in differences) <= rounding:
        return [0.0 if abs(centre) <= rounding else centre] * len(differences)
    return differences


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % t interval, mean +- t(0.975, n - 1) * std / sqrt(n).

    >>> mean_interval([1.0, 2.0, 3.0])  # 2 +- 4.303 / sqrt(3)
    Estimate(mean=2.0, low=-0.48..., high=4.48...)
    """
    mean, deviation = float(torch.tensor(values, dtype=torch.float64).mean()), spread(values)
    if deviation is None:
        return Estimate(mean, None, None)
    reach = float(_stats().t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - reach, mean + reach)


def interval_within(values: Sequence[float], lowest: float, highest: float) -> Estimate:
    """Return the mean of values within bounds, of which each may be infinite, with a 95 % interval within them.

    The t interval is that of a transformed mean, transformed back. With m the mean, s the standard deviation and
    r = t(0.975, n - 1) * s / sqrt(n): for two bounds logit(m) +- r / (m * (1 - m)), all scaled to [0, 1]; for one bound
    log(d) +- r / d, with d the distance of m to the bound; for none m +- r.

    >>> interval_within([40.0, 48.0], 0.0, 100.0)  # the t interval would reach from -6.8 to 94.8
    Estimate(mean=44.0, low=9.08..., high=86.07...)
    >>> interval_within([2.0, 3.0], 0.0, math.inf)  # the t interval would reach from -3.9 to 8.9
    Estimate(mean=2.5, low=0.19..., high=31.7...)
    """
    plain = mean_interval(values)
    if plain.low is None or plain.high is None or not lowest < plain.mean < highest:
        return plain
    reach, below, above = (plain.high - plain.low) / 2, plain.mean - lowest, highest - plain.mean
    if math.isinf(below) and math.isinf(above):
        return plain
    if math.isinf(above):
        low, high = (lowest + below * _exp(x / below) for x in (-reach, reach))
    elif math.isinf(below):
        low, high = (highest - above * _exp(x / above) for x in (reach, -reach))
    else:
        width = highest - lowest
        centre, scaled = math.log(below / above), reach * width / (below * above)
        low, high = (lowest + width / (1 + _exp(-centre - x)) for x in (-scaled, scaled))
    return Estimate(plain.mean, low, high)


def _exp(x: float) -> float:
    return math.exp(min(700.0, x))


def binomial_interval(share: float, count: int) -> Estimate:
    """Return the share of successes among `count` trials with its 95 % interval (Wilson, 1927).

    With z = 1.96, (share + z² / 2n +- z sqrt(share (1 - share) / n + z² / 4n²)) / (1 + z² / n).

    >>> binomial_interval(1.0, 20)
    Estimate(mean=1.0, low=0.83..., high=1.0)
    """
    z = float(_stats().norm.ppf(0.5 + LEVEL / 2))
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return Estimate(share, max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Return the mean of values - baseline, pair by pair, with its 95 % t interval and two-sided p.

    Differences without spread (one seed, or all equal) cannot be tested: interval and p are None.

    >>> paired_difference([0.5, 0.75], [0.25, 0.5])
    PairedDifference(mean=0.25, low=None, high=None, p=None)
    """
    differences = paired_differences(values, baseline)
    estimate = mean_interval(differences)
    if estimate.low is None:
        return PairedDifference(estimate.mean, None, None, None)
    p = float(_stats().ttest_1samp(differences, 0.0).pvalue)
    return PairedDifference(estimate.mean, estimate.low, estimate.high, p)


def image_bootstrap(values: Tensor, baseline: Tensor, groups: Tensor | None = None, resamples: int = 9999) -> Estimate:
    """Return the difference of a mean over images, such as accuracy, with a 95 % percentile bootstrap interval.

    The question differs from that of `paired_difference`: would these trained networks differ on other images?

    Args:
        values: value of each image, such as whether it was classified correctly, (seeds, images).
        baseline: the same for the baseline, with the same seeds and images.
        groups: number of the group of each image, (images,), such as its patient; whole groups are drawn. None draws
            images.
        resamples: number of bootstrap resamples of the images or groups.

    >>> image_bootstrap(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 0, 0, 0]]), torch.tensor([0, 0, 1, 1]))
    Estimate(mean=0.5, low=0.0, high=1.0)
    """
    differences = (values.double().mean(0) - baseline.double().mean(0)).numpy()  # (images,)
    mean = float(differences.mean())
    if not differences.any():
        return Estimate(mean, None, None)
    if groups is None:
        return _bootstrap(mean, differences, lambda x, axis: x.mean(axis=axis), resamples)
    once = torch.ones(len(groups), dtype=torch.float64)
    sums, sizes = (grouped(part, groups).numpy() for part in (torch.from_numpy(differences), once))

    def drawn_mean(indices: Any, axis: int = -1) -> Any:
        return sums[indices].sum(axis=axis) / sizes[indices].sum(axis=axis)

    return _bootstrap(mean, torch.arange(len(sums)).numpy(), drawn_mean, resamples)


def grouped(values: Tensor, groups: Tensor) -> Tensor:
    """Return the sums of the values of each group: (images, ...), (images,) -> (groups, ...).

    >>> grouped(torch.tensor([1, 2, 4]), torch.tensor([7, 3, 7]))
    tensor([2, 5])
    """
    found, index = groups.unique(return_inverse=True)
    return values.new_zeros(len(found), *values.shape[1:]).index_add_(0, index, values)


Redrawn = Callable[[Tensor, Tensor], Tensor]


def redrawn_bootstrap(
    score: Redrawn, values: Tensor, baseline: Tensor, groups: Tensor | None = None, resamples: int = 9999
) -> Estimate:
    """Return the mean difference of a score of all images, with a 95 % percentile bootstrap interval over images.

    For scores that are no means over images: each resample computes them again.

    Args:
        score: function from the values of one seed, (images, ...), and how often each image is drawn,
            (resamples, images), float64, to the score of each resample, (resamples,); NaN where it is undefined.
        values: what each image contributes, (seeds, images, ...).
        baseline: the same for the baseline, with the same seeds and images.
        groups: number of the group of each image, (images,); whole groups are drawn. None draws images.
        resamples: number of bootstrap resamples; those with an undefined score are omitted.
    """
    if torch.equal(values, baseline):
        return Estimate(0.0, None, None)
    images = values.shape[1]
    of_image = torch.arange(images) if groups is None else groups.unique(return_inverse=True)[1]
    drawn = int(of_image.max()) + 1

    def difference(indices: Any, axis: int = -1) -> Any:  # noqa: ARG001
        chosen = torch.as_tensor(indices).reshape(-1, drawn)
        once = torch.ones_like(chosen, dtype=torch.float64)
        counts = torch.zeros(len(chosen), drawn, dtype=torch.float64).scatter_add_(1, chosen, once)
        counts = counts if groups is None else counts[:, of_image]
        means = [torch.stack([score(of_seed, counts) for of_seed in side]).mean(0) for side in (values, baseline)]
        return (means[0] - means[1]).reshape(indices.shape[:-1]).numpy()

    everything = torch.arange(drawn).numpy()
    return _bootstrap(float(difference(everything)), everything, difference, resamples)


def _bootstrap(mean: float, values: Any, statistic: Any, resamples: int) -> Estimate:
    """Return `mean`, unchanged, with the central 95 % of the statistics of bootstrap resamples that are finite."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about undefined statistics, which SciPy's own interval would not omit
        result = _stats().bootstrap(
            (values,), statistic, n_resamples=resamples, batch=500, method="percentile", rng=0, vectorized=True
        )
    found = result.bootstrap_distribution
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(mean, None, None)
    low, high = np.percentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(mean, float(low), float(high))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for testing all of them at once (Holm, 1979); None stays None.

    The i-th smallest of the m p values becomes the maximum over j <= i of min(1, (m - j + 1) p_j).

    >>> holm([0.01, 0.04, 0.03])  # 3 * 0.01, then 2 * 0.03, then the maximum so far
    [0.03, 0.06, 0.06]
    """
    asked = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, index) in enumerate(asked):
        floor = max(floor, min(1.0, p * (len(asked) - rank)))
        corrected[index] = floor
    return corrected


def verdict(
    difference: PairedDifference, corrected_p: float | None, *, higher_is_better: bool = True, alpha: float = 1 - LEVEL
) -> str:
    """Return "better", "worse" or "no difference shown"; `alpha` is the level of the test."""
    if corrected_p is None or corrected_p >= alpha:
        return "no difference shown"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def _stats() -> Any:
    return _validation.import_optional("scipy.stats", "the statistics of a comparison")
