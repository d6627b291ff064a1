"""The command that predicts."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gatewise.cli.app import Json, Whole, app
from gatewise.prediction import format_prediction
from gatewise.prediction import predict as predict_images


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
        The run folder, one of save_pretrained, or a file of gatewise export.
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
        print(json.dumps(found) if json_output else format_prediction(found), flush=True)
