"""The explain command."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import OwnNetwork, PageFile, app


@app.command
def explain(
    *runs: Annotated[Path, Parameter(required=True)],
    out: PageFile,
    data: str | None = None,
    split: Literal["validation", "train"] = "validation",
    figures: Path | None = None,
    model: OwnNetwork = None,  # noqa: ARG001
) -> None:
    """Write an HTML page that shows what the gates of one or more runs have learned, side by side.

    Example: gatewise explain runs/gct runs/plain --out gates.html

    Parameters
    ----------
    runs
        Folders of finished runs.
    out
        The HTML file to write or to replace; it loads nothing from the internet.
    data
        Data set to use instead of the runs' own.
    split
        Split to read images from: validation or train.
    figures
        Folder in which every figure is also written as SVG, PNG and CSV.
    model
        MODULE:FUNCTION of a run whose network is your own; gatewise imports no module that a file names.
    """
    from gatewise.analysis.explanation import check_outputs, explain_opened
    from gatewise.training import Progress
    from gatewise.training.runs import open_runs

    check_outputs(out, figures)
    opened = open_runs(runs, data, split)
    page = explain_opened(opened, out, figures_in=figures, progress=Progress())
    print(f"page: {page.resolve()}")
    if missing := dict.fromkeys(run.missing for run in opened if run.missing):
        what = "the page has no images, and omits what needs them"
        raise errors.DataError(f"{what}. {' '.join(missing)} Give them with --data.")
