"""Judge scores of several networks with several seeds: intervals, differences, verdicts, and what could be seen."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gatewise.core import statistics
from gatewise.core.power import ALPHA, ALPHA_OF_STOPPED, detectable_difference, seeds_for
from gatewise.training import Score

OF_INTEREST = (0.5, 0.25)  # differences, in the unit of the score as shown, for which seeds are counted


def baseline_of(names: Collection[str]) -> str:
    """Return the choice of gates to which the others are compared: none, or else the first.

    >>> baseline_of(["gct", "none"]), baseline_of(["gct", "se"])
    ('none', 'gct')
    """
    return "none" if "none" in names else next(iter(names))


def level_of(*, stopped: bool) -> float:
    """Return the level of the tests; it is stricter if the spread decided about the number of seeds (`stopped`)."""
    return ALPHA_OF_STOPPED if stopped else ALPHA


def score_row(score: Score, values: Sequence[float], images: Tensor | None = None) -> dict[str, Any]:
    """Return the mean of a score with its 95 % interval over seeds, within the limits of the score.

    Args:
        score: the score.
        values: its value for each seed.
        images: what each image contributes, (seeds, images, ...). If that is whether it is right (bool), one seed and
            seeds that agree have a binomial interval over images; otherwise they have none.

    Returns:
        "mean", "low", "high", "values", and "over" ("images") for an interval over images.
    """
    lowest, highest = score.limits
    found = statistics.interval_within(values, lowest, highest)
    row = {**dataclasses.asdict(found), "values": list(values)}
    width = highest - lowest
    if found.low is not None or images is None or images.dtype != torch.bool or not math.isfinite(width):
        return row
    share = statistics.binomial_interval((found.mean - lowest) / width, images.shape[1])
    assert share.low is not None
    assert share.high is not None
    return {**row, "low": lowest + width * share.low, "high": lowest + width * share.high, "over": "images"}


def judged(
    scores: Mapping[str, Sequence[float]], baseline: str, score: Score, *, stopped: bool = False
) -> dict[str, dict[str, Any]]:
    """Compare each network with the baseline, seed by seed.

    Args:
        scores: network -> its score for each seed.
        baseline: the network to which the others are compared.
        score: the score.
        stopped: whether the spread decided about the number of seeds.

    Returns:
        For each network except the baseline: "difference", "p_holm" (corrected for the number of networks), "verdict",
        and "detectable": the difference that would have been shown with a probability of 80 % ("points"), and the seeds
        that each difference of `OF_INTEREST` takes ("seeds_for"); these differences are in the unit of the score as
        shown. The test is that of the verdict, for a network that alone differs: at the first step of Holm's method.
    """
    level = level_of(stopped=stopped)
    found = {
        name: statistics.paired_difference(values, scores[baseline])
        for name, values in scores.items()
        if name != baseline
    }
    corrected = statistics.holm([difference.p for difference in found.values()])
    alpha = level / max(1, sum(difference.p is not None for difference in found.values()))
    return {
        name: {
            "difference": difference_row(difference, score),
            "p_holm": p,
            "verdict": statistics.verdict(difference, p, higher_is_better=score.higher_is_better, alpha=level),
            "detectable": _detectable(scores[name], scores[baseline], score, alpha),
        }
        for (name, difference), p in zip(found.items(), corrected, strict=True)
    }


def difference_row(difference: statistics.Estimate, score: Score) -> dict[str, Any]:
    """Return a difference as values of JSON, its interval within what two scores can differ by."""
    row = dataclasses.asdict(difference)
    if row["low"] is not None:
        widest = score.limits[1] - score.limits[0]
        row["low"], row["high"] = max(-widest, row["low"]), min(widest, row["high"])
    return row


def _detectable(values: Sequence[float], baseline: Sequence[float], score: Score, alpha: float) -> dict[str, Any]:
    differences = statistics.paired_differences(values, baseline)
    found = detectable_difference(differences, alpha)
    return {
        "points": None if found is None else score.factor * found,
        "seeds_for": {str(size): seeds_for(size / score.factor, differences, alpha) for size in OF_INTEREST},
    }
