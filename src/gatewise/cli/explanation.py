"""The command that explains what the gates of trained runs do."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gatewise.analysis.explanation import explain as explain_runs
from gatewise.analysis.runs import Split
from gatewise.cli.app import app
from gatewise.training import Progress


@app.command
def explain(
    runs: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    out: Path,
    data: str | None = None,
    split: Split = "validation",
    figures: Path | None = None,
) -> None:
    """Write one page that shows what the gates of a run, or of several beside each other, have learned.

    Example: gatewise explain runs/gct runs/plain --out gates.html

    Parameters
    ----------
    runs
        Run folders.
    out
        The page: one HTML file that needs no network.
    data
        Images to show the gates; the run's own otherwise.
    split
        Which of the images: validation or train.
    figures
        A folder for each figure as SVG, PNG and CSV.
    """
    page = explain_runs(runs, out, data=data, split=split, figures_in=figures, progress=Progress())
    print(f"page: {page.resolve()}")
