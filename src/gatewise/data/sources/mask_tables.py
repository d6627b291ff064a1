"""Tables that name images and their masks: a file, or one in the folder of the images or in each split."""

from pathlib import Path, PurePath

from gatewise import errors
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.image_column import check_not_several, find_images, rank
from gatewise.data.layout import MASK_FOLDERS, is_left_out
from gatewise.data.masks import named_classes
from gatewise.data.sources.registry import MaskedSource, MaskedSplit, register_source
from gatewise.data.table_files import ImageFolder, RowFiles, Table, most_found, read_table
from gatewise.data.table_layout import (
    add_splits,
    common_folder,
    divided,
    files_of,
    is_table,
    splits_of,
    tables_of,
    use_groups,
)

_MASKS = (
    *("mask", "masks", "mask_path", "mask_file", "mask_name", "mask_file_name", "mask_filename", "mask_id"),
    *("segmentation", "annotation", "label", "label_path", "gt"),
)


@register_source("mask_tables", help="a CSV, TSV, JSONL or parquet table that names images and masks", order=46)
class MaskTables(MaskedSource):
    """A table with a row for each image, of which one column names the image and another its mask."""

    has_columns = True

    def matches(self, location: Location) -> bool:
        if not location.is_folder:
            return is_table(location.path)
        return any(_pairs(location, read_table(file)) for file in tables_of(location).values())

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        files = tables_of(location) if location.is_folder else {"train": location.path}
        classes = named_classes(location.path if location.is_folder else location.path.parent)
        read: dict[str, MaskedSplit] = {}
        folders: list[Path] = []
        for split, file in files.items():
            if is_left_out(split, location.reading):
                continue
            table = read_table(file)
            columns = _pairs(location, table)
            if columns is None and split == "test":
                location.say(f"{file.name} has no masks and is not used")
                continue
            if columns is None:
                raise errors.DataError(
                    f"{file}: expected a column that names images and one that names masks, found "
                    f"{', '.join(table.columns)}. Give them as --image-column and --label-column, and their folder as "
                    f"--data-root."
                )
            add_splits(read, split, _read(location, table, columns, classes), file)
            folders.append(columns[2].path)
        location.root = common_folder(location, folders)
        return read


def _is_mask(path: str) -> bool:
    return any(part.lower() in MASK_FOLDERS for part in PurePath(path).parts[:-1])


def _pairs(location: Location, table: Table) -> tuple[str, str, ImageFolder, ImageFolder] | None:
    """Return the columns of images and of masks, and where the files are; None if no column names masks.

    Files in a folder named as masks are masks. Without such a folder any image file can be one.
    """
    try:
        column, images = find_images(location, table, lambda path: not _is_mask(path), _MASKS)
    except errors.DataError:
        return None
    inside = Location(images.path, location.reading)
    masks = ImageFolder(inside, _is_mask)
    masks = masks if masks.files else images
    wanted = location.reading.label_column
    found = [name for name in most_found(table, masks) if (name != column or masks is not images)]
    named = sorted(found, key=lambda name: rank(name, _MASKS))
    if wanted is not None:
        named = [wanted] if wanted in named else []
    elif not named or (rank(named[0], _MASKS) == len(_MASKS) and len(named) > 1):
        return None
    return (column, named[0], images, masks) if named else None


def _read(
    location: Location, table: Table, columns: tuple[str, str, ImageFolder, ImageFolder], classes: tuple[str, ...]
) -> dict[str, MaskedSplit]:
    """Return the splits in one table."""
    image, mask, images, masks = columns
    check_not_several(location, table, image, images, [mask])
    use_groups(location, table)
    files = [files_of(location, table, column, folder) for column, folder in ((image, images), (mask, masks))]
    rows = [row for row, pair in enumerate(zip(*files, strict=True)) if all(pair)]
    names = [table.row(row) for row in rows]
    whole = MaskedSplit(
        EncodedFiles([files[0][row] for row in rows]),
        RowFiles([files[1][row] for row in rows], names),
        classes,
        {name: [cells[row] for row in rows] for name, cells in table.columns.items()},
    )
    _, splits = splits_of(location, table)
    return divided(whole, None if splits is None else [splits[row] for row in rows])
