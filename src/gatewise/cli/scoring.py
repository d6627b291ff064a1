"""The evaluate command."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import Integer, Json, OwnNetwork, PageFile, app, print_json, print_table

_CONFUSED = 5  # pairs of classes that are printed


@app.command
def evaluate(
    run: Path,
    /,
    *,
    data: str | None = None,
    split: str | None = None,
    out: PageFile | None = None,
    shown: Integer = 24,
    on_broken: Literal["stop", "skip"] | None = None,
    corruptions: Annotated[bool, Parameter(negative="")] = False,
    model: OwnNetwork = None,  # noqa: ARG001
    json_output: Json = False,
) -> None:
    """Score a run on images: all scores, by class, how classes are confused, and a page with the worst answers.

    Example: gatewise evaluate runs/gct --data new_photos

    Parameters
    ----------
    run
        Folder of a finished run.
    data
        Data set to use instead of the run's own; it may lack some classes.
    split
        validation, test, train or all images [validation images of the run's own data; of other data the test or
        validation images if it has such splits, otherwise all].
    out
        The HTML page to write or to replace [in the run folder: evaluation.html for the run's validation images; other
        images have pages of their own, such as evaluation_2026_new_photos.html].
    shown
        Number of images with the worst answers to show.
    on_broken
        Stop at an image that cannot be read, or skip it [as in the training].
    corruptions
        Score the run's own validation images with 15 common corruptions in five strengths instead (at most 1,000 of
        them), and write corruptions.json in the run folder.
    model
        MODULE:FUNCTION of a run whose network is your own; gatewise imports no module that a file names.
    json_output
        Print the results as JSON.
    """
    from gatewise.analysis.score_page import classes_table, default_page, score_run, scores_table
    from gatewise.training import Progress
    from gatewise.training.runs import Run

    if corruptions:
        given = {"data": data, "split": split, "out": out, "on-broken": on_broken}
        if unused := [name for name, value in given.items() if value is not None]:
            raise errors.InvalidValueError(
                f"--{unused[0]} is not for --corruptions, which scores the run's own validation images and writes "
                f"corruptions.json in its folder. Omit it."
            )
        _score_corruptions(run, json_output=json_output)
        return
    page = out or default_page(run, data, split)
    progress = Progress(quiet=json_output)
    found = score_run(run, page, data=data, split=split, shown=shown, on_broken=on_broken, progress=progress)
    if json_output:
        print_json(found)
        return
    task = Run.open(run).task
    shown_score = f"{task.score.title} {task.score.text(found[task.score.name])}"
    print(f"{shown_score} on {found['images']:,} {found['split']} images of {found['data']}")
    constant = found.get("constant")
    if constant is not None and constant["score"] is not None:
        reached = f"{task.score.text(constant['score'])} {task.score.title}"
        print(f"for comparison: always {constant['answer']} scores {reached}")
    print_table(scores_table(found, task.scores))
    if found["by_class"]:
        print_table(classes_table(found))
    for line in _confused(found):
        print(line)
    print(f"page: {page.resolve()}")


def _score_corruptions(folder: Path, *, json_output: bool) -> None:
    from gatewise.analysis.robustness import corruptions_table, score_corruptions, summarised
    from gatewise.training import Progress
    from gatewise.training.runs import Run

    run = Run.open(folder)
    (found,) = score_corruptions([run], Progress(quiet=json_output))
    if json_output:
        print_json({**found, **summarised(found)})
        return
    clean, mean = (run.score.text(value) for value in (found["clean"], summarised(found)["mean"]))
    print(f"{run.score.title} on {found['images']:,} validation images: {clean}, corrupted {mean}")
    print_table(corruptions_table({run.name: {**found, **summarised(found)}}, run.score))


def _confused(found: dict[str, Any]) -> list[str]:
    """Return the pairs of classes that are confused most, a line each."""
    confusion: dict[str, Any] | None = found.get("confusion")
    if confusion is None:
        return []
    names: list[str] = confusion["classes"]
    counts: list[list[int]] = confusion["counts"]
    pairs = [
        (count, names[row], names[column])
        for row, of_class in enumerate(counts)
        for column, count in enumerate(of_class)
        if count and row != column
    ]
    return [
        f"{count:,} images of {name} are taken for {other}" for count, name, other in sorted(pairs)[::-1][:_CONFUSED]
    ]
