"""The sentences that a report begins with, for made-up results of every kind."""

from typing import Any

import pytest

from gatewise.comparison.answer import answer
from gatewise.comparison.verdicts import judged, score_row
from gatewise.training import Score
from gatewise.training.tasks.base import ACCURACY
from gatewise.training.tasks.regress import MAE

NONE = [0.900, 0.902, 0.899, 0.901, 0.898]
BETTER = [0.911, 0.912, 0.910, 0.911, 0.908]
WORSE = [0.880, 0.883, 0.880, 0.880, 0.879]
ALIKE = [0.901, 0.899, 0.903, 0.900, 0.897]
WARNED = "1 warning about the data (see Data in the report)"
NOISY = [0.930, 0.880, 0.915, 0.865, 0.925]


def results(
    scores: dict[str, list[float]], score: Score = ACCURACY, *, command: bool = True, **more: Any
) -> dict[str, Any]:
    """Return the results of a comparison with these scores; the first network is the baseline."""
    baseline = next(iter(scores))
    verdicts = judged(scores, baseline, score)
    rows = [
        {"gates": name, score.name: score_row(score, values), **verdicts.get(name, {})}
        for name, values in scores.items()
    ]
    found = {"score": score.name, "seeds": len(scores[baseline]), "baseline": baseline, "variants": rows, "failed": {}}
    if command:
        found["training"] = {"command": "gatewise compare --gates none,gct --seeds 5 --out 'my runs'"}
    return found | more


def rival(name: str, values: list[float], of: dict[str, Any], score: Score = ACCURACY) -> dict[str, Any]:
    """Return what a row says of its rival of equal multiply-adds."""
    own = judged({name: values, "own": of[score.name]["values"]}, name, score)["own"]
    return {"macs": {"gates": name, **own}}


def test_better_gate_is_recommended_with_its_gain_and_how_sure() -> None:
    (sentence,) = answer(results({"none": NONE, "gct": BETTER}))
    assert sentence == (
        "Use gct: its accuracy is 1.04 points higher than that of none (95 % interval +0.97 to +1.11, 5 seeds, "
        "p = 1.8e-06)."
    )


def test_best_of_several_is_recommended_and_the_others_are_named() -> None:
    first, second = answer(results({"none": NONE, "se": [v - 0.002 for v in BETTER], "gct": BETTER}))
    assert first.startswith("Use gct: its accuracy is 1.04 points higher than that of none (95 % interval")
    assert first.endswith("corrected for 2 comparisons).")
    assert second == "se is better than none, too."


def test_lower_is_better() -> None:
    found = answer(results({"none": NONE, "gct": BETTER, "se": WORSE}, MAE))
    assert found[0].startswith("Use se: its mean absolute error is 0.020 lower than that of none (95 % interval -0.02")
    assert len(found) == 1
    assert answer(results({"none": NONE, "gct": BETTER}, MAE)) == ["Use none: gct is worse."]


def test_lower_score_with_the_larger_gain_is_recommended() -> None:
    found = answer(results({"none": NONE, "gct": WORSE, "se": [v - 0.01 for v in WORSE]}, MAE))
    assert found[0].startswith("Use se: its mean absolute error is 0.030 lower than that of none")
    assert found[1] == "gct is better than none, too."


def test_worse_gate_is_not_recommended() -> None:
    assert answer(results({"none": NONE, "gct": WORSE})) == ["Use none: gct is worse."]
    assert answer(results({"none": NONE, "gct": WORSE, "se": WORSE}))[0] == "Use none: gct and se are all worse."


def test_undecided_gate_is_not_recommended_and_the_number_of_seeds_is_said() -> None:
    first, second = answer(results({"none": NONE, "gct": NOISY}))
    assert first == (
        "Use none: gct was not shown to be better: its accuracy is 0.30 points higher (95 % interval -3.44 to +4.04)."
    )
    assert second == (
        "For gct, a difference below 5.1 points could have been missed; 0.5 points would take 287 seeds. Fewer suffice "
        "with more validation images."
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"training": {"steps": 12}}, "few steps of training (12)."),
        ({"validation_images": 77}, "few validation images (77)."),
        ({"notes": ["warning: a leak", "a note"]}, f"{WARNED}."),
        (
            {"training": {"steps": 99}, "validation_images": 99, "notes": ["warning: a"]},
            f"few steps of training (99), few validation images (99) and {WARNED}.",
        ),
        ({"training": {"steps": 100}, "validation_images": 100, "notes": ["a note"]}, None),
    ],
)
@pytest.mark.parametrize("reached", [0.5, 0.95])
def test_what_limits_a_comparison_is_said_once(more: dict[str, Any], expected: str | None, reached: float) -> None:
    constant = {"answer": "'cat'", "score": reached}
    found = answer(
        results({"none": NONE, "gct": BETTER}, command=False, constant=constant, failed={"se": "nan"}, **more)
    )
    said = [sentence for sentence in found if sentence.startswith("Bear in mind: ")]
    assert said == ([] if expected is None else [f"Bear in mind: {expected}"])
    assert found[-1] == "se failed and is left out (nan)."


def test_small_and_absent_differences_have_words() -> None:
    same = [value + change for value, change in zip(NONE, (1e-3, -1e-3, 0, 2e-3, -2e-3), strict=True)]
    assert "its accuracy is no different (95 %" in answer(results({"none": NONE, "gct": same}))[0]
    assert [ACCURACY.number(-1e-9, sign) for sign in ("", "+")] == ["0.00", "+0.00"]
    lower = [value - 4e-5 for value in same]
    assert "its accuracy is less than 0.01 points lower (95 %" in answer(results({"none": NONE, "gct": lower}))[0]
    assert "error is 4e-05 lower (95 %" in answer(results({"none": NONE, "gct": lower}, MAE))[0]


@pytest.mark.parametrize(("score", "reached"), [(ACCURACY, 0.9095), (MAE, 0.8812)])
def test_networks_that_do_not_beat_a_constant_answer_decide_nothing(score: Score, reached: float) -> None:
    constant = {"answer": "'cat'", "score": reached, "sentence": ""}
    found = answer(results({"none": NONE, "gct": BETTER, "se": WORSE}, score, constant=constant, failed={"gc": "nan"}))
    first, second = found
    assert first == (
        f"This comparison decides nothing: no network was shown to be better than always 'cat' ({score.text(reached)} "
        f"{score.title}). Train for more epochs, or with another --lr."
    )
    assert second == "gc failed and is left out (nan)."


@pytest.mark.parametrize(("score", "reached"), [(ACCURACY, 0.905), (MAE, 0.885), (ACCURACY, None)])
def test_one_network_that_beats_the_constant_answer_is_enough(score: Score, reached: float | None) -> None:
    scores, constant = {"none": NONE, "gct": BETTER, "se": WORSE}, {"answer": "'cat'", "score": reached}
    assert answer(results(scores, score, constant=constant)) == answer(results(scores, score))


def test_one_seed_that_does_not_beat_a_constant_answer_decides_nothing() -> None:
    constant = {"answer": "'cat'", "score": 0.91}
    (only,) = answer(results({"none": [0.9], "gct": [0.91]}, constant=constant))
    assert only.startswith(
        "This comparison decides nothing: no network was shown to be better than always 'cat' (91.00 %"
    )
    assert answer(results({"none": [0.9], "gct": [0.911]}, constant=constant))[0].startswith("One seed decides nothing")


def test_undecided_and_worse_gates() -> None:
    first = answer(results({"none": NONE, "gct": NOISY, "se": WORSE}))[0]
    assert first == "Use none: none of the 2 others was shown to be better; se is worse."


def test_quarter_of_a_point_is_asked_for_where_half_a_point_would_have_been_seen() -> None:
    first, second = answer(results({"none": NONE, "gct": ALIKE}, command=False))
    assert first.startswith("Use none: gct was not shown to be better")
    assert (
        second == "For gct, a difference below 0.45 points could have been missed; to see 0.25 points, train 11 seeds."
    )
    assert answer(results({"none": NONE, "gct": ALIKE}))[1] == (
        f"{second.removesuffix('.')}: gatewise compare --gates none,gct --seeds 11 --out 'my runs'"
    )


def test_each_gate_has_its_own_limit() -> None:
    found = answer(results({"none": NONE, "gct": NOISY, "se": ALIKE}, command=False))
    assert found[1].startswith("For gct and se, differences below 6.2 and 0.54 points could have been missed; 0.5")


def test_small_difference_that_would_have_been_seen() -> None:
    found = answer(
        results({"none": NONE, "gct": [v + d for v, d in zip(NONE, [1e-4, -1e-4, 2e-4, 0, -2e-4], strict=True)]})
    )
    assert found[1] == "For gct, a difference of 0.027 points or more would have been seen with a probability of 80 %."


def test_equal_scores() -> None:
    found = answer(results({"none": NONE, "gct": NONE}))
    assert found == [
        "Use none: gct has the same accuracy with every seed.",
        "gct cannot be tested: the differences of all seeds are equal. Score more images.",
    ]


def test_one_seed_decides_nothing() -> None:
    assert answer(results({"none": [0.9], "gct": [0.91], "se": [0.905]})) == [
        "One seed decides nothing: the accuracy of gct is 1.00 points higher than that of none, which may be luck.",
        "Train at least 5 seeds: gatewise compare --gates none,gct --seeds 5 --out 'my runs'",
    ]


def test_failed_runs_are_named() -> None:
    found = answer(results({"none": NONE, "gct": BETTER}, failed={"se": "seed 1: the loss is nan"}))
    assert found[-1] == "se failed and is left out (seed 1: the loss is nan)."
    only = answer(results({"none": NONE}, failed={"se": "seed 1: the loss is nan"}))
    assert only == [
        "Nothing to compare: only none has finished.",
        "se failed and is left out (seed 1: the loss is nan).",
    ]


def test_missed_budget_is_said() -> None:
    found = results({"none": NONE, "gaternet:budget=0.5": NOISY})
    found["variants"][1] |= {"budget": 0.5, "open_fraction": [0.75, 0.7, 0.71]}
    sentence = "gaternet:budget=0.5 missed its budget: 0.72 of the gated multiply-adds are open, 0.5 were asked for; "
    assert sentence + "train it for more epochs." in answer(found)
    found["variants"][1]["open_fraction"] = [0.51, 0.49]
    assert not any("budget:" in sentence for sentence in answer(found))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([v - 0.01 for v in BETTER], "It also beats a network without gates that has as many multiply-adds."),
        (NOISY, "Whether it beats wide, which has no gates and as many multiply-adds, was not shown."),
    ],
)
def test_rivals_that_do_not_win(values: list[float], expected: str) -> None:
    found = results({"none": NONE, "gct": BETTER})
    values = [v + d for v, d in zip(values, [0, 1e-4, -1e-4, 2e-4, 0], strict=True)]
    found["variants"][1]["against_rivals"] = rival("wide", values, found["variants"][1])
    found["variants"].append({"gates": "wide", "accuracy": score_row(ACCURACY, values), "rival_of": {"gct": ["macs"]}})
    first, second = answer(found)
    assert first.startswith("Use gct: its accuracy is 1.04 points higher")
    assert second == expected


def test_rival_that_wins_is_recommended() -> None:
    found = results({"none": NONE, "gct": BETTER})
    wide = [0.922, 0.9232, 0.9208, 0.9221, 0.9189]
    found["variants"][1]["against_rivals"] = rival("wide", wide, found["variants"][1])
    found["variants"].append({"gates": "wide", "accuracy": score_row(ACCURACY, wide), "rival_of": {"gct": ["macs"]}})
    (sentence,) = answer(found)
    assert sentence.startswith(
        "Use wide, a network without gates: the accuracy of gct is 1.04 points higher than that of"
    )
    assert sentence.endswith("but that of wide, which costs as much, is 1.10 points higher still.")


def costs(parameters: int, macs: float, milliseconds: float) -> dict[str, Any]:
    return {"parameters": parameters, "macs": macs, "latency_ms": {"1": {"median": milliseconds}}}


def test_costs_of_the_recommended_network() -> None:
    found = results({"none": NONE, "gct": BETTER})
    found["variants"][0] |= costs(1000, 1e6, 2.0)
    found["variants"][1] |= costs(1030, 1e6, 2.5)
    assert answer(found)[1] == (
        "Compared with none it costs 3 % more parameters, no more multiply-adds and 25 % more time for one image (2.50 "
        "instead of 2.00 ms)."
    )
    found["variants"][1] |= costs(500, 0.996e6, 1.0)
    assert answer(found)[1].startswith(
        "Compared with none it costs 50 % less parameters, 0.4 % less multiply-adds and 50 %"
    )


def test_costs_of_gates_that_are_not_recommended() -> None:
    found = results({"none": NONE, "gct": WORSE})
    found["variants"][0] |= costs(1000, 1e6, 2.0)
    found["variants"][1] |= costs(1030, 1e6, 2.5)
    assert answer(found)[1] == "The others take up to 25 % more time for one image."


def test_scores_on_test_images() -> None:
    found = results({"none": NONE, "gct": BETTER})
    found["variants"][0]["test"] = score_row(ACCURACY, [0.8, 0.9])
    found["variants"][1]["test"] = score_row(ACCURACY, [0.86, 0.88])
    assert answer(found)[1] == "On the test images, by which nothing was chosen: 87.00 %, and 85.00 % for none."
