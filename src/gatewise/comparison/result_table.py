"""The table of a comparison, built from the content of `results.json`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

from gatewise.analysis.table import Cell, Table
from gatewise.comparison.given_score import score_of
from gatewise.gaternet.budget import describe_open_fraction
from gatewise.training import Score

Row = Mapping[str, Any]


def table(results: Row) -> Table:
    """Return the comparison as a table with one row per choice of gates.

    Args:
        results: content of `results.json`, as returned by `compare` and `judge`.
    """
    columns = _columns(results)
    rows = [[cell(variant) for _, cell in columns] for variant in results["variants"]]
    return Table([title for title, _ in columns], rows)


def _columns(results: Row) -> list[tuple[str, Callable[[Row], Cell]]]:
    """Return the title of each column, and what makes its cells; a column without numbers is left out."""
    score, variants = score_of(results), results["variants"]
    scores = f"{score.title}{score.unit} [95 % interval]"

    def any_has(*keys: str) -> bool:
        return any(variant.get(key) for variant in variants for key in keys)

    columns: list[tuple[str, Callable[[Row], Cell]]] = [("gates", lambda v: Cell(v["gates"], v["gates"]))]
    if any_has("rivals", "rival_of"):
        columns.append(("rival of", lambda v: Cell(_rival_of(v))))
    columns.append((scores, partial(_estimate, score, score.name)))
    if any_has("test"):
        columns.append((f"test {scores}", partial(_estimate, score, "test")))
    columns += [
        (f"difference to {results['baseline']}, over seeds", partial(_estimate, score, "difference", sign="+")),
        ("verdict (Holm)", lambda v: Cell(v.get("verdict", "-"), v.get("verdict", ""))),
        (f"detectable{score.points} (80 %)", _detectable),
    ]
    if any_has("rivals", "rival_of"):
        columns.append(("against rivals of equal cost", lambda v: Cell(_against_rivals(score, v))))
    if any_has("difference_over_images"):
        columns.append(("difference, over images", partial(_estimate, score, "difference_over_images", sign="+")))
    columns += _cost_columns(variants)
    if results.get("training_speed"):  # the runs' own speeds are not comparable
        columns.append(("training images/s", _training_speed))
    if all("peak_memory" in variant for variant in variants):
        columns.append(("peak memory (MB)", lambda v: Cell(f"{v['peak_memory'] / 1e6:,.0f}", v["peak_memory"])))
    return columns


def _cost_columns(variants: Sequence[Row]) -> list[tuple[str, Callable[[Row], Cell]]]:
    """Return the columns about parameters, multiply-adds and latency."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = []
    if all("parameters" in variant for variant in variants):
        columns.append(("parameters", lambda v: Cell(f"{v['parameters']:,}", v["parameters"])))
    if all("macs" in variant for variant in variants):
        columns.append(("MACs (M)", lambda v: Cell(f"{v['macs'] / 1e6:.2f}", v["macs"])))
    if any("open_fraction" in variant for variant in variants):
        columns.append(("open", _open_fraction))
    if all("latency_ms" in variant for variant in variants):
        batch = max(variants[0]["latency_ms"], key=int)
        columns += [
            ("1 image (ms)", partial(_milliseconds, "1")),
            (f"{batch} images (ms)", partial(_milliseconds, batch)),
        ]
    return columns


def _estimate(score: Score, key: str, variant: Row, sign: str = "") -> Cell:
    """Return a mean with its interval; the baseline has no difference."""
    if key not in variant:
        return Cell("-", 0)
    return Cell(interval(score, variant[key], sign), variant[key]["mean"])


def _detectable(variant: Row) -> Cell:
    """Return the difference that would have been shown with a probability of 80 %."""
    points = variant.get("detectable", {}).get("points")
    return Cell("-") if points is None else Cell(f"{points:.2g}", points)


def _open_fraction(variant: Row) -> Cell:
    fraction = mean(variant.get("open_fraction", [1.0]))
    return Cell(describe_open_fraction(fraction, variant.get("budget")), fraction)


def _milliseconds(batch: str, variant: Row) -> Cell:
    milliseconds = variant["latency_ms"][batch]["median"]
    return Cell(f"{milliseconds:.2f}", milliseconds)


def _training_speed(variant: Row) -> Cell:
    speed = median(variant["training_images_per_second"])
    return Cell(f"{speed:,.0f}", speed)


def _rival_of(variant: Row) -> str:
    """Return what a row is a rival of, as "gct (macs, latency)"."""
    return "; ".join(f"{name} ({', '.join(costs)})" for name, costs in variant.get("rival_of", {}).items()) or "-"


def _against_rivals(score: Score, variant: Row) -> str:
    """Return the difference to each rival and its verdict, as "macs: +0.31 [-0.12, 0.74] no difference shown"."""
    return (
        "; ".join(
            f"{cost}: {interval(score, judged['difference'], '+')} {judged['verdict']}"
            for cost, judged in variant.get("against_rivals", {}).items()
        )
        or "-"
    )


def interval(score: Score, estimate: Row, sign: str = "") -> str:
    """Return "mean [low, high]" in the unit of the score, with what the interval is over if it is not over seeds."""
    number = score.number(estimate["mean"], sign)
    if estimate["low"] is None:
        return f"{number} (no interval)"
    over = f" over {estimate['over']}" if "over" in estimate else ""
    return f"{number} [{score.number(estimate['low'], sign)}, {score.number(estimate['high'], sign)}]{over}"
