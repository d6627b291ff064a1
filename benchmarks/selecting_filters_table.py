"""Summarise the runs of selecting_filters.sh, finished or not: a table for each part, as markdown and as JSON.

    python benchmarks/selecting_filters_table.py OUT

Writes OUT/table.md and OUT/table.json, and lists the runs of OUT/plan.txt that are missing. Differences are paired: to
the plain network, and to the narrower one that learns like the form (from a teacher or without); their intervals are a
bootstrap over images and, from two seeds on, a t interval over seeds. The epochs, images and core-minutes of a run that
begins with another one include those of that one; what the teacher's training took is not included. `~` marks
core-minutes from the times of the steps in the log, where core_seconds.txt is missing.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gatewise import errors
from gatewise.analysis.route_use import record_routes
from gatewise.analysis.table import Cell, Table
from gatewise.comparison.verdicts import difference_row, judged, score_row
from gatewise.core import statistics
from gatewise.core.files import read_json, write_atomically, write_json
from gatewise.gaternet import GaterNet
from gatewise.gaternet.budget import describe_open_fraction
from gatewise.graph.measure import macs_per_sample
from gatewise.models import import_network
from gatewise.training import evaluate
from gatewise.training.run_folder import read_log
from gatewise.training.runs import Run

Row = dict[str, Any]
_MEASURED = "measured.json"  # in the folder of a run: what this program has computed from its weights
_PLAIN, _NARROW, _TAUGHT = "plain", "narrow", "-taught"


# ---- one run ---------------------------------------------------------------------------------------------------------


@functools.cache
def _load(source: Any) -> Any:
    return source.load()


def opened(folder: Path) -> Run:
    run = Run.open(folder)
    run.load = _load  # one copy of the images for all runs
    return run


def measured(run: Run) -> Row:
    """Return multiply-adds, the use of routes, and which test images are correct, computed once for these weights.

    Without the network or the images, "missing" has the reason, and what needs them is not there or None.
    """
    file = run.folder / _MEASURED
    known: Row = read_json(file) if file.exists() else {}
    if known.get("sha256") == run.config["sha256"] and "missing" not in known:
        return known
    found: Row = {"sha256": run.config["sha256"], "macs": run.metrics.get("executed_macs")}
    try:
        net = run.network()
    except errors.GatewiseError as error:
        return {**found, "missing": str(error)}
    if found["macs"] is None:
        found["macs"] = macs_per_sample(net, torch.zeros(1, run.config["in_chans"], *run.config["image_size"]))
    if run.dataset is None:
        found["missing"] = run.missing
    else:
        if "test" in run.metrics:
            test = run.of("test")  # type: ignore[arg-type]
            record = evaluate(net, test.batches(), run.new_results()).record
            found["test"] = run.task.by_image(record).int().tolist()
        if isinstance(net, GaterNet) and net.routes is not None:
            use = record_routes(net, run.by_class(), len(run.classes))
            found["routes"] = {"shares": use.shares, "bits_about_class": use.shared_information}
    write_json(file, found)
    return found


def cost(run: Run) -> Row:
    """Return epochs, images and core-minutes of a run and of what it begins with; None where unknown."""
    recipe, steps = run.recipe, run.log[-1].get("step")
    attempts, exact = _core_seconds(run), (run.folder / "core_seconds.txt").exists()
    own: Row = {
        "epochs": len(run.log),
        "images": None if steps is None else steps * recipe.batch_size,
        "core_minutes": None if attempts is None else attempts / 60,
        "exact": exact,
    }
    before = _begins_with(run)
    if before is None:
        return own
    try:
        earlier = cost(opened(before))
    except errors.GatewiseError:
        return {"epochs": None, "images": None, "core_minutes": None, "exact": False}
    total = {
        name: None if None in (own[name], earlier[name]) else own[name] + earlier[name]
        for name in ("epochs", "images", "core_minutes")
    }
    return {**total, "exact": own["exact"] and earlier["exact"]}


def _core_seconds(run: Run) -> float | None:
    file = run.folder / "core_seconds.txt"
    if file.exists():
        return sum(float(word) for word in file.read_text().split())
    seconds = [row.get("seconds") for row in run.log]
    threads = run.metrics["environment"]["hardware"].rpartition(", ")[2].split()[0]
    return sum(seconds) * int(threads) if None not in seconds and threads.isdigit() else None


def _begins_with(run: Run) -> Path | None:
    """Return the run whose weights a run begins with, or None."""
    if (initial := run.recipe.initial_weights) is not None:
        return Path(initial)
    if (file := run.spec.model_options.get("file")) is not None:
        if not Path(file).exists():
            return Path(file)  # no run: its cost is unknown
        with safe_open(file, "pt") as weights:
            return Path(weights.metadata()["run"])
    return None


# ---- the runs of a part ----------------------------------------------------------------------------------------------


def planned(out: Path) -> dict[str, dict[str, list[Path]]]:
    """Return the folders of all runs, planned or there, by part and form; a form of another part may be a link."""
    lines = (out / "plan.txt").read_text().split() if (out / "plan.txt").exists() else []
    there = [folder.relative_to(out) for folder in out.glob("*/*/seed_*") if folder.is_dir()]
    found: dict[str, dict[str, list[Path]]] = {}
    for part, form, seed in sorted({Path(line).parts for line in lines} | {path.parts for path in there}):
        found.setdefault(part, {}).setdefault(form, []).append(out / part / form / seed)
    return found


def state(folder: Path) -> str:
    """Return "" for a finished run, or what is missing."""
    if (folder / "metrics.json").exists():
        return ""
    epochs = len(read_log(folder))
    return f"stopped or running after {epochs} epochs" if epochs else "not begun"


def narrower_of(form: str, forms: Sequence[str]) -> str:
    """Return the narrower network that learns like a form: from a teacher if there is one that does."""
    taught = form.endswith((_TAUGHT, "-self")) and _NARROW + _TAUGHT in forms
    return _NARROW + _TAUGHT if taught else _NARROW


def summary(forms: Mapping[str, Sequence[Path]]) -> Row:
    """Return the rows of one part, and what is missing."""
    missing = {str(folder): why for folders in forms.values() for folder in folders if (why := state(folder))}
    runs = {
        form: {folder.name: opened(folder) for folder in folders if not state(folder)}
        for form, folders in forms.items()
    }
    runs = {form: of_seeds for form, of_seeds in runs.items() if of_seeds}
    missing |= {
        str(run.folder): f"no use of routes, and no intervals over test images: {why}"
        for of_seeds in runs.values()
        for run in of_seeds.values()
        if (why := measured(run).get("missing"))
    }
    ordered = sorted(runs, key=lambda form: (form != _PLAIN, not form.startswith(_NARROW), form))
    rows = [row_of(form, runs) for form in ordered]
    for base in (_PLAIN, _NARROW):
        add_verdicts(rows, runs, base)
    return {"forms": rows, "missing": missing}


def row_of(form: str, runs: Mapping[str, Mapping[str, Run]]) -> Row:
    own = runs[form]
    first = next(iter(own.values()))
    metrics = [run.metrics for run in own.values()]
    found = [measured(run) for run in own.values()]
    costs = [cost(run) for run in own.values()]
    row: Row = {
        "form": form,
        "seeds": list(own),
        "score": first.score.name,
        "validation": score_row(first.score, [each[first.score.name] for each in metrics], _correct(own, "validation")),
        "macs": _mean([each["macs"] for each in found]),
        "parameters": metrics[0]["parameters"],
        "budget": metrics[0].get("budget"),
        "open_fraction": [each["open_fraction"] for each in metrics if "open_fraction" in each],
        "dependent_gates": _mean([each.get("dependent_gates") for each in metrics]),
        "routes": [each["routes"] for each in found if "routes" in each],
        **{name: _mean([each[name] for each in costs]) for name in ("epochs", "images", "core_minutes")},
        "exact_core_minutes": all(each["exact"] for each in costs),
    }
    if all("test" in each for each in metrics):
        row["test"] = score_row(
            first.score, [each["test"][first.score.name] for each in metrics], _correct(own, "test")
        )
    narrower = narrower_of(form, list(runs))
    for base in dict.fromkeys((_PLAIN, narrower)):
        if base in runs and base != form and (seeds := [seed for seed in own if seed in runs[base]]):
            pair = [{seed: runs[name][seed] for seed in seeds} for name in (form, base)]
            row[f"against_{_PLAIN if base == _PLAIN else _NARROW}"] = {
                "form": base,
                "seeds": seeds,
                **{split: difference(*pair, split) for split in ("validation", "test")},
            }
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _correct(runs: Mapping[str, Run], split: str) -> Tensor | None:
    """Return what each image contributes to the score, (seeds, images), or None if a run does not say it."""
    if split == "validation":
        return torch.stack([run.task.by_image(run.predictions) for run in runs.values()])
    rows = [measured(run).get("test") for run in runs.values()]
    return None if None in rows else torch.tensor(rows).bool()


def difference(own: Mapping[str, Run], base: Mapping[str, Run], split: str) -> Row | None:
    """Return the mean difference of the scores, with an interval over images and one over seeds (None for one seed)."""
    first = next(iter(own.values()))
    scores = [
        [(run.metrics if split == "validation" else run.metrics.get("test", {})).get(first.score.name) for run in runs]
        for runs in (own.values(), base.values())
    ]
    if None in scores[0] + scores[1]:
        return None
    over_seeds = statistics.paired_difference(scores[0], scores[1])
    images = _correct(own, split), _correct(base, split)
    over_images = None
    if images[0] is not None and images[1] is not None:
        over_images = first.task.bootstrap(images[0], images[1])
    return {
        "mean": over_seeds.mean,
        "over_images": None if over_images is None else difference_row(over_images, first.score),
        "over_seeds": None if over_seeds.low is None else difference_row(over_seeds, first.score),
    }


def add_verdicts(rows: Sequence[Row], runs: Mapping[str, Mapping[str, Run]], base: str) -> None:
    """Add the verdicts over seeds, corrected for the number of forms that have all seeds of the baseline."""
    if base not in runs or len(runs[base]) < 2:
        return
    seeds = list(runs[base])
    score = next(iter(runs[base].values())).score
    scores = {
        form: [own[seed].metrics[score.name] for seed in seeds]
        for form, own in runs.items()
        if all(seed in own for seed in seeds)
    }
    for form, found in judged(scores, base, score).items():
        row = next(row for row in rows if row["form"] == form)
        row[f"verdict_against_{base}"] = {name: found[name] for name in ("verdict", "p_holm", "detectable")}


# ---- markdown --------------------------------------------------------------------------------------------------------


def markdown(parts: Mapping[str, Row], oracles: Mapping[str, Row]) -> str:
    """Return the tables as text; those of `oracles`, what oracle_routes.py wrote for each number of classes, first."""
    lines: list[str] = []
    for classes, found in oracles.items():
        lines += [f"## oracle, {classes} classes; dense network {found['dense']:.2f} %", ""]
        columns = list(dict.fromkeys(name for row in found["rows"] for name in row))
        rows = [[_number(row.get(name, "-")) for name in columns] for row in found["rows"]]
        lines += [Table(columns, rows).markdown(), ""]
    for part, content in parts.items():
        lines += [f"## {part}", ""]
        if content["forms"]:
            rows = [_cells(row) for row in content["forms"]]
            lines += [Table(list(rows[0]), [[Cell(text) for text in row.values()] for row in rows]).markdown(), ""]
        lines += [f"- missing: {folder}: {why}" for folder, why in content["missing"].items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> dict[str, str]:
    return {
        "form": row["form"],
        "seeds": str(len(row["seeds"])),
        "validation %": _score(row["validation"]),
        "test %": _score(row.get("test")),
        **{
            f"{split}, against {base}": _difference((row.get(f"against_{base}") or {}).get(split))
            for base in (_PLAIN, _NARROW)
            for split in ("validation", "test")
        },
        "verdicts": "; ".join(
            f"{row[key]['verdict']} ({base})" for base in (_PLAIN, _NARROW) if (key := f"verdict_against_{base}") in row
        )
        or "-",
        "open": ", ".join(describe_open_fraction(each, row["budget"]) for each in row["open_fraction"]) or "-",
        "gates that depend on the image": "-" if row["dependent_gates"] is None else f"{row['dependent_gates']:.0%}",
        "images by route %": "; ".join(
            "/".join(f"{100 * share:.0f}" for share in each["shares"]) for each in row["routes"]
        )
        or "-",
        "M MACs": "-" if row["macs"] is None else f"{row['macs'] / 1e6:.2f}",
        "parameters": f"{row['parameters']:,}",
        "epochs": "-" if row["epochs"] is None else f"{row['epochs']:g}",
        "images seen": "-" if row["images"] is None else f"{row['images']:,.0f}",
        "core-minutes": "-"
        if row["core_minutes"] is None
        else f"{'' if row['exact_core_minutes'] else '~'}{row['core_minutes']:.1f}",
    }


def _number(value: Any) -> Cell:
    return Cell(f"{value:.2f}" if isinstance(value, float) else str(value))


def _score(found: Row | None) -> str:
    return "-" if found is None else f"{100 * found['mean']:.2f}{_interval(found)}"


def _difference(found: Row | None) -> str:
    if found is None:
        return "-"
    return (
        f"{100 * found['mean']:+.2f}{_interval(found['over_images'], 'images ')}"
        f"{_interval(found['over_seeds'], 'seeds ')}"
    )


def _interval(found: Row | None, over: str = "") -> str:
    if found is None or found["low"] is None:
        return ""
    return f" [{over}{100 * found['low']:.2f}, {100 * found['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    import_network("pruned:build")
    parts = {part: summary(forms) for part, forms in planned(args.out).items()}
    files = sorted((args.out / "oracle").glob("*.json"))
    oracles = {file.stem: read_json(file) for file in files}
    write_json(args.out / "table.json", {"oracles": oracles, "parts": parts})
    text = markdown(parts, oracles)
    write_atomically(args.out / "table.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
