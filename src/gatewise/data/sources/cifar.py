"""CIFAR-10 and CIFAR-100, from the files that torchvision downloads."""

import torch

from gatewise.data.folders import Location
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source
from gatewise.data.torchvision_files import default_root, open_data_set

_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


@register_source("cifar", help=", ".join(_FOLDERS), order=20)
class Cifar(LabelledSource):
    """One of the two data sets by name, downloaded if missing, or the folder that contains its files."""

    names = tuple(_FOLDERS)

    def matches(self, location: Location) -> bool:
        return _name(location) is not None

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        name = str(_name(location))
        root = location.path if location.is_folder else default_root()
        splits: dict[str, LabelledSplit] = {}
        for split in ("train", "validation"):
            data = open_data_set(_CLASSES[name], root, root / _FOLDERS[name], train=split == "train")
            pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
            splits[split] = LabelledSplit(pixels, data.targets, tuple(data.classes))
        return splits


def _name(location: Location) -> str | None:
    """Return the name of the data set at a location, or None; a path of that name wins over the name."""
    if location.text in _FOLDERS and not location.path.exists():
        return location.text
    return next((name for name, folder in _FOLDERS.items() if location.has_folder(folder)), None)
