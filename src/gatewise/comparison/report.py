"""The HTML report of a comparison, built from the content of `results.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gatewise.analysis import figures
from gatewise.analysis.drawing import Drawing
from gatewise.analysis.page import Page, Section
from gatewise.analysis.robustness import corruptions_table, draw_corruptions
from gatewise.analysis.score_figures import reliability
from gatewise.analysis.table import Cell, Table
from gatewise.comparison.given_score import score_of
from gatewise.comparison.result_table import interval, table
from gatewise.comparison.rivals import COSTS, shown_cost
from gatewise.core._validation import listed
from gatewise.core.files import write_atomically
from gatewise.core.run_files import RESULTS
from gatewise.core.wording import counted
from gatewise.training import score_named

_MOST_CLASSES = 100  # in a table of the page


def write_report(results: Mapping[str, Any], out: Path) -> None:
    """Write report.html, its figures and results.md to the folder `out`."""
    title = score_of(results).title
    costs, curves = draw_costs(results), draw_curves(results)
    for drawing in (*costs, *curves):
        write_atomically(out / f"{drawing.name}.svg", drawing.svg())
    page = Page(
        title=_title(results),
        lead=_lead(results),
        sections=[
            Section("Answer", " ".join(results["summary"]), drawings=costs),
            Section("Result", _explanation(results), table=table(results)),
            *(
                [Section("Rivals of equal cost", _ABOUT_RIVALS, table=rivals_table(results))]
                if "chosen_rivals" in results
                else []
            ),
            *_further_scores(results),
            *_scores_by_class(results),
            *_corruptions(results),
            *(Section(f"Failed: {name}", reason) for name, reason in results["failed"].items()),
            *([Section("Data", ". ".join(results["notes"]) + ".")] if results.get("notes") else []),
            *([Section(f"Validation {title} while training", drawings=curves)] if curves else []),
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
    seeds = counted(results["seeds"], "seed")
    direction = f"{'higher' if score.higher_is_better else 'lower'} is better"
    if recipe is None:
        return f"{seeds}; {score.title}, {direction}."
    constant = f" For comparison: {results['constant']['sentence']}." if "constant" in results else ""
    return (
        f"{recipe['model']}, {counted(recipe['epochs'], 'epoch')}, {seeds}, {results['validation_images']} validation "
        f"images; {score.title} after the last epoch, evaluated in float32.{constant}"
    )


def draw_costs(results: Mapping[str, Any]) -> list[Drawing]:
    """Draw the score of several networks against the latency of one image, rivals in the colour of their gates."""
    score, variants = score_of(results), results["variants"]
    if len(variants) < 2 or not all("latency_ms" in variant for variant in variants):
        return []
    points = {
        v["gates"]: (v["latency_ms"]["1"]["median"], *(v[score.name][key] for key in ("mean", "low", "high")))
        for v in variants
    }
    rivals = {v["gates"]: next(iter(v["rival_of"])) for v in variants if v.get("rival_of") and "verdict" not in v}
    over = dict.fromkeys(v[score.name].get("over", "seeds") for v in variants if v[score.name]["low"] is not None)
    return [figures.accuracy_against_latency(points, score, rivals, " or ".join(over) or "seeds")]


def draw_curves(results: Mapping[str, Any]) -> list[Drawing]:
    """Draw the validation scores while training, if they were kept."""
    variants = results["variants"]
    if not all(variant.get("curves") and all(variant["curves"]) for variant in variants):
        return []
    curves = {variant["gates"]: variant["curves"] for variant in variants}
    score = score_of(results)
    return [figures.curves(curves, score), *figures.late_curves(curves, score)]


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Return how the comparison was made."""
    facts = {**results.get("environment", {})}
    facts |= {key: results[key] for key in ("precision", "latency", "source") if key in results}
    facts |= _training_facts(results)
    if "recipe" in results:
        facts["recipe"] = ", ".join(f"{key}={value}" for key, value in results["recipe"].items() if value is not None)
    return facts


def _explanation(results: Mapping[str, Any]) -> str:
    """Return what the columns of the table mean."""
    same = _SAME_CONDITIONS if "recipe" in results else ""
    return f"{same}{_ABOUT_TESTS.format(100 * results['level'])}{_ABOUT_COSTS if 'recipe' in results else ''}"


def _training_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the command, the images and the steps of the trainings."""
    training = results.get("training", {})
    facts = {"command": training["command"]} if training.get("command") else {}
    if "images" in training:
        outputs: list[str] = training["outputs"]
        facts["images"] = f"{training['images']:,} training, {results['validation_images']:,} validation"
        facts["outputs"] = f"{len(outputs):,}: {listed(outputs, 20)}"
        facts["steps"] = f"{training['steps']:,} in each training"
    return facts


def _further_scores(results: Mapping[str, Any]) -> list[Section]:
    """Return a section with the task's other scores and the reliability of confidences, if there are any."""
    main = score_of(results)
    rows = {v["gates"]: {main.name: v[main.name], **v.get("scores", {})} for v in results["variants"]}
    shared = set[str].intersection(*map(set, rows.values()))
    names = [name for name in next(iter(rows.values())) if name in shared and not name.endswith("_by_class")]
    if len(names) < 2:
        return []
    scores = [score_named(name) for name in names]
    shown = Table(
        ["gates", *(f"{score.title}{score.unit}" for score in scores)],
        [
            [Cell(gates), *(Cell(interval(score, row[score.name]), row[score.name]["mean"]) for score in scores)]
            for gates, row in rows.items()
        ],
    )
    drawings = []
    if bins := results.get("calibration"):
        drawings.append(reliability({name: torch.tensor(values) for name, values in bins.items()}))
    text = "Means over seeds with 95 % intervals. Verdicts are about the first score only."
    return [Section("Further scores", text, table=shown, drawings=drawings)]


def _scores_by_class(results: Mapping[str, Any]) -> list[Section]:
    """Return a section for each score that the task has by class."""
    found: dict[str, dict[str, Any]] = {v["gates"]: v.get("scores", {}) for v in results["variants"]}
    names = [name for name in next(iter(found.values())) if name.endswith("_by_class")]
    return [_by_class(name, {gates: scores[name] for gates, scores in found.items()}) for name in names]


def _by_class(name: str, found: Mapping[str, Mapping[str, float]]) -> Section:
    title = name.removesuffix("_by_class").replace("_", " ").replace("iou", "IoU")
    classes = list(dict.fromkeys(label for scores in found.values() for label in scores))
    rows = [
        [
            Cell(label),
            *(Cell(f"{100 * of[label]:.2f}", of[label]) if label in of else Cell("-", -1) for of in found.values()),
        ]
        for label in classes[:_MOST_CLASSES]
    ]
    others = f" {RESULTS} also has the other {len(classes) - len(rows)} classes." if len(classes) > len(rows) else ""
    text = f"In %, means over seeds.{others}"
    return Section(f"{title[0].upper()}{title[1:]} by class", text, table=Table(["class", *found], rows))


def _corruptions(results: Mapping[str, Any]) -> list[Section]:
    """Return a section about corrupted images, if there were any."""
    score = score_of(results)
    found = {v["gates"]: v["corruptions"] for v in results["variants"] if "corruptions" in v}
    if not found:
        return []
    lines = [
        f"{name}: {interval(score, one['difference'], '+')}{score.unit} against {results['baseline']}"
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
