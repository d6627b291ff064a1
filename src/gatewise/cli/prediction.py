"""The predict command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from gatewise.cli.app import Integer, Json, OwnNetwork, app, literal
from gatewise.cli.recipe_flags import description

_OPENED = description()["formats"]["opened"]
_SOURCE = literal(f"Run folder, folder of save_pretrained, or file of gatewise export ({_OPENED}).")


def _parse_image(kind: Any, tokens: Sequence[cyclopts.Token]) -> Path:  # noqa: ARG001
    """Parse the path of an image, of which - is one; unknown options, which cyclopts then lets pass too, are not."""
    text, path = tokens[0].value, Path(tokens[0].value)
    if text.startswith("-") and text != "-" and not path.exists():
        raise cyclopts.UnknownOptionError(
            token=tokens[0], argument_collection=app["predict"].assemble_argument_collection()
        )
    return path


@app.command
def predict(
    run: Annotated[Path, Parameter(help=_SOURCE)],
    /,
    *images: Annotated[Path, Parameter(required=True, allow_leading_hyphen=True, converter=_parse_image)],
    out: Path | None = None,
    top_k: Integer = 5,
    model: OwnNetwork = None,  # noqa: ARG001
    json_output: Json = False,
) -> None:
    """Print the class of each image; for segmentation runs write a mask and an overlay.

    Example: gatewise predict runs/gct photo.jpg folder_of_photos

    Images that cannot be read are named at the end, after the predictions of all others; the exit code is then 2.

    Parameters
    ----------
    run
        Run folder, folder of save_pretrained, or file of gatewise export.
    images
        Image files, folders (searched recursively), or - for one image on standard input.
    out
        Folder for masks and overlays (segmentation runs only).
    top_k
        Number of classes to print per image, most probable first.
    model
        MODULE:FUNCTION of a run whose network is your own; gatewise imports no module that a file names.
    json_output
        Print one JSON object per image and line.
    """
    from gatewise.core.files import check_folder_writable
    from gatewise.exporting.prediction import Predictor

    if out is not None:
        check_folder_writable(out)
    predictor = Predictor.of(run)
    for prediction in predictor.predict(images, out, top_k=top_k):
        print(json.dumps(prediction) if json_output else predictor.describe(prediction), flush=True)
