"""Write an HTML page about the gates of trained runs."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gatewise import errors
from gatewise.analysis.findings import Findings, find
from gatewise.analysis.page import Page
from gatewise.analysis.sections import beside_each_other, common_score, of_run, overview
from gatewise.core.files import write_atomically
from gatewise.gaternet import GaterNet
from gatewise.graph import measure
from gatewise.training import Progress
from gatewise.training.runs import Run, Split, open_runs

_PATTERNS = 4000  # shared by all runs of a page: their thumbnails are most of its size


def explain(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    data: str | None = None,
    split: Split = "validation",
    figures_in: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML page about the gates of one or more runs, and return its path.

    Args:
        runs: run folders; several are shown side by side.
        out: path of the page, a single self-contained file.
        data: data set whose images are shown to the gates; None uses the data set of each run.
        split: "validation" or "train" images of the data set.
        figures_in: folder where each figure is also written as SVG, PNG and CSV; None writes none.
        progress: where to report progress; None is silent.

    Raises:
        InvalidValueError: as `open_runs`, or if the runs are evaluated with different metrics. No file is written.
        DataError: as `open_runs`, or if `out` is a folder or `figures_in` is a file. No file is written.
    """
    progress, out = progress or Progress(quiet=True), Path(out)
    _check_writable(out, figures_in)
    opened = open_runs(runs, data, split)
    common_score(opened)
    gaters = sum(isinstance(run.model, GaterNet) for run in opened)
    found: list[Findings] = []
    for run in opened:
        progress.say(f"analysing {run.name}")
        found.append(find(run, keep=min(2000, _PATTERNS // max(1, gaters))))
    sections = [*overview(opened), *beside_each_other(found)]
    for each in found:
        sections += of_run(each, several=len(found) > 1)
    page = Page(
        title="What the gates learned",
        lead=", ".join(f"{run.name}: {run.recipe.spec}" for run in opened),
        sections=sections,
        facts={"made with": f"gatewise {measure.environment(torch.device('cpu'))['gatewise']}"}
        | {run.name: _facts(run) for run in opened},
    )
    write_atomically(out, page.render())
    if figures_in is not None:
        for drawing in (drawing for section in sections for drawing in section.drawings):
            for suffix, content in (("svg", drawing.svg()), ("png", drawing.png()), ("csv", drawing.csv())):
                write_atomically(Path(figures_in) / f"{drawing.name}.{suffix}", content)
    return out


def _check_writable(out: Path, figures_in: str | Path | None) -> None:
    """Raise if the output cannot be written, before any computation."""
    if out.is_dir():
        raise errors.DataError(f"{out} is a folder; give a file for the page, for example {out / 'gates.html'}.")
    if figures_in is not None and Path(figures_in).exists() and not Path(figures_in).is_dir():
        raise errors.DataError(f"{figures_in} is a file; give a folder for the figures.")


def _facts(run: Run) -> str:
    where = run.metrics["environment"]
    trained = (
        f"{run.source.data}, {run.metrics['epochs']} epochs, {run.metrics['precision']}, trained on {where['hardware']}"
    )
    shown = "no images" if run.images is None else f"{len(run.images):,} {run.split} images of {Path(run.shown).name}"
    return f"{run.recipe.spec}, {trained}; gates were shown {shown}"
