"""Table and HTML report of a finished comparison, built from the content of `results.json`."""

import statistics
from pathlib import Path
from typing import Any

import torch

from gatewise.analysis import figures
from gatewise.analysis.page import Page, Section
from gatewise.analysis.robustness import corruptions_table, draw_corruptions
from gatewise.analysis.score_figures import reliability
from gatewise.analysis.table import Cell, Table
from gatewise.comparison.rivals import COSTS, shown_cost
from gatewise.core._validation import listed
from gatewise.core.files import write_atomically
from gatewise.gaternet.budget import describe_open_fraction
from gatewise.training import Score, score_named


def _interval(score: Score, estimate: dict[str, Any], sign: str = "") -> str:
    """Return "mean [low, high]" in the unit of the score, or "mean" without an interval."""
    mean = score.number(estimate["mean"], sign)
    if estimate["low"] is None:
        return mean
    return f"{mean} [{score.number(estimate['low'], sign)}, {score.number(estimate['high'], sign)}]"


def table(results: dict[str, Any]) -> Table:
    """Return the comparison as a table with one row per choice of gates.

    Args:
        results: content of `results.json`, as returned by `compare`.
    """
    baseline = results["baseline"]
    score = score_named(results.get("score", "accuracy"))
    batch = max(results["variants"][0]["latency_ms"], key=int)
    has_gater = any("open_fraction" in variant for variant in results["variants"])
    has_test = any("test" in variant for variant in results["variants"])
    has_memory = all("peak_memory" in variant for variant in results["variants"])
    has_rivals = any(variant.get("rivals") or variant.get("rival_of") for variant in results["variants"])
    columns = [
        "gates",
        *(["rival of"] if has_rivals else []),
        f"{score.title}{score.unit} [95 % interval]",
        *([f"test {score.title}{score.unit} [95 % interval]"] if has_test else []),
        f"difference to {baseline}, over seeds",
        "verdict (Holm)",
        *(["against rivals of equal cost"] if has_rivals else []),
        "difference, over images",
        "parameters",
        "MACs (M)",
        *(["open"] if has_gater else []),
        "1 image (ms)",
        f"{batch} images (ms)",
        *(["training images/s"] if "training_speed" in results else []),
        *(["peak memory (MB)"] if has_memory else []),
    ]
    rows: list[list[Cell]] = []
    for variant in results["variants"]:
        difference = variant.get("difference")
        one, several = (variant["latency_ms"][size]["median"] for size in ("1", batch))
        speed = statistics.median(variant["training_images_per_second"])
        fractions = variant.get("open_fraction")
        open_fraction = sum(fractions) / len(fractions) if fractions else 1.0
        rows.append([
            Cell(variant["gates"], variant["gates"]),
            *([Cell(_rival_of(variant))] if has_rivals else []),
            Cell(_interval(score, variant[score.name]), variant[score.name]["mean"]),
            *([Cell(_interval(score, variant["test"]), variant["test"]["mean"])] if has_test else []),
            Cell(_interval(score, difference, "+") if difference else "-", difference["mean"] if difference else 0),
            Cell(variant.get("verdict", "-"), variant.get("verdict", "")),
            *([Cell(_against_rivals(score, variant))] if has_rivals else []),
            Cell(
                _interval(score, variant["difference_over_images"], "+") if difference else "-",
                variant["difference_over_images"]["mean"] if difference else 0,
            ),
            Cell(f"{variant['parameters']:,}", variant["parameters"]),
            Cell(f"{variant['macs'] / 1e6:.2f}", variant["macs"]),
            *([Cell(describe_open_fraction(open_fraction, variant.get("budget")), open_fraction)] if has_gater else []),
            Cell(f"{one:.2f}", one),
            Cell(f"{several:.2f}", several),
            *([Cell(f"{speed:,.0f}", speed)] if "training_speed" in results else []),
            *([Cell(f"{variant['peak_memory'] / 1e6:,.0f}", variant["peak_memory"])] if has_memory else []),
        ])
    return Table(columns, rows)


def _rival_of(variant: dict[str, Any]) -> str:
    """Return what a row is a rival of, as "gct (macs, latency)"."""
    return "; ".join(f"{name} ({', '.join(costs)})" for name, costs in variant.get("rival_of", {}).items()) or "-"


def _against_rivals(score: Score, variant: dict[str, Any]) -> str:
    """Return the difference to each rival and its verdict, as "macs: +0.31 [-0.12, 0.74] no difference shown"."""
    return (
        "; ".join(
            f"{cost}: {_interval(score, judged['difference'], '+')} {judged['verdict']}"
            for cost, judged in variant.get("against_rivals", {}).items()
        )
        or "-"
    )


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write report.html, its figures and results.md to the folder `out`."""
    variants, score = results["variants"], score_named(results["score"])
    title = score.title
    curves = figures.curves({variant["gates"]: variant["curves"] for variant in variants}, score)
    latencies = {
        v["gates"]: (v["latency_ms"]["1"]["median"], *(v[score.name][key] for key in ("mean", "low", "high")))
        for v in variants
    }
    points = figures.accuracy_against_latency(latencies, score)
    write_atomically(out / "curves.svg", curves.svg())
    write_atomically(out / "accuracy_latency.svg", points.svg())
    recipe = results["recipe"]
    page = Page(
        title=f"Gates compared on {Path(recipe['data']).name}",
        lead=f"{recipe['model']}, {recipe['epochs']} epochs, {results['seeds']} seeds, "
        f"{results['validation_images']} validation images; {title} after the last epoch, evaluated in float32."
        + (f" For comparison: {results['constant']['sentence']}." if "constant" in results else ""),
        sections=[
            Section("Result", " ".join([_EXPLANATION, *results.get("summary", [])]), table=table(results)),
            *(
                [Section("Rivals of equal cost", _ABOUT_RIVALS, table=rivals_table(results))]
                if "chosen_rivals" in results
                else []
            ),
            *_further_scores(results, score),
            *_corruptions(results, score),
            *(Section(f"Failed: {name}", reason) for name, reason in results["failed"].items()),
            *([Section("Data", ". ".join(results["notes"]) + ".")] if results.get("notes") else []),
            Section(f"Validation {title} while training", drawings=[curves]),
            Section(f"Validation {title} against latency", drawings=[points]),
        ],
        facts={
            **results["environment"],
            "precision": results["precision"],
            "latency": results["latency"],
            **_training_facts(results),
            "recipe": ", ".join(f"{key}={value}" for key, value in recipe.items()),
        },
    )
    write_atomically(out / "report.html", page.render())
    write_atomically(out / "results.md", table(results).markdown() + "\n")


def _training_facts(results: dict[str, Any]) -> dict[str, str]:
    """Return the command, the images and the steps of the trainings."""
    if (training := results.get("training")) is None:
        return {}
    outputs: list[str] = training["outputs"]
    return {
        "command": training["command"],
        "images": f"{training['images']:,} training, {results['validation_images']:,} validation",
        "outputs": f"{len(outputs):,}: {listed(outputs, 20)}",
        "steps": f"{training['steps']:,} in each training",
    }


def _further_scores(results: dict[str, Any], main: Score) -> list[Section]:
    """Return a section with the task's other scores and the reliability of confidences, if there are any."""
    rows = {v["gates"]: {main.name: v[main.name], **v.get("scores", {})} for v in results["variants"]}
    names = [name for name in next(iter(rows.values())) if not name.endswith("_by_class")]
    if len(names) < 2:
        return []
    scores = [score_named(name) for name in names]
    table = Table(
        ["gates", *(f"{score.title}{score.unit}" for score in scores)],
        [
            [Cell(gates), *(Cell(_interval(score, row[score.name]), row[score.name]["mean"]) for score in scores)]
            for gates, row in rows.items()
        ],
    )
    drawings = []
    if bins := results.get("calibration"):
        drawings.append(reliability({name: torch.tensor(values) for name, values in bins.items()}))
    text = "Means over seeds with 95 % intervals. Verdicts are about the first score only."
    return [Section("Further scores", text, table=table, drawings=drawings)]


def _corruptions(results: dict[str, Any], score: Score) -> list[Section]:
    """Return a section about corrupted images, if there were any."""
    found = {v["gates"]: v["corruptions"] for v in results["variants"] if "corruptions" in v}
    if not found:
        return []
    lines = [
        f"{name}: {_interval(score, one['difference'], '+')}{score.unit} against {results['baseline']}"
        + (f", {one['verdict']}." if "verdict" in one else ".")
        for name, one in found.items()
        if "difference" in one
    ]
    text = f"{_ABOUT_CORRUPTIONS} {' '.join(lines)}"
    drawing = draw_corruptions(found, score)
    return [Section("Corrupted images", text, table=corruptions_table(found, score), drawings=[drawing])]


_ABOUT_CORRUPTIONS = (
    "All networks were scored on the same validation images with 15 common corruptions in five strengths, as in "
    "ImageNet-C, and for images below 64 pixels as in CIFAR-10-C. The differences are those of the mean over all "
    "corruptions and strengths, paired by seed; the verdicts are corrected by Holm's method."
)


def rivals_table(results: dict[str, Any]) -> Table:
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
_EXPLANATION = (
    "For each seed, all gates start from the same backbone weights and train on the same images in the same order. "
    "Differences over seeds are paired by seed, with a t interval: they estimate the variation between trainings. "
    "Differences over images are a paired bootstrap of these trained networks: they estimate the variation between "
    "validation images. The verdict is the test over seeds at 5 %, corrected for the number of gates by Holm's method; "
    "'no difference shown' does not mean 'equal'. MACs count convolutions and matrix products; for a GaterNet they "
    "count the open filters and the gater. The latency of a GaterNet is that of the masked form, which also computes "
    "closed filters; 'open' is the fraction of the gated filters' MACs that belongs to open filters."
)
