"""Read CIFAR-10 and CIFAR-100 from the files that torchvision downloads."""

from pathlib import Path
from typing import Any

import torch

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.images import Images

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def default_root() -> Path:
    """Return the default folder for torchvision's files."""
    return Path(torch.hub.get_dir()).parent / "datasets"


def holds_torchvision_files(folder: Path) -> str | None:
    """Return the name of the torchvision data set whose files are in `folder`, or None."""
    return next((name for name, inside in FOLDERS.items() if (folder / inside).is_dir()), None)


def read_torchvision(name: str, root: Path) -> dict[str, tuple[Images, tuple[str, ...]]]:
    """Return both splits of a torchvision data set.

    Args:
        name: "cifar10" or "cifar100".
        root: folder of the files, which are downloaded if missing.

    Raises:
        DataError: the files are damaged or cannot be downloaded.
    """
    datasets = _validation.import_optional("torchvision.datasets", f"the data set {name}")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    exists = (root / FOLDERS[name]).is_dir()
    splits: dict[str, tuple[Images, tuple[str, ...]]] = {}
    for split in ("train", "validation"):
        try:
            dataset: Any = kind(str(root), train=split == "train", download=not exists)
        except (OSError, RuntimeError) as error:
            problem = "is damaged; remove it to download it again" if exists else "could not be downloaded"
            reason = " ".join(str(error).split())[:200]
            raise errors.DataError(f"{root / FOLDERS[name]} {problem} ({reason}).") from None
        pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        splits[split] = Images(pixels, torch.tensor(dataset.targets)), tuple(dataset.classes)
    return splits
