"""The HTML report of a comparison, built from the content of `results.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatewise.analysis import figures
from gatewise.analysis.drawing import Drawing
from gatewise.analysis.page import Page, Section
from gatewise.analysis.table import Cell, Table
from gatewise.comparison.given_score import score_of
from gatewise.comparison.result_table import table
from gatewise.comparison.rivals import COSTS, shown_cost
from gatewise.core.files import write_atomically


def write_report(results: Mapping[str, Any], out: Path) -> None:
    """Write report.html, its figures and results.md to the folder `out`."""
    title = score_of(results).title
    costs, curves = _score_against_latency(results), _curves(results)
    for drawing, file in ((costs, "accuracy_latency.svg"), (curves, "curves.svg")):
        if drawing is not None:
            write_atomically(out / file, drawing.svg())
    page = Page(
        title=_title(results),
        lead=_lead(results),
        sections=[
            Section("Answer", " ".join(results["summary"]), drawings=[] if costs is None else [costs]),
            Section("Result", _explanation(results), table=table(results)),
            *(
                [Section("Rivals of equal cost", _ABOUT_RIVALS, table=rivals_table(results))]
                if "chosen_rivals" in results
                else []
            ),
            *(Section(f"Failed: {name}", reason) for name, reason in results["failed"].items()),
            *([Section("Data", ". ".join(results["notes"]) + ".")] if results.get("notes") else []),
            *([] if curves is None else [Section(f"Validation {title} while training", drawings=[curves])]),
        ],
        facts=_facts(results),
    )
    write_atomically(out / "report.html", page.render())
    write_atomically(out / "results.md", f"{' '.join(results['summary'])}\n\n{table(results).markdown()}\n")


def _title(results: Mapping[str, Any]) -> str:
    if "recipe" not in results:
        return f"Networks compared: {Path(results['source']).name}"
    return f"Gates compared on {Path(results['recipe']['data']).name}"


def _lead(results: Mapping[str, Any]) -> str:
    """Return what was trained and how it was scored."""
    score, recipe = score_of(results), results.get("recipe")
    seeds = f"{results['seeds']} seed{'s' * (results['seeds'] != 1)}"
    direction = f"{'higher' if score.higher_is_better else 'lower'} is better"
    if recipe is None:
        return f"{seeds}; {score.title}, {direction}."
    constant = f" For comparison: {results['constant']['sentence']}." if "constant" in results else ""
    return (
        f"{recipe['model']}, {recipe['epochs']} epochs, {seeds}, {results['validation_images']} validation images; "
        f"{score.title} after the last epoch.{constant}"
    )


def _score_against_latency(results: Mapping[str, Any]) -> Drawing | None:
    """Draw the score against the latency of one image, rivals in the colour of their gates, or return None."""
    score, variants = score_of(results), results["variants"]
    if not all("latency_ms" in variant for variant in variants):
        return None
    points = {
        v["gates"]: (v["latency_ms"]["1"]["median"], *(v[score.name][key] for key in ("mean", "low", "high")))
        for v in variants
    }
    rivals = {v["gates"]: next(iter(v["rival_of"])) for v in variants if v.get("rival_of") and "verdict" not in v}
    return figures.accuracy_against_latency(points, score, rivals)


def _curves(results: Mapping[str, Any]) -> Drawing | None:
    """Draw the validation scores while training, or return None if they were not kept."""
    variants = results["variants"]
    if not all(variant.get("curves") and all(variant["curves"]) for variant in variants):
        return None
    return figures.curves({variant["gates"]: variant["curves"] for variant in variants}, score_of(results))


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Return how the comparison was made."""
    facts = {**results.get("environment", {})}
    facts |= {key: results[key] for key in ("precision", "latency", "source") if key in results}
    if "recipe" in results:
        facts["recipe"] = ", ".join(f"{key}={value}" for key, value in results["recipe"].items())
    return facts


def _explanation(results: Mapping[str, Any]) -> str:
    """Return what the columns of the table mean."""
    same = _SAME_CONDITIONS if "recipe" in results else ""
    return f"{same}{_ABOUT_TESTS.format(100 * results['level'])}{_ABOUT_COSTS if 'recipe' in results else ''}"


def rivals_table(results: Mapping[str, Any]) -> Table:
    """Return the rival of each choice of gates and kind of cost, with both costs, measured before the trainings."""
    rows = []
    for rival in results["chosen_rivals"]:
        values = [rival["of_gates"], rival["of_network"]]
        quartiles = [rival["quartiles"].get(name) for name in ("gates", "network")]
        costs = [
            Cell("-") if value is None else Cell(shown_cost(rival["cost"], value, spread), value)
            for value, spread in zip(values, quartiles, strict=True)
        ]
        network = rival["network"] or f"none: {rival['why']}"
        rows.append([Cell(rival["gates"]), Cell(COSTS[rival["cost"]]), Cell(network), *costs])
    return Table(["gates", "cost", "plain network", "cost with gates", "cost of the plain network"], rows)


_ABOUT_RIVALS = (
    "A rival is the plain network, wider or narrower, that costs as much as the network with gates. It was chosen "
    "before any training; a network whose cost is within 2 % is taken as it is. Latencies were measured in turn, with "
    "quartiles over the rounds; the multiply-adds of a GaterNet are those expected when it meets its budget."
)
_SAME_CONDITIONS = (
    "For each seed, all gates start from the same backbone weights and train on the same images in the same order. "
)
_ABOUT_TESTS = (
    "Differences over seeds are paired by seed, with a t interval: they estimate the variation between trainings. "
    "Differences over images are a paired bootstrap of these trained networks: they estimate the variation between "
    "validation images. The verdict is the test over seeds at {:g} %, corrected for the number of gates by Holm's "
    "method; 'no difference shown' does not mean 'equal': 'detectable' is the smallest true difference that this "
    "comparison would have shown with a probability of 80 %, given the spread between its seeds. "
)
_ABOUT_COSTS = (
    "MACs count convolutions and matrix products; for a GaterNet they count the open filters and the gater. The "
    "latency of a GaterNet is that of the masked form, which also computes closed filters; 'open' is the fraction of "
    "the gated filters' MACs that belongs to open filters."
)
