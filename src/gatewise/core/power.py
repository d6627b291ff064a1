"""Power of the paired t test: the difference that it would show, the seeds for a smaller one, and when to stop."""

# pyright: basic

import functools
import math
from collections.abc import Mapping, Sequence

from gatewise.core import _validation
from gatewise.core.statistics import LEVEL, paired_differences, spread

POWER = 0.8
ALPHA = 1 - LEVEL
# A spread that is small by luck ends a comparison early and makes its t large. With this level the rate of false
# verdicts stays below 5 % in all cases of tools/false_verdicts.py.
ALPHA_OF_STOPPED = 0.0375
FEWEST_SEEDS = 3  # before the spread decides whether more are needed
MOST_SEEDS = 10_000
_GRID = 4000


def power(difference: float, seeds: int, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided t test of paired differences shows a difference.

    With w = chi²(n - 1) / (n - 1) and t = t(1 - alpha / 2, n - 1), this is the mean over w of
    Phi(difference sqrt(n) - t sqrt(w)) + Phi(-difference sqrt(n) - t sqrt(w)), the noncentral t distribution.

    Args:
        difference: the true mean of the differences, in standard deviations of one difference.
        seeds: number n of differences, at least 2.
        alpha: level of the test.

    >>> round(power(0.0, 5), 3), round(power(1.0, 10), 3)
    (0.05, 0.803)
    """
    normal, critical = _scipy().norm, _critical_values(seeds, alpha)
    shift = difference * math.sqrt(seeds)
    return float((normal.cdf(shift - critical) + normal.cdf(-shift - critical)).mean())


@functools.lru_cache(maxsize=4096)
def _critical_values(seeds: int, alpha: float):
    """Return t sqrt(w) at evenly spaced quantiles of w; see `power`."""
    import numpy as np

    freedom, stats = seeds - 1, _scipy()
    quantiles = stats.chi2.ppf((np.arange(_GRID) + 0.5) / _GRID, freedom)
    return stats.t.ppf(1 - alpha / 2, freedom) * np.sqrt(quantiles / freedom)


@functools.lru_cache(maxsize=4096)
def detectable_in_deviations(seeds: int, alpha: float = ALPHA) -> float:
    """Return the smallest difference that is shown with 80 % probability, in standard deviations of one difference.

    >>> round(detectable_in_deviations(3), 2), round(detectable_in_deviations(10), 2)
    (3.26, 1.0)
    """
    solve = _validation.import_optional("scipy.optimize", "the statistics of a comparison").brentq
    highest = float(_critical_values(seeds, alpha)[-1]) + 10
    return solve(lambda shift: power(shift, seeds, alpha) - POWER, 0.0, highest / math.sqrt(seeds))


def detectable_difference(differences: Sequence[float], alpha: float = ALPHA) -> float | None:
    """Return the smallest true difference that these seeds would have shown with a probability of 80 %.

    The spread of the differences is taken for the true one. None if there is no spread to take.
    """
    deviation = spread(differences)
    return None if deviation is None else deviation * detectable_in_deviations(len(differences), alpha)


def seeds_for(difference: float, differences: Sequence[float], alpha: float = ALPHA) -> int | None:
    """Return the smallest number of seeds that shows a true difference with a probability of 80 %.

    Args:
        difference: the true difference, in the unit of `differences`.
        differences: differences of the seeds that there are; their spread is taken for the true one.
        alpha: level of the test.

    Returns:
        The number, at least 2; None if it exceeds 10,000 or there is no spread.

    >>> seeds_for(1.0, [-1.0, 0.0, 1.0])  # the spread is 1
    10
    """
    deviation = spread(differences)
    if deviation is None or deviation * detectable_in_deviations(MOST_SEEDS, alpha) > difference:
        return None
    low, high = 1, 2  # too few, enough
    while deviation * detectable_in_deviations(high, alpha) > difference:
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        if deviation * detectable_in_deviations(middle, alpha) > difference:
            low = middle
        else:
            high = middle
    return high


def may_stop(scores: Mapping[str, Sequence[float]], baseline: str, difference: float) -> bool:
    """Return whether these seeds are enough to detect a difference, by the spreads alone.

    For each variant, neither the spread of its differences to the baseline nor that of its sums with the baseline may
    be too large. Sums have no part in the test, so that the rule depends less on luck with the differences: for two
    independent scores of equal spread, sums and differences are independent and have the same spread.

    Args:
        scores: variant -> score of each seed.
        baseline: the variant to which the others are compared.
        difference: the difference to detect.
    """
    seeds, alpha, pairs = _pairs(scores, baseline)
    if seeds < FEWEST_SEEDS or not pairs:
        return False
    allowed = difference / detectable_in_deviations(seeds, alpha)
    spreads = [spread(values) for values in pairs]
    return all(deviation is not None and deviation <= allowed for deviation in spreads)


def expected_seeds(scores: Mapping[str, Sequence[float]], baseline: str, difference: float) -> int | None:
    """Return the number of seeds for which `may_stop` will hold if the spreads stay as they are, or None if unknown."""
    _, alpha, pairs = _pairs(scores, baseline)
    needed = [seeds_for(difference, values, alpha) for values in pairs]
    return None if not needed or None in needed else max(FEWEST_SEEDS, *filter(None, needed))


def _pairs(scores: Mapping[str, Sequence[float]], baseline: str) -> tuple[int, float, list[list[float]]]:
    """Return the number of seeds, the level of each test, and differences and sums of each variant and the baseline."""
    base, others = scores[baseline], [values for name, values in scores.items() if name != baseline]
    sums = [[one + two for one, two in zip(values, base, strict=True)] for values in others]
    pairs = [paired_differences(values, base) for values in others] + sums
    return len(base), ALPHA_OF_STOPPED / max(1, len(others)), pairs


def _scipy():
    return _validation.import_optional("scipy.stats", "the statistics of a comparison")
