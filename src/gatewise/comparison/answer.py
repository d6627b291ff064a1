"""The answer of a comparison in a few sentences: what to use, what it costs, and how to find out what is left open.

Every sentence is made from the content of `results.json` alone.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gatewise.comparison.given_score import score_of
from gatewise.core.statistics import LEVEL
from gatewise.core.wording import counted, is_warning, joined
from gatewise.gaternet.budget import MISSED
from gatewise.training import Score
from gatewise.training.first_facts import FEW_IMAGES, FEW_STEPS

Row = Mapping[str, Any]
_MOST_SEEDS = 100  # that the answer advises
_COSTS = {"params": "parameters", "macs": "multiply-adds", "latency": "milliseconds"}  # that a rival has as many of


def answer(results: Mapping[str, Any]) -> list[str]:
    """Return the sentences, in the order in which they are shown.

    Args:
        results: content of `results.json`.
    """
    score, rows = score_of(results), results["variants"]
    baseline = next(row for row in rows if row["gates"] == results["baseline"])
    gates = [row for row in rows if "verdict" in row]
    chosen = _chosen(score, baseline, gates, rows)
    undecided = [row for row in gates if row["verdict"] == "no difference shown"]
    found = _nothing_learned(results, score, rows) or [
        *_use(results, score, baseline, gates, chosen),
        *_on_test_images(score, baseline, chosen),
        *_costs(baseline, chosen, gates),
        *_missed_budgets(rows),
        *_detect_not_reached(results, score, gates),
        *_still_open(results, score, undecided),
    ]
    found += _limits(results)
    return found + [f"{name} failed and is left out ({reason})." for name, reason in results.get("failed", {}).items()]


def _nothing_learned(results: Mapping[str, Any], score: Score, rows: Sequence[Row]) -> list[str]:
    """Return that no network beats the same answer for every image, by its interval over seeds, if that is so."""
    constant = results.get("constant", {})
    reached = constant.get("score")
    if reached is None or any(_beats(score, row[score.name], reached) for row in rows):
        return []
    always = f"always {constant['answer']} ({score.text(reached)} {score.title})"
    advice = "Train for more epochs, or with another --lr."
    return [f"This comparison decides nothing: no network was shown to be better than {always}. {advice}"]


def _limits(results: Mapping[str, Any]) -> list[str]:
    """Return what limits the worth of the comparison, of which the training has warned, in one sentence."""
    steps, images = results.get("training", {}).get("steps"), results.get("validation_images")
    warnings = sum(is_warning(note) for note in results.get("notes", ()))
    limits = [f"few steps of training ({steps})"] if steps and steps < FEW_STEPS else []
    limits += [f"few validation images ({images})"] if images and images < FEW_IMAGES else []
    limits += [f"{counted(warnings, 'warning')} about the data (see Data in the report)"] if warnings else []
    return [f"Bear in mind: {joined(limits)}."] if limits else []


def _beats(score: Score, row: Row, reached: float) -> bool:
    """Return whether a mean, with the lower end of its interval if it has one, is better than a constant answer."""
    end = row["low" if score.higher_is_better else "high"]
    worst = row["mean"] if end is None else end
    return worst > reached if score.higher_is_better else worst < reached


def _gain(score: Score, row: Row) -> float:
    """Return by how much a row is better than the baseline, in the score's own unit."""
    mean: float = row["difference"]["mean"]
    return mean if score.higher_is_better else -mean


def _chosen(score: Score, baseline: Row, gates: Sequence[Row], rows: Sequence[Row]) -> Row:
    """Return the row to use: gates with the largest gain that was shown, a better rival, or the baseline."""
    better = [row for row in gates if row["verdict"] == "better"]
    if not better:
        return baseline
    best = max(better, key=lambda row: _gain(score, row))
    winners = [rival["gates"] for rival in best.get("against_rivals", {}).values() if rival["verdict"] == "worse"]
    return next((row for row in rows if row["gates"] in winners), best)


def _use(results: Mapping[str, Any], score: Score, baseline: Row, gates: Sequence[Row], chosen: Row) -> list[str]:
    """Return what to use, by how much it is better, than what, and how sure that is."""
    better = sorted((row for row in gates if row["verdict"] == "better"), key=lambda row: -_gain(score, row))
    name, base = chosen["gates"], baseline["gates"]
    if not gates:
        return [f"Nothing to compare: only {base} has finished."]
    if not better:
        return [_why_baseline(results, score, base, gates)]
    best = better[0]
    shown = f"{_by(score, best['difference'])} than that of {base} ({_how_sure(results, score, best, len(gates))})"
    if chosen is not best:
        rival = next(each for each in best["against_rivals"].values() if each["gates"] == name)
        own = f"the {score.title} of {best['gates']} is {shown}"
        still = _by(score, rival["difference"], turned=True)
        return [
            f"Use {name}, a network without gates: {own}, but that of {name}, which costs as much, is {still} still."
        ]
    also = [row["gates"] for row in better[1:]]
    return [
        f"Use {name}: its {score.title} is {shown}.",
        *([f"{joined(also)} {'is' if len(also) == 1 else 'are'} better than {base}, too."] if also else []),
        *_against_rivals(best),
    ]


def _against_rivals(best: Row) -> list[str]:
    """Return whether the chosen gates beat networks without gates that cost as much."""
    rivals: Mapping[str, Row] = best.get("against_rivals", {})
    beaten = [_COSTS[cost] for cost, rival in rivals.items() if rival["verdict"] == "better"]
    open_question = {
        rival["gates"]: _COSTS[cost] for cost, rival in rivals.items() if rival["verdict"] == "no difference shown"
    }
    sentences = [f"It also beats a network without gates that has as many {joined(beaten)}."] if beaten else []
    for name, cost in open_question.items():
        sentences.append(f"Whether it beats {name}, which has no gates and as many {cost}, was not shown.")
    return sentences


def _why_baseline(results: Mapping[str, Any], score: Score, base: str, gates: Sequence[Row]) -> str:
    """Return why no gates are recommended."""
    names = [row["gates"] for row in gates]
    worse = [row["gates"] for row in gates if row["verdict"] == "worse"]
    if results["seeds"] == 1:
        best = max(gates, key=lambda row: _gain(score, row))
        return (
            f"One seed decides nothing: the {score.title} of {best['gates']} is {_by(score, best['difference'])} than "
            f"that of {base}, which may be luck."
        )
    if all(row["difference"]["p"] is None and not row["difference"]["mean"] for row in gates):
        return f"Use {base}: {joined(names)} {_have(names)} the same {score.title} with every seed."
    if worse and len(worse) == len(gates):
        return f"Use {base}: {joined(worse)} {'is' if len(worse) == 1 else 'are all'} worse."
    rest = f"; {joined(worse)} {'is' if len(worse) == 1 else 'are'} worse" if worse else ""
    who = f"{names[0]} was not" if len(gates) == 1 else f"none of the {len(gates)} others was"
    if len(gates) == 1 and names[0] not in worse:
        who += f" shown to be better: its {score.title} is {_by(score, gates[0]['difference'])}"
        return f"Use {base}: {who} ({_interval(score, gates[0]['difference'])}){rest}."
    return f"Use {base}: {who} shown to be better{rest}."


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _by(score: Score, difference: Row, *, turned: bool = False) -> str:
    """Return a difference in words, such as "0.50 points higher"; `turned` looks from the other side."""
    mean = -difference["mean"] if turned else difference["mean"]
    if not mean:
        return "no different"
    return f"{_size(score, abs(mean))} {'higher' if mean >= 0 else 'lower'}"


def _size(score: Score, size: float) -> str:
    """Return a size in words, with the smallest number that is shown if it is below that."""
    shown = score.number(size)
    return f"{shown}{score.points}" if float(shown) else f"less than {shown[:-1]}1{score.points}"


def _interval(score: Score, difference: Row) -> str:
    if difference["low"] is None:
        return "no interval"
    low, high = (score.number(difference[end], "+") for end in ("low", "high"))
    return f"{100 * LEVEL:.0f} % interval {low} to {high}"


def _how_sure(results: Mapping[str, Any], score: Score, row: Row, tests: int) -> str:
    corrected = f", corrected for {tests} comparisons" if tests > 1 else ""
    return f"{_interval(score, row['difference'])}, {results['seeds']} seeds, p = {row['p_holm']:.2g}{corrected}"


def _on_test_images(score: Score, baseline: Row, chosen: Row) -> list[str]:
    """Return the scores on the test images, on which nothing was chosen."""
    if "test" not in chosen or "test" not in baseline or chosen is baseline:
        return []
    own, base = (score.text(row["test"]["mean"]) for row in (chosen, baseline))
    return [f"On the test images, by which nothing was chosen: {own}, and {base} for {baseline['gates']}."]


def _costs(baseline: Row, chosen: Row, gates: Sequence[Row]) -> list[str]:
    """Return what the recommended network costs, compared with the baseline."""
    if "latency_ms" not in chosen:
        return []
    if chosen is baseline:
        slower = [_milliseconds(row) / _milliseconds(baseline) for row in gates]
        if not slower or max(slower) < 1.01:
            return []
        return [f"The others take up to {100 * (max(slower) - 1):.0f} % more time for one image."]
    milliseconds, before = _milliseconds(chosen), _milliseconds(baseline)
    parts = [
        f"{_more(chosen[key], baseline[key])} {what}"
        for key, what in (("parameters", "parameters"), ("macs", "multiply-adds"))
    ]
    time = f"{_more(milliseconds, before)} time for one image ({milliseconds:.2f} instead of {before:.2f} ms)"
    return [f"Compared with {baseline['gates']} it costs {parts[0]}, {parts[1]} and {time}."]


def _milliseconds(row: Row) -> float:
    return row["latency_ms"]["1"]["median"]


def _more(value: float, before: float) -> str:
    """Return by how much a cost is larger, as "3 % more", "0.2 % less" or "no more"."""
    change = 100 * (value / before - 1)
    if abs(change) < 0.05:
        return "no more"
    return f"{abs(change):.{0 if abs(change) >= 2 else 1}f} % {'more' if change > 0 else 'less'}"


def _missed_budgets(rows: Sequence[Row]) -> list[str]:
    """Return which networks keep more or fewer filters open than their budget asks for."""
    sentences: list[str] = []
    for row in rows:
        if (target := row.get("budget")) is None or "open_fraction" not in row:
            continue
        mean = sum(row["open_fraction"]) / len(row["open_fraction"])
        if abs(mean - target) > MISSED:
            sentences.append(
                f"{row['gates']} missed its budget: {mean:.2f} of the gated multiply-adds are open, {target:g} were "
                f"asked for; train it for more epochs."
            )
    return sentences


def _detect_not_reached(results: Mapping[str, Any], score: Score, gates: Sequence[Row]) -> list[str]:
    """Return that the spread between seeds is too large for the difference of --detect, if that is so."""
    detect, seeds = results.get("detect"), results["seeds"]
    limits = [row["detectable"]["points"] for row in gates if row["detectable"]["points"] is not None]
    if detect is None or seeds < detect["most_seeds"] or not limits or max(limits) <= detect["points"]:
        return []
    wanted, most = f"{detect['points']:g}{score.points}", counted(seeds, "seed")
    return [f"A difference of {wanted} (--detect) cannot be seen with {most}, the most that --seeds allows."]


def _still_open(results: Mapping[str, Any], score: Score, undecided: Sequence[Row]) -> list[str]:
    """Return which differences would have been missed, and the command that would show smaller ones."""
    if not undecided:
        return []
    if results["seeds"] == 1:
        return [f"Train at least 5 seeds{_command(results, 5)}"]
    tested = [row for row in undecided if row["detectable"]["points"] is not None]
    names = joined([row["gates"] for row in tested or undecided])
    if not tested and all(len(set(row[score.name]["values"])) == 1 for row in results["variants"]):
        return [f"{names} cannot be tested: no score changes with the seed. Check that the trainings use it."]
    if not tested:
        return [f"{names} cannot be tested: the differences of all seeds are equal. Score more images."]
    limits = [f"{row['detectable']['points']:.2g}" for row in tested]
    equal = len(set(limits)) == 1
    difference = "a difference" if equal else "differences"
    limit = joined(limits[:1] if equal else limits) + score.points
    wanted = {size: _most_seeds(undecided, size) for size in ("0.5", "0.25")}
    for size, seeds in wanted.items():
        missed = f"For {names}, {difference} below {limit} could have been missed"
        if seeds is None or seeds > _MOST_SEEDS:
            many = "more than 10,000" if seeds is None else seeds
            return [
                f"{missed}; {size}{score.points} would take {many} seeds. Fewer suffice with more validation images."
            ]
        if seeds > results["seeds"]:
            return [f"{missed}; to see {size}{score.points}, train {seeds} seeds{_command(results, seeds, size)}"]
    return [f"For {names}, {difference} of {limit} or more would have been seen with a probability of 80 %."]


def _most_seeds(rows: Sequence[Row], size: str) -> int | None:
    """Return the seeds that show a difference for each row, or None if they are too many for one."""
    seeds = [row["detectable"]["seeds_for"][size] for row in rows if row["detectable"]["points"] is not None]
    return None if None in seeds else max(seeds)


def _command(results: Mapping[str, Any], seeds: int, detect: str | None = None) -> str:
    """Return ": " and the command of the comparison with more seeds, or "." if it is not known.

    Args:
        results: content of `results.json`.
        seeds: number of seeds.
        detect: the difference to detect, which replaces that of the command if it has one.
    """
    command: str | None = results.get("training", {}).get("command")
    if command is None:
        return "."
    words, of_detect = shlex.split(command), results.get("detect")
    if detect is not None and of_detect is not None:
        words, seeds = _with_option(words, "--detect", detect), max(seeds, of_detect["most_seeds"])
    words = _with_option(words, "--seeds", str(seeds))
    return f": {shlex.join(words)}"


def _with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """Return the words of a command with another value of an option.

    >>> _with_option(["compare", "--seeds=3", "--unit", "%"], "--seeds", "5")
    ['compare', '--seeds', '5', '--unit', '%']
    """
    split = [part for word in words for part in (word.split("=", 1) if word.startswith(f"{option}=") else [word])]
    if option not in split:
        return [*split, option, value]
    place = split.index(option) + 1
    return [*split[:place], value, *split[place + 1 :]]
