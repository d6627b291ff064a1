"""Write an HTML page about the gates of a network, or of trained runs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from gatewise.analysis.findings import Findings, find
from gatewise.analysis.given_network import GivenNetwork
from gatewise.analysis.page import Page, check_page_writable
from gatewise.analysis.sections import beside_each_other, common_score, of_run, overview, without_run
from gatewise.core.files import check_folder_writable, write_atomically
from gatewise.core.loaders import Loader
from gatewise.gaternet import GaterNet
from gatewise.graph import measure
from gatewise.insertion.insert import gates_in
from gatewise.training import Progress
from gatewise.training.runs import Run, Split, open_runs

_PATTERNS = 4000  # shared by all runs of a page: their thumbnails are most of its size


def explain(
    model: nn.Module,
    loader: Loader,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    images: int | None = 1000,
    figures_in: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML page about the gates of any network, and return its path.

    The network may have gates of `insert_gates`, be a `GaterNet` or a compacted one, or have any `Gate` as a layer. It
    may have been trained by any program. Its training flags, parameters and buffers do not change.

    Args:
        model: the network, called with one batch of images; also inside a wrapper of torch.compile or DDP.
        loader: batches of images (N, C, H, W) as the network takes them, tuples (images, labels), or dicts of both. It
            is read once. Labels of classes, (N,) or (N, H, W), add accuracies and statistics by class.
        out: path of the page, a single self-contained file.
        classes: names of the classes; None numbers them.
        images: number of images that are read and kept in memory; None takes all.
        figures_in: folder where each figure is also written as SVG, PNG and CSV; None writes none.
        progress: where to report progress; None is silent.

    Raises:
        InvalidTypeError: `model` is no module or a skipping network, or `loader` gives no images.
        InvalidValueError: the loader is empty, or labels or class names do not fit the network. No file is written.
        StorageError: the page or the figures cannot be written. No file is written.
    """
    progress, out = progress or Progress(quiet=True), Path(out)
    check_outputs(out, figures_in)
    network = GivenNetwork("explain", model, loader, classes=classes, count=images)
    progress.say(f"analysing {network.name}")
    found = find(network)
    gates = list(dict.fromkeys(type(gate).__name__ for gate in gates_in(network.model).values()))
    page = Page(
        title="What the gates learned",
        lead=f"{network.name}: {', '.join(gates) or 'no inserted gates'}",
        sections=[without_run(network, found), *of_run(found, several=False)],
        facts=_made_with() | {network.name: f"gates were shown {len(network.images):,} images"},
    )
    return _written(page, out, figures_in)


def explain_runs(
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
        DataError: as `open_runs`. No file is written.
        StorageError: the page or the figures cannot be written. No file is written.
    """
    check_outputs(out, figures_in)
    return explain_opened(open_runs(runs, data, split), out, figures_in=figures_in, progress=progress)


def check_outputs(out: str | Path, figures_in: str | Path | None = None) -> None:
    """Raise `StorageError` if the page or the figures cannot be written, before any computation."""
    check_page_writable(Path(out))
    if figures_in is not None:
        check_folder_writable(Path(figures_in))


def explain_opened(
    opened: Sequence[Run],
    out: str | Path,
    *,
    figures_in: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML page about runs that are open, and return its path; see `explain_runs`."""
    progress, out = progress or Progress(quiet=True), Path(out)
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
        facts=_made_with() | {run.name: _facts(run) for run in opened},
    )
    return _written(page, out, figures_in)


def _made_with() -> dict[str, str]:
    return {"made with": f"gatewise {measure.environment(torch.device('cpu'))['gatewise']}"}


def _written(page: Page, out: Path, figures_in: str | Path | None) -> Path:
    """Write a page and, if asked for, its figures; return the path of the page."""
    write_atomically(out, page.render())
    if figures_in is not None:
        for drawing in (drawing for section in page.sections for drawing in section.drawings):
            for suffix, content in (("svg", drawing.svg()), ("png", drawing.png()), ("csv", drawing.csv())):
                write_atomically(Path(figures_in) / f"{drawing.name}.{suffix}", content)
    return out


def _facts(run: Run) -> str:
    where = run.metrics["environment"]
    trained = (
        f"{run.source.data}, {run.metrics['epochs']} epochs, {run.metrics['precision']}, trained on {where['hardware']}"
    )
    shown = "no images" if run.images is None else f"{len(run.images):,} {run.split} images of {Path(run.shown).name}"
    return f"{run.recipe.spec}, {trained}; gates were shown {shown}"
