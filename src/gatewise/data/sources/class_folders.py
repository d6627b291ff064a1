"""Images in class folders: CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg, at any depth below the class."""

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.wording import counted
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.layout import class_folders, inner, split_folders
from gatewise.data.reading import OtherReading
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, hint_about_files, register_source

_OF_MASKS = {"mask", "label", "annotation", "segmentation"}


@register_source("class_folders", help="a folder with CLASS/, or with train/CLASS/ and val/CLASS/", order=60)
class ClassFolders(LabelledSource):
    """A folder with images in CLASS/ or SPLIT/CLASS/; `SPLIT_WORDS` has the names of splits."""

    def matches(self, location: Location) -> bool:
        if not location.is_folder or split_folders(location):
            return location.is_folder
        found, reading = class_folders(location), location.reading
        return len(found) > 1 or (isinstance(reading, OtherReading) and not found.keys().isdisjoint(reading.classes))

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        folders = split_folders(location)
        if not folders:
            return {"train": _read_split(location)}
        if "train" not in folders and not isinstance(location.reading, OtherReading):
            raise errors.DataError(
                f"{location} has no train split: expected train/ with class folders, found {location.content()}."
            )
        if "test" in folders and not class_folders(location, folders["test"]):
            location.say(f"{folders['test']}/ has no class folders and is not used")
            del folders["test"]
        return {split: _read_split(location, name) for split, name in folders.items()}


def _read_split(location: Location, *below: str) -> LabelledSplit:
    """Return the images of one split, or of the whole location."""
    shown = "".join(f"{name}/" for name in below)
    grouped = location.images_by_folder(*inner(location, *below))
    loose = grouped.pop("")
    images = {name: files for name, files in grouped.items() if files}
    if not images:
        raise errors.DataError(
            f"{location}: {shown} has {counted(len(loose), 'image')} and no class folders; expected {shown}CLASS/ "
            f"(for labels in a table, give the table as --data). {hint_about_files(location)}".rstrip()
        )
    singular = {name.lower().rstrip("s") for name in images}
    if singular <= _OF_MASKS | {"image", "img"} and singular & _OF_MASKS:
        raise errors.DataError(
            f"{location.path / shown}: expected one folder per class, with images of that class, found folders of "
            f"images and masks ({', '.join(images)}). For masks set task to segment."
        )
    if empty := [f"{shown}{name}/" for name, files in grouped.items() if not files]:
        location.say(f"no images in {_validation.listed(empty, 5)}: no class")
    if loose:
        location.say(f"{counted(len(loose), 'image')} next to the class folders of {shown or location} not used")
    labels = [label for label, files in enumerate(images.values()) for _ in files]
    return LabelledSplit(
        EncodedFiles([file for files in images.values() for file in files]), labels, tuple(images), shown=shown
    )
