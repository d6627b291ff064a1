"""Compare gates on equal terms: same recipe, data order and initial backbone for every gate of a seed.

`out/runs/GATES/seed_N` are ordinary run folders; runs that are there already are not run again. `results.json`,
`results.md`, `report.html` and two figures are written at the end, from the runs alone.
"""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import _checks, measure
from gatewise.analysis import figures, statistics
from gatewise.analysis.page import Page, Section
from gatewise.analysis.table import Cell, Table
from gatewise.checkpoint import load_model, read_metrics, read_tensors
from gatewise.data import Dataset, PairDataset
from gatewise.files import (
    read_json_lines,
    refuse_newer,
    refuse_unwritable,
    remove_leftovers,
    write_atomically,
    write_json,
)
from gatewise.spec import Gates, format_gates
from gatewise.training import TITLES, Interrupted, Progress, Recipe, build_model, holds_run, refuse_newer_run, train

SCHEMA = 1
BATCHES = {"classify": 32, "segment": 8}  # images of the second latency
_ROUNDS = 15


def compare(
    recipe: Recipe,
    gates: Sequence[Gates],
    seeds: int,
    out: str | Path,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every choice of gates with every seed, and return what `results.json` holds.

    Args:
        recipe: what all runs share; its gate and seed are replaced.
        gates: one entry per network to compare; () is the network without gates. The first () is the baseline of
            all differences, or the first entry where there is none.
        seeds: how many, counted from 0.
        out: the folder of the comparison; an interrupted one goes on.
        workers: see `train`.
        progress: where to show progress; None shows nothing.

    A choice whose training fails with one of the seeds is left out of the table and listed under "failed"; if all fail,
    `TrainingError` is raised, and so it is where files cannot be written. Refused with ValueError: fewer than one seed,
    no gates, a folder that holds runs of another recipe or files of a newer format.
    """
    _checks.integer_at_least(1, seeds=seeds)
    if not gates:
        raise _checks.InvalidValueError("no gates to compare; give at least one choice, for example none,gct.")
    out, progress = Path(out), progress or Progress(quiet=True)
    if holds_run(out):
        raise _checks.InvalidValueError(f"{out} holds a single run. Choose another --out.")
    refuse_newer(out / "results.json", SCHEMA, "schema")
    runs = {format_gates(choice): [_folder(out, choice, seed) for seed in range(seeds)] for choice in gates}
    recipes = {
        folder: recipe.of_comparison(name, seed)
        for name, folders in runs.items()
        for seed, folder in enumerate(folders)
    }
    dataset = _checked_dataset(recipe, recipes, list(runs), out)
    refuse_unwritable(out)
    remove_leftovers(out)
    failed: dict[str, str] = {}
    for seed in range(seeds):  # seed by seed, so that a slow hour of the machine meets all gates
        for name, folders in runs.items():
            progress.say(f"run {seed * len(runs) + list(runs).index(name) + 1} of {len(recipes)}: {name}, seed {seed}")
            run = recipes[folders[seed]]
            try:
                train(run, folders[seed], resume=True, dataset=dataset, workers=workers, progress=progress)
            except Interrupted as error:
                raise Interrupted(str(error).removesuffix(" and --resume"), error.signal) from None
            except _checks.UnsavedError:  # the next one would find the disk as full
                raise
            except _checks.TrainingError as error:
                failed.setdefault(name, f"seed {seed}: {error}")
                progress.say(f"{name} failed, {failed[name]}")
    if len(failed) == len(runs):
        raise _checks.TrainingError("; ".join(f"{name}, {reason}" for name, reason in failed.items()))
    progress.say("measuring latency")
    results = _results(recipe, {name: folders for name, folders in runs.items() if name not in failed}, seeds)
    results["failed"] = failed
    write_json(out / "results.json", results)
    _write_report(results, out)
    return results


def _checked_dataset(recipe: Recipe, recipes: dict[Path, Recipe], names: list[str], out: Path) -> Dataset | PairDataset:
    """Return the images after refusing all that can be refused at once: before hours of training, not after them."""
    for field, unused in (("gate_epochs", 0), ("gater_init", None)):
        if getattr(recipe, field) and all(getattr(run, field) == unused for run in recipes.values()):
            raise _checks.InvalidValueError(
                f"{field} is {getattr(recipe, field)!r}, but none of {','.join(names)} has a use for it. Leave it out."
            )
    for file in sorted((out / "runs").glob("*/seed_*/recipe.yaml")):
        if not holds_run(file.parent):
            continue
        refuse_newer_run(file.parent)
        there = Recipe.load(file)
        there.refuse_other(recipe.of_comparison(there.gate, there.seed), file.parent)
    dataset = recipe.source.load()
    for name in names:
        build_model(recipe.of_comparison(name, 0), dataset)
    for run in recipes.values():
        for weights in filter(None, (run.initial_weights, run.initial_gater)):
            _checks.existing_path("weights", weights)
    return dataset


def _folder(out: Path, choice: Gates, seed: int) -> Path:
    slug = re.sub(r"[^a-zA-Z0-9_.=-]+", "-", format_gates(choice).replace(":", "--"))
    return out / "runs" / slug / f"seed_{seed}"


def _results(recipe: Recipe, runs: dict[str, list[Path]], seeds: int) -> dict[str, Any]:
    """Gather the numbers of finished runs."""
    baseline = "none" if "none" in runs else next(iter(runs))
    metrics = {name: [read_metrics(folder) for folder in folders] for name, folders in runs.items()}
    score = metrics[baseline][0].get("score", "accuracy")
    accuracies = {name: [run[score] for run in seeds_of] for name, seeds_of in metrics.items()}
    images = {name: torch.stack([_by_image(folder) for folder in folders]) for name, folders in runs.items()}
    differences = {
        name: statistics.paired_difference(accuracies[name], accuracies[baseline]) for name in runs if name != baseline
    }
    corrected = dict(zip(differences, statistics.holm([d.p for d in differences.values()]), strict=True))
    models = {name: load_model(folders[0]) for name, folders in runs.items()}
    costs = _costs(models, BATCHES[recipe.task])
    variants = []
    for name, folders in runs.items():
        rows = [_log(folder) for folder in folders]
        variant: dict[str, Any] = {
            "gates": name,
            score: {**dataclasses.asdict(statistics.mean_interval(accuracies[name])), "values": accuracies[name]},
            "parameters": metrics[name][0]["parameters"],
            **costs[name],
            **_work(metrics[name]),
            "training_images_per_second": [run["images_per_second"] for run in metrics[name]],
            "curves": [[row[f"validation_{score}"] for row in log] for log in rows],
        }
        if name != baseline:
            by_image = _BOOTSTRAPS[score](images[name], images[baseline])
            variant["difference"] = dataclasses.asdict(differences[name])
            variant["difference_over_images"] = dataclasses.asdict(by_image)
            variant["p_holm"] = corrected[name]
            variant["verdict"] = statistics.verdict(differences[name], corrected[name])
        variants.append(variant)
    return {
        "schema": SCHEMA,
        "recipe": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in {"gate", "seed"}},
        "seeds": seeds,
        "baseline": baseline,
        "precision": metrics[baseline][0]["precision"],
        "score": score,
        "validation_images": images[baseline].shape[1],
        "environment": metrics[baseline][0]["environment"],
        "latency": f"float32, eager, median of {_ROUNDS} interleaved rounds; results.json has quartiles",
        "variants": variants,
    }


def _work(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what networks that choose their filters did on the validation images, over seeds."""
    if "executed_macs" not in runs[0]:
        return {}
    return {
        "macs": statistics.mean_interval([run["executed_macs"] for run in runs]).mean,
        "open_fraction": [run["open_fraction"] for run in runs],
    }


def _costs(models: dict[str, tuple[nn.Module, dict[str, Any]]], images: int) -> dict[str, dict[str, Any]]:
    """Measure multiply-adds and latency of one image and several of all models, interleaved."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = next(iter(models.values()))[1]
    image = torch.randn(1, config["in_chans"], *config["image_size"], device=device)
    nets = {name: model.to(device) for name, (model, _) in models.items()}
    costs: dict[str, dict[str, Any]] = {
        name: {"macs": measure.macs_per_sample(net, image), "latency_ms": {}} for name, net in nets.items()
    }
    for batch in (1, images):
        example = image.repeat(batch, 1, 1, 1)
        for name, latency in measure.inference_latency(nets, example, rounds=_ROUNDS).items():
            costs[name]["latency_ms"][str(batch)] = {
                "median": 1e3 * latency.median_s,
                "low": 1e3 * latency.low_s,
                "high": 1e3 * latency.high_s,
            }
    return costs


def _by_image(folder: Path) -> Tensor:
    """Return which validation images a run classified rightly, or what masks and predictions share of each."""
    tensors = read_tensors(folder / "predictions.safetensors")
    return tensors["overlaps"] if "overlaps" in tensors else tensors["predictions"] == tensors["labels"]


_BOOTSTRAPS = {
    "accuracy": statistics.image_bootstrap,
    "miou": statistics.iou_bootstrap,
    "iou": partial(statistics.iou_bootstrap, foreground=True),
}


def _log(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "log.jsonl")


def _interval(estimate: dict[str, Any], *, sign: str = "") -> str:
    """Write "mean [low, high]" in percent."""
    mean = f"{100 * estimate['mean']:{sign}.2f}"
    if estimate["low"] is None:
        return mean
    return f"{mean} [{100 * estimate['low']:{sign}.2f}, {100 * estimate['high']:{sign}.2f}]"


def table(results: dict[str, Any]) -> Table:
    """Return the comparison as a table, for a terminal or a page."""
    baseline = results["baseline"]
    score = results.get("score", "accuracy")
    batch = max(results["variants"][0]["latency_ms"], key=int)
    chooses = any("open_fraction" in variant for variant in results["variants"])
    columns = [
        "gates",
        f"{TITLES[score]} % [95 % interval]",
        f"difference to {baseline}, over seeds",
        "verdict (Holm)",
        "difference, over images",
        "parameters",
        "MACs (M)",
        *(["open"] if chooses else []),
        "1 image (ms)",
        f"{batch} images (ms)",
        "training images/s",
    ]
    rows = []
    for variant in results["variants"]:
        difference = variant.get("difference")
        one, several = (variant["latency_ms"][size]["median"] for size in ("1", batch))
        speeds = sorted(variant["training_images_per_second"])
        speed = speeds[len(speeds) // 2]
        opened = variant.get("open_fraction")
        opened = sum(opened) / len(opened) if opened else 1.0
        rows.append([
            Cell(variant["gates"], variant["gates"]),
            Cell(_interval(variant[score]), variant[score]["mean"]),
            Cell(_interval(difference, sign="+") if difference else "-", difference["mean"] if difference else 0),
            Cell(variant.get("verdict", "-"), variant.get("verdict", "")),
            Cell(
                _interval(variant["difference_over_images"], sign="+") if difference else "-",
                variant["difference_over_images"]["mean"] if difference else 0,
            ),
            Cell(f"{variant['parameters']:,}", variant["parameters"]),
            Cell(f"{variant['macs'] / 1e6:.2f}", variant["macs"]),
            *([Cell(f"{opened:.3f}", opened)] if chooses else []),
            Cell(f"{one:.2f}", one),
            Cell(f"{several:.2f}", several),
            Cell(f"{speed:,.0f}", speed),
        ])
    return Table(columns, rows)


def _write_report(results: dict[str, Any], out: Path) -> None:
    variants, score = results["variants"], results["score"]
    title = TITLES[score]
    curves = figures.curves({variant["gates"]: variant["curves"] for variant in variants}, title)
    latencies = {
        v["gates"]: (v["latency_ms"]["1"]["median"], *(v[score][key] for key in ("mean", "low", "high")))
        for v in variants
    }
    points = figures.accuracy_against_latency(latencies, title)
    write_atomically(out / "curves.svg", curves.svg())
    write_atomically(out / "accuracy_latency.svg", points.svg())
    recipe = results["recipe"]
    page = Page(
        title=f"Gates compared on {Path(recipe['data']).name}",
        lead=f"{recipe['model']}, {recipe['epochs']} epochs, {results['seeds']} seeds, "
        f"{results['validation_images']} validation images; {title} after the last epoch.",
        sections=[
            Section("Result", _EXPLANATION, table=table(results)),
            *(Section(f"Failed: {name}", reason) for name, reason in results["failed"].items()),
            Section(f"Validation {title} while training", drawings=[curves]),
            Section(f"Validation {title} against latency", drawings=[points]),
        ],
        facts={
            **results["environment"],
            "precision": results["precision"],
            "latency": results["latency"],
            "recipe": ", ".join(f"{key}={value}" for key, value in recipe.items()),
        },
    )
    write_atomically(out / "report.html", page.render())
    write_atomically(out / "results.md", table(results).markdown() + "\n")


_EXPLANATION = (
    "Every gate of a seed starts from the same backbone weights and sees the same images in the same order. "
    "Differences over seeds are paired by seed, with a t interval: would another training give the same? "
    "Differences over images are a paired bootstrap with these trained networks: would other images? "
    "The verdict is the test over seeds at 5 %, corrected for the number of gates by Holm's method; "
    "'no difference shown' is not 'equal'. MACs count convolutions and matrix products; of networks that choose their "
    "filters those of the open filters, the gater's own included. Their latency is that of the masked form, which "
    "computes closed filters too; 'open' is the share of the gated filters' MACs that is open."
)
