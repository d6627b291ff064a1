"""The commands that show what trained runs do: explain and predict."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gatewise.analysis.explain import explain as explain_runs
from gatewise.analysis.runs import Split
from gatewise.cli.app import Json, Whole, app
from gatewise.predict import predict as predict_images
from gatewise.predict import told
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


@app.command
def predict(
    run: Path,
    images: Annotated[list[Path], Parameter(negative="", allow_leading_hyphen=True)],
    /,
    *,
    out: Path | None = None,
    top_k: Whole = 5,
    json_output: Json = False,
) -> None:
    """Tell the class of each image, or write a mask and an overlay where a run labels pixels.

    Example: gatewise predict runs/gct photo.jpg folder_of_photos

    Parameters
    ----------
    run
        The run folder, one of save_pretrained, or an ONNX file of gatewise export.
    images
        Image files, folders of them at any depth, or - for an image on standard input.
    out
        The folder for masks and overlays.
    top_k
        How many classes to tell of an image.
    json_output
        Print one JSON object a line, an image each.
    """
    for found in predict_images(run, images, out, top_k=top_k):
        print(json.dumps(found) if json_output else told(found), flush=True)
