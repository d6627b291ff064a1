"""Measure how often a comparison of equal networks says better or worse, with all seeds and with --detect.

`simulated` draws scores from normal distributions, `real` from finished trainings of one network: each comparison gets
trainings of its own, in random order. Both judge with the functions of the package.

    python tools/false_verdicts.py --out docs/results/reliability/false_verdicts.json [--comparison FOLDER]
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gatewise.core.files import write_json
from gatewise.core.power import ALPHA, ALPHA_OF_STOPPED, FEWEST_SEEDS, detectable_in_deviations
from gatewise.core.statistics import ROUNDING

SEEDS = (3, 5, 8)
RATIOS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)  # of --detect to the spread of a difference


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        gates: number of networks in addition to the baseline.
        seeds: seeds of each, with --detect the most.
        detect: difference to detect, in standard deviations of a difference, or None.
        spread: standard deviation of the first gate's scores, that of the others being 1.
        shared: share of the variance that all networks of a seed have in common.
    """

    gates: int
    seeds: int
    detect: float | None = None
    spread: float = 1.0
    shared: float = 0.0

    def scores(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Return the scores of so many comparisons, the baseline first: (count, 1 + gates, seeds)."""
        own = random.standard_normal((count, 1 + self.gates, self.seeds)) * np.sqrt(1 - self.shared)
        scores = own + random.standard_normal((count, 1, self.seeds)) * np.sqrt(self.shared)
        scores[:, 1] *= self.spread
        return scores / np.sqrt(2 * (1 - self.shared))  # the differences have a standard deviation of 1


def stopping_seeds(scores: np.ndarray, detect: float, most: int) -> np.ndarray:
    """Return with how many seeds each comparison stops, (count,); `gatewise.core.power.may_stop` for many at once."""
    used = np.full(len(scores), most)
    for seeds in range(most - 1, FEWEST_SEEDS - 1, -1):
        first = scores[:, :, :seeds]
        allowed = detect / detectable_in_deviations(seeds, ALPHA_OF_STOPPED / (scores.shape[1] - 1))
        of_pairs = [first[:, 1:] - first[:, :1], first[:, 1:] + first[:, :1]]
        largest = np.max([pair.std(2, ddof=1).max(1) for pair in of_pairs], 0)
        used[largest <= allowed] = seeds
    return used


def has_verdict(scores: np.ndarray, used: np.ndarray, alpha: float) -> np.ndarray:
    """Return whether any network of each comparison is called better or worse than the first, (count,)."""
    found = np.zeros(len(scores), bool)
    for seeds in np.unique(used):
        which = used == seeds
        differences = scores[which, 1:, :seeds] - scores[which, :1, :seeds]
        spread = differences.std(2, ddof=1)
        t = np.abs(differences.mean(2)) * np.sqrt(seeds) / np.where(spread > ROUNDING, spread, np.inf)
        found[which] = 2 * stats.t.sf(t, seeds - 1).min(1) * differences.shape[1] < alpha
    return found


def rate(case: Case, scores: np.ndarray) -> dict[str, Any]:
    """Return how often comparisons with these scores have a verdict, and the mean number of their seeds."""
    alpha = ALPHA if case.detect is None else ALPHA_OF_STOPPED
    used = np.full(len(scores), case.seeds)
    if case.detect is not None:
        used = stopping_seeds(scores, case.detect, case.seeds)
    share = float(has_verdict(scores, used, alpha).mean())
    return {**dataclasses.asdict(case), "false_verdicts": round(share, 4), "mean_seeds": round(float(used.mean()), 2)}


def simulated(count: int) -> list[dict[str, Any]]:
    """Return the rates for scores from normal distributions."""
    random = np.random.default_rng(0)
    populations = [(1.0, 0.0), (1.0, 0.5), (2.0, 0.0), (0.5, 0.0)]
    cases = [Case(gates, seeds) for gates in (1, 3) for seeds in SEEDS]
    cases += [
        Case(gates, most, ratio, spread, shared)
        for gates in (1, 2, 3)
        for most in (*SEEDS, 20)
        for spread, shared in populations
        for ratio in RATIOS
    ]
    return [rate(case, case.scores(count, random)) for case in cases]


def real(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the rates for finished trainings of one network, whose folders are below `folder`."""
    metrics = [json.loads(file.read_text()) for file in sorted(folder.rglob("metrics.json"))]
    values = np.array([of_run[of_run["score"]] for of_run in metrics])
    random = np.random.default_rng(0)
    rows = []
    for gates in (1, 3):
        for seeds in SEEDS:
            order = random.permuted(np.tile(np.arange(len(values)), (count, 1)), axis=1)
            drawn = values[order[:, : (1 + gates) * seeds]].reshape(count, 1 + gates, seeds)
            in_deviations = (drawn - values.mean()) / (values.std(ddof=1) * np.sqrt(2))
            for detect in (None, *RATIOS):
                rows.append(rate(Case(gates, seeds, detect), in_deviations))
    return rows


def worst(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the row with the most false verdicts for each number of gates and of seeds, fixed and with --detect."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = row["gates"], row["seeds"], row["detect"] is None
        if key not in found or row["false_verdicts"] > found[key]["false_verdicts"]:
            found[key] = row
    return list(found.values())


def main() -> None:
    """Write the rates, and print the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--comparison", type=Path, help="folder of finished runs of one network")
    parser.add_argument("--count", type=int, default=40_000, help="comparisons of each case")
    options = parser.parse_args()
    found: dict[str, Any] = {"comparisons_of_each_case": options.count, "simulated": simulated(options.count)}
    if options.comparison is not None:
        found["trainings"] = len(list(options.comparison.rglob("metrics.json")))
        found["real"] = real(options.comparison, options.count)
    write_json(options.out, found)
    for kind in ("simulated", "real"):
        for row in worst(found.get(kind, ())):
            print(kind, row)


if __name__ == "__main__":
    main()
