"""The simulation of false verdicts decides as the package does, and its published rates are what the pages say."""

import json

import numpy as np
import pytest

from gatewise.comparison.seeds import add_seeds
from gatewise.comparison.verdicts import judged
from gatewise.training.tasks.regress import MAE
from support.project import ROOT
from tools.false_verdicts import Case, has_verdict, stopping_seeds

PUBLISHED = ROOT / "docs/results/reliability/false_verdicts.json"


@pytest.mark.parametrize(("gates", "detect"), [(1, 2.0), (1, 3.0), (2, 4.0)])
def test_simulation_stops_and_judges_as_comparisons_do(gates: int, detect: float) -> None:
    scores = Case(gates, 7).scores(40, np.random.default_rng(gates))
    scores[::4, 1] += 2.5  # some have a gain
    used = stopping_seeds(scores, detect, 7)
    found = has_verdict(scores, used, 0.0375)
    assert len(set(used.tolist())) > 1
    assert 0 < found.sum() < len(found)
    for number, comparison in enumerate(scores):
        named = {str(index): values for index, values in enumerate(comparison)}
        count, _ = add_seeds(
            lambda _: {},
            lambda seeds, _, named=named: {name: values[list(seeds)].tolist() for name, values in named.items()},
            "0",
            most=7,
            detect=detect,
        )
        assert count == used[number]
        verdicts = judged({name: values[:count].tolist() for name, values in named.items()}, "0", MAE, stopped=True)
        assert found[number] == any(row["verdict"] != "no difference shown" for row in verdicts.values())


def test_published_rates_are_at_most_five_percent_up_to_chance() -> None:
    content = json.loads(PUBLISHED.read_text())
    error = (0.05 * 0.95 / content["comparisons_of_each_case"]) ** 0.5
    for row in (*content["simulated"], *content["real"]):
        assert row["false_verdicts"] < 0.05 + (3 * error if row["detect"] is None else 0), row
