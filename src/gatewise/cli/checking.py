"""The check command: what is in a data set, without training."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import Json, app, print_json
from gatewise.cli.recipe_flags import recipe_flags, with_flags

CheckFlags: Any = recipe_flags("CheckFlags", "data", "task")


@app.command
def check(
    *,
    out: Path | None = None,
    flags: Annotated[CheckFlags, Parameter(name="*")] = CheckFlags(),  # noqa: B008  # pyright: ignore
    json_output: Json = False,
) -> None:
    """Say what is in a data set: images by class and split, sizes, copies, leaks and broken files. Nothing is trained.

    Example: gatewise check --data photos --out photos_checked

    Parameters
    ----------
    out
        Folder for overview.svg and overview.png (pictures of each class), check.json, and lists of images: split.csv,
        leaks.csv, conflicts.csv (same bytes, different labels), skipped.csv [not written].
    flags
        What the data is and how it is read, as for train.
    json_output
        Print the facts as JSON.
    """
    from gatewise.analysis.overview import overview
    from gatewise.core.files import check_folder_writable, write_atomically, write_json
    from gatewise.data.inventory import take_inventory
    from gatewise.training.first_facts import few_images

    if out is not None:
        check_folder_writable(out)
    recipe = with_flags(None, flags)
    if out is not None and out.resolve().is_relative_to(Path(recipe.data).resolve()):
        raise errors.InvalidValueError(
            f"{out} is in the folder of the data, and its pictures would be read as images. Choose another --out."
        )
    found = take_inventory(recipe.source)
    if out is not None:
        drawing = overview(found)
        write_atomically(out / "overview.svg", drawing.svg())
        write_atomically(out / "overview.png", drawing.png())
        write_json(out / "check.json", found.details)
        if found.dataset.division is not None:
            found.dataset.division.write(out)
    if json_output:
        print_json(found.details)
        return
    for line in (*found.facts, *few_images(found.dataset)):
        print(line)
    listings = [] if found.dataset.division is None else found.dataset.division.listings
    listed = f", and which images these are ({', '.join(listings)})" if listings else ""
    print(f"written: {out.resolve()}" if out else f"pictures of each class{listed}: add --out FOLDER")
