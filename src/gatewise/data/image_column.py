"""Which column of a table names the images, and in which folder they are."""

from collections.abc import Callable, Sequence
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.folders import Location, is_image
from gatewise.data.table_files import SAMPLE, ImageFolder, Table, image_folders, most_found

INDEX = ("", "index", "unnamed: 0")  # names of a column that numbers the rows
_USUAL = (
    *("file_name", "filename", "image", "image_path", "path", "file", "fname", "image_id", "id", "image_name", "img"),
    *("img_path", "image_file", "filepath", "file_path", "name", "image_file_name"),
)
_BY_CHANCE = 0.1  # fraction of the images found by the best column, below which others name none


def find_images(
    location: Location, table: Table, part: Callable[[str], bool] | None = None, other_names: Sequence[str] = ()
) -> tuple[str, ImageFolder]:
    """Return the column whose cells name images, and the folder in which they are.

    Args:
        location: the data set.
        table: the table.
        part: says of a relative path whether it can be meant; None for all.
        other_names: names, in lower case, of columns that have something else.
    """
    wanted = location.reading.image_column
    names = [name for name in table.columns if name.lower() not in other_names] if wanted is None else [wanted]
    signs = {name: _signs(name, table.column(name)) for name in names}
    found: list[tuple[str, ImageFolder, int]] = []
    for path in image_folders(location, table.file):
        folder = ImageFolder(location if location.path == path else Location(path, location.reading), part)
        found += [(name, folder, count) for name, count in most_found(table, folder).items() if name in signs]
        if any(count >= min(len(table), SAMPLE) and signs[name] == max(signs.values()) for name, _, count in found):
            break
    if not found:
        where = " or ".join(str(path) for path in image_folders(location, table.file))
        raise errors.DataError(
            f"{table.file}: no column of {_validation.listed(list(table.columns))} names images in {where}. Give the "
            f"folder of the images as --data-root, or --image-column."
        )
    least = _BY_CHANCE * max(count for _, _, count in found)
    likely = [one for one in found if one[2] > least]
    return min(likely, key=lambda one: (-signs[one[0]], -one[2], *_likelihood(one[0], table.columns[one[0]])))[:2]


def check_not_several(location: Location, table: Table, column: str, folder: ImageFolder, known: Sequence[str]) -> None:
    """Raise `DataError` if a column that is not `known` names other images, and nothing says which is meant."""
    if location.reading.image_column is not None or column.lower() in _USUAL:
        return
    images, signs = _images(table, column, folder), _signs(column, table.columns[column])
    for other in most_found(table, folder):
        fewer = _signs(other, table.columns[other]) < signs and other.lower() not in _USUAL
        if other in (column, *known) or fewer:
            continue
        others = _images(table, other, folder)
        if others != images and len(set(others) - {""}) >= len(set(images) - {""}):
            raise errors.DataError(
                f"{table.file}: which column names the images, {column} or {other}? Add --image-column {column}."
            )


def _images(table: Table, column: str, folder: ImageFolder) -> list[str]:
    """Return the image that each of the first cells of a column names, "" if it names none."""
    found = [folder.find(cell) for cell in table.columns[column][:SAMPLE]]
    return [files[0] if len(files) == 1 else "" for files in found]


def _signs(column: str, cells: Sequence[Any]) -> int:
    """Return 1 if most of the first cells of a column have the suffix of an image, -1 for row numbers, otherwise 0."""
    first = cells[:SAMPLE]
    return (2 * sum(is_image(str(cell)) for cell in first) > len(first)) - (column.lower() in INDEX)


def _likelihood(column: str, cells: Sequence[Any]) -> tuple[int, int]:
    """Return a key by which the likeliest of several columns is first: a usual name, or many different cells."""
    return rank(column, _USUAL), -len(set(map(str, cells)))


def rank(name: str, known: Sequence[str]) -> int:
    """Return the place of a name among known ones, the last if it is none of them; case is ignored."""
    return known.index(name.lower()) if name.lower() in known else len(known)
