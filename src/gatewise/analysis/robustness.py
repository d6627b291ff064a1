"""Score networks on corrupted validation images: the same images for all, kept in `corruptions.json` of each run."""

# pyright: basic

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.analysis.axes import show_score
from gatewise.analysis.drawing import Drawing, add_legend, escape_mathtext, new_figure, series_style
from gatewise.analysis.table import Cell, Table
from gatewise.core.files import check_file_writable, read_record, write_record
from gatewise.data import evenly_spaced
from gatewise.data.corruptions import CORRUPTIONS, KINDS, STRENGTHS, corrupted
from gatewise.training import Progress, Score, Task, evaluate
from gatewise.training.runs import Run

IMAGES = 1000  # most images that are corrupted
_FILE, _FORMAT, _BATCH = "corruptions.json", 1, 100


def check_corruptible(task: Task, channels: int) -> None:
    """Raise unless images of this task and number of channels can be corrupted, and the package is installed.

    Raises:
        InvalidValueError: the images are labelled by pixel, or have neither one nor three channels.
        MissingExtraError: the package of the corruptions is not installed.
    """
    if task.class_per_pixel:
        raise errors.InvalidValueError(
            "corruptions move and distort pixels, so masks would not fit any more. Omit --corruptions."
        )
    corrupted(torch.zeros(channels, 8, 8), CORRUPTIONS[0], 1, 0)


def score_corruptions(runs: Sequence[Run], progress: Progress | None = None) -> list[dict[str, Any]]:
    """Return the score of each run on corrupted validation images, at most 1,000 evenly spaced ones.

    What a run's `corruptions.json` has for its weights is not computed again.

    Args:
        runs: runs with the same validation images.
        progress: where to show progress; None shows nothing.

    Returns:
        For each run "images", "score", "clean" (score of these images as they are) and "scores": corruption -> its
        score for each strength.

    Raises:
        InvalidValueError: the images are labelled by pixel, or have neither one nor three channels.
        MissingExtraError: the package of the corruptions is not installed.
    """
    known = [_read(run) for run in runs]
    todo = [run for run, found in zip(runs, known, strict=True) if found is None]
    if todo:
        computed = iter(_compute(todo, progress or Progress(quiet=True)))
        known = [found or next(computed) for found in known]
    return [found for found in known if found is not None]


def _read(run: Run) -> dict[str, Any] | None:
    file = run.folder / _FILE
    if not file.exists():
        return None
    found = read_record(file, _FORMAT, "images", "score", "clean", "scores", "weights")
    same = found["weights"] == run.config["sha256"] and found["score"] == run.score.name
    return found if same and set(found["scores"]) == set(CORRUPTIONS) else None


def _compute(runs: Sequence[Run], progress: Progress) -> list[dict[str, Any]]:
    first = runs[0]
    first.check_has_images(" to corrupt them")
    check_corruptible(first.task, first.config["in_chans"])
    for run in runs:
        check_file_writable(run.folder / _FILE)
    images: Any = first.images
    chosen = evenly_spaced(len(images), min(IMAGES, len(images)))
    pixels = torch.stack([images[index] for index in chosen])
    labels = images.labels[chosen]
    found: list[dict[str, Any]] = [
        {"images": len(chosen), "score": run.score.name, "clean": _score(run, pixels, labels), "scores": {}}
        for run in runs
    ]
    for corruption in CORRUPTIONS:
        progress.say(f"corrupting {len(chosen):,} images: {corruption}")
        for strength in STRENGTHS:
            changed = torch.stack([
                corrupted(image, corruption, strength, number) for image, number in zip(pixels, chosen, strict=True)
            ])
            for run, of_run in zip(runs, found, strict=True):
                of_run["scores"].setdefault(corruption, []).append(_score(run, changed, labels))
    for run, of_run in zip(runs, found, strict=True):
        write_record(run.folder / _FILE, {**of_run, "weights": run.config["sha256"]}, _FORMAT)
    return found


def _score(run: Run, pixels: Tensor, labels: Tensor) -> float:
    mean, std = (torch.tensor(run.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    batches = (
        (((part.float() - mean) / std).to(run.device), targets.to(run.device))
        for part, targets in zip(pixels.split(_BATCH), labels.split(_BATCH), strict=True)
    )
    return float(evaluate(run.model, batches, run.new_results()).scores[run.score.name])


def summarised(found: dict[str, Any]) -> dict[str, Any]:
    """Return the means of one run's scores over strengths, over corruptions, and over all.

    >>> summarised({"scores": {"fog": [1.0, 0.5], "frost": [0.5, 0.0]}})
    {'by_corruption': {'fog': 0.75, 'frost': 0.25}, 'by_strength': [0.75, 0.25], 'mean': 0.5}
    """
    scores: dict[str, list[float]] = found["scores"]
    return {
        "by_corruption": {name: statistics.fmean(values) for name, values in scores.items()},
        "by_strength": [statistics.fmean(values) for values in zip(*scores.values(), strict=True)],
        "mean": statistics.fmean(value for values in scores.values() for value in values),
    }


def corruptions_table(found: dict[str, dict[str, Any]], score: Score) -> Table:
    """Return the score by corruption, the mean over strengths, and over all corruptions.

    Args:
        found: name of a row -> "clean", and what `summarised` returns.
        score: the score.
    """
    columns = ["corruption", *(f"{name}{score.unit}" for name in found)]
    lines = {"none": [one["clean"] for one in found.values()], "mean": [one["mean"] for one in found.values()]}
    lines |= {
        f"{name} ({kind})": [one["by_corruption"][name] for one in found.values()]
        for kind, names in KINDS.items()
        for name in names
    }
    rows = [[Cell(line), *(Cell(score.number(value), value) for value in values)] for line, values in lines.items()]
    return Table(columns, rows)


def draw_corruptions(found: dict[str, dict[str, Any]], score: Score) -> Drawing:
    """Draw the mean score over all corruptions against their strength; see `corruptions_table` for the arguments."""
    figure, axes = new_figure(3.2)
    rows, tips = [], {}
    for index, (name, one) in enumerate(found.items()):
        values = [score.factor * value for value in (one["clean"], *one["by_strength"])]
        colour, marker = series_style(index)
        axes.plot(
            range(len(values)), values, color=colour, marker=marker, label=escape_mathtext(name), gid=f"series-{index}"
        )
        tips[f"series-{index}"] = f"{name}: {score.text(one['mean'])} over all corruptions"
        rows += [[Cell(name), Cell(str(n), n), Cell(f"{value:.4f}", value)] for n, value in enumerate(values)]
    axes.set_xlabel("strength of the corruptions (0: none)")
    show_score(axes, score)
    add_legend(figure)
    return Drawing(
        "corruptions",
        figure,
        shows=f"The {score.title} on corrupted validation images against the strength, the mean over "
        f"{len(CORRUPTIONS)} corruptions.",
        look_for="Lines that change less than others: networks that the corruptions harm less."
        if len(found) > 1
        else "The strength from which the images are of no more use to the network.",
        table=Table(["variant", "strength", f"{score.title}{score.unit}"], rows),
        tips=tips,
    )
