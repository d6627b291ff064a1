"""Score a trained run on images: all scores, by class, how classes are confused, and the worst answers."""

# pyright: basic

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gatewise import errors
from gatewise.analysis.page import Page, Section, check_page_writable
from gatewise.analysis.score_figures import confusion_matrix, reliability, wrong_pictures
from gatewise.analysis.table import Cell, Table
from gatewise.core import _validation
from gatewise.core.files import without_nan, write_atomically
from gatewise.core.wording import as_lines
from gatewise.data import Dataset, DataSource, Images, SegmentationDataset
from gatewise.graph import measure
from gatewise.training import Mistake, Progress, Score, evaluate
from gatewise.training.constant_answer import ConstantAnswer, constant_answer
from gatewise.training.runs import Run

SPLITS = ("validation", "test", "train", "all")


def score_run(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    split: str | None = None,
    shown: int = 24,
    on_broken: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run on images that are read as in its training, and write a page about its answers.

    Args:
        folder: folder of a finished run.
        out: the HTML file to write; None writes none.
        data: data set to use instead of the run's own; it may lack some classes.
        split: "validation", "test", "train" or "all" images. None takes the validation images of the run's own data;
            of other data the test or validation images if it has such splits, otherwise all.
        shown: number of images with the worst answers to return and to draw.
        on_broken: "stop" at an image that cannot be read, or "skip" it; None does as the training.
        progress: where to show progress; None shows nothing.

    Returns:
        "run", "data", "split", "images", "notes" (what was left out while reading); "score" (name of the main score)
        and every score of the task, None where it is not defined; "constant", the best answer that is the same for all
        images, from the training labels or, for other data, from those that are scored; "by_class" (class -> its
        scores and number of images); "confusion" ("classes" and "counts", rows are classes and columns predictions) for
        one class per image; "wrong" (a list of "image", "label", "predicted", the worst first) and "wrong_images", how
        many there are; "page".

    Raises:
        DataError: the run has not finished, its images are not available, or the data has other classes, channels or
            sizes.
        InvalidValueError: there is no such split.
        StorageError: the page cannot be written.
    """
    if split is not None:
        _validation.check_one_of("split", split, SPLITS)
    _validation.check_integer_at_least(0, shown=shown)
    if out is not None:
        check_page_writable(Path(out))
    say = (progress or Progress(quiet=True)).say
    run = _opened(folder, data)
    run.load = functools.partial(_streamed, on_broken=on_broken)
    run.check_image_entries()
    run.check_has_images()
    assert run.dataset is not None
    for line in as_lines(_notes(run, split)) if run.data is not None or on_broken is not None else ():
        say(line)
    parts = [run.of(part) for part in _parts(run, split)]
    say(f"scoring {sum(len(part.images or ()) for part in parts):,} images")
    found, mistakes, confusion, bins = _scored(run, parts, shown)
    found["notes"] = _notes(run, split)
    if out is not None:
        _write_page(Path(out), run, parts, found, mistakes, confusion, bins)
        found["page"] = str(out)
    return found


def _scored(
    run: Run, parts: Sequence[Run], shown: int
) -> tuple[dict[str, Any], list[Mistake], torch.Tensor | None, torch.Tensor | None]:
    """Return the result of `score_run`, the worst answers, the confusion matrix, and the bins of confidences."""
    tally = run.new_results()
    work: dict[str, float] = {}
    for part in parts:
        work = evaluate(run.model, part.batches(), tally).work
    results, record = tally.results(), tally.record()
    mistakes, confusion = run.task.mistakes(record), run.task.confusion(record)
    names = [name for part in parts for name in _names(part)]
    found: dict[str, Any] = {
        "run": str(run.folder),
        "data": run.shown,
        "split": " and ".join(part.split for part in parts),
        "images": len(names),
        "score": run.score.name,
        **{name: value for name, value in results.items() if isinstance(value, int | float)},
        **(work if len(parts) == 1 else {}),
        "by_class": _by_class(run, results, record),
        "wrong_images": len(mistakes),
        "wrong": [
            {"image": names[each.image], "label": each.label, "predicted": each.predicted} for each in mistakes[:shown]
        ],
    }
    if (constant := _constant(run, parts)) is not None:
        found["constant"] = {"answer": constant.answer, "score": constant.score}
    if confusion is not None:
        found["confusion"] = {"classes": run.classes, "counts": confusion.tolist()}
    return without_nan(found), mistakes[:shown], confusion, run.task.calibration(record)


def _constant(run: Run, parts: Sequence[Run]) -> ConstantAnswer | None:
    """Return the best constant answer: by the run's training labels, for other data by the labels that are scored."""
    dataset = run.dataset
    if not isinstance(dataset, Dataset):
        return None
    images: list[Any] = [part.images for part in parts]
    labels = torch.cat([each.labels for each in images])
    if run.data is not None:
        dataset = dataclasses.replace(dataset, train=Images(labels.new_empty(len(labels), 0), labels))
    return constant_answer(run.task, dataset, labels)


def _notes(run: Run, split: str | None) -> list[str]:
    """Return the notes about the data; how other data would be divided says nothing if all of it is scored."""
    dataset: Any = run.dataset
    unused = dataset.training_notes if run.data is not None and split in (None, "all") else ()
    return [note for note in dataset.notes if note not in unused]


def default_page(folder: Path, data: str | None, split: str | None) -> Path:
    """Return the page in the run folder for these images: evaluation.html for the run's own validation images.

    Args:
        folder: folder of a finished run.
        data: other data than that of the run, if any; its last two folders become part of the name.
        split: split that is asked for, if any.
    """
    run = _opened(folder, data)
    names = ["evaluation"]
    if run.data is not None:
        path = Path(run.data)
        names += path.resolve().parts[-2:] if path.exists() else [run.data]
    if split is not None and (run.data is not None or split != "validation"):
        names.append(split)
    slugs = [re.sub(r"[^\w.-]+", "-", name).strip("-")[-80:] for name in names]
    return folder / f"{'_'.join(filter(None, slugs))}.html"


def _write_page(
    out: Path,
    run: Run,
    parts: Sequence[Run],
    found: dict[str, Any],
    mistakes: Sequence[Mistake],
    confusion: torch.Tensor | None,
    bins: torch.Tensor | None,
) -> None:
    """Write the page about a run's answers."""
    places: list[Any] = [(part, index) for part in parts for index in range(len(part.images or ()))]
    pictures = [places[each.image][0].images.picture(places[each.image][1]) for each in mistakes]
    drawings = [] if confusion is None else [confusion_matrix(confusion, run.classes)]
    wrong = [wrong_pictures(pictures, mistakes, [each["image"] for each in found["wrong"]])] if pictures else []
    write_atomically(
        out, _page(run, found, drawings, [] if bins is None else [reliability({run.name: bins})], wrong).render()
    )


def _opened(folder: str | Path, data: str | None) -> Run:
    """Open a run; data that is the run's own is not other data, of which all images may be scored."""
    run = Run.open(folder)
    own = run.recipe.data
    same = data is not None and (data == own or (Path(own).exists() and Path(data).resolve() == Path(own).resolve()))
    return run if data is None or same else Run.open(folder, data)


def _streamed(source: DataSource, on_broken: str | None) -> Dataset | SegmentationDataset:
    """Load a data set without decoding it, so that images keep the names of their files."""
    reading = dataclasses.replace(source.reading, on_broken=on_broken or source.reading.on_broken)
    return dataclasses.replace(source, loading="stream", reading=reading).load()


def _parts(run: Run, split: str | None) -> Sequence[Any]:
    """Return the splits to score; of splits that are the same images only the last counts."""
    splits = {name: getattr(run.dataset, name) for name in ("train", "validation", "test")}
    present = list({id(images): name for name, images in splits.items() if images is not None}.values())
    if split == "all":
        return present
    if split is not None:
        if split not in present:
            raise errors.InvalidValueError(f"{run.shown} has no {split} split; splits: {', '.join(present)}, all.")
        return [split]
    if run.data is None:
        return ["validation"]
    division: Any = getattr(run.dataset, "division", None)
    return present if division and division.rule and "test" not in present else [present[-1]]


def _names(run: Run) -> list[str]:
    """Return the name of each image of a run's split."""
    images: Any = run.images
    files = getattr(images, "files", None) or getattr(images, "images", None)
    return [f"{run.split} image {index}" if files is None else files.where(index) for index in range(len(images))]


def _by_class(run: Run, results: dict[str, Any], record: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Return the scores of each class, and its number of images where the task counts them."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in results.items():
        if name.endswith("_by_class"):
            for of_class, value in values.items():
                found.setdefault(of_class, {})[name.removesuffix("_by_class")] = value
    if (counts := run.task.images_by_class(record)) is not None:
        for of_class, count in zip(run.classes, counts.tolist(), strict=True):
            found.setdefault(of_class, {})["images"] = count
    return found


def scores_table(found: dict[str, Any], scores: Sequence[Score]) -> Table:
    """Return all scores in `found`, the result of `score_run`, as a table."""
    rows = [
        [Cell(score.title), Cell(score.text(value := found[score.name]), -1.0 if value is None else value)]
        for score in sorted(scores, key=lambda score: score.name != found["score"])
        if score.name in found
    ]
    return Table(["score", "value"], rows)


def classes_table(found: dict[str, Any]) -> Table:
    """Return the scores by class in `found`, the result of `score_run`, as a table, those of the classes as shares."""
    columns = list(dict.fromkeys(name for values in found["by_class"].values() for name in values))
    rows = [
        [Cell(name), *(_cell(column, values.get(column)) for column in columns)]
        for name, values in found["by_class"].items()
    ]
    return Table(
        ["class", *(column if column == "images" else f"{column.replace('_', ' ')} %" for column in columns)], rows
    )


def _cell(column: str, value: float | None) -> Cell:
    if value is None:
        return Cell("-", -1.0)
    return Cell(f"{value:,}", value) if column == "images" else Cell(f"{100 * value:.2f}", value)


def _page(run: Run, found: dict[str, Any], confusion: list[Any], calibrated: list[Any], wrong: list[Any]) -> Page:
    what = f"{found['wrong_images']:,} of {found['images']:,} images have a wrong answer." if run.image_classes else ""
    sections = [
        Section("Scores", table=scores_table(found, run.task.scores)),
        *([Section("By class", table=classes_table(found))] if found["by_class"] else []),
        *([Section("How classes are confused", drawings=confusion)] if confusion else []),
        *([Section("Is its confidence right", drawings=calibrated)] if calibrated else []),
        *([Section("Worst answers", what, drawings=wrong)] if wrong else []),
    ]
    return Page(
        title=f"{run.score.title} {run.score.text(found[run.score.name])}",
        lead=f"{run.name} on {found['images']:,} {found['split']} images of {Path(found['data']).name}",
        sections=sections,
        facts={
            "network": str(run.recipe.spec),
            "made with": f"gatewise {measure.environment(torch.device('cpu'))['gatewise']}",
        },
    )
