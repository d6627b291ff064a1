"""Open the data sets whose files torchvision downloads."""

from pathlib import Path
from typing import Any

import torch

from gatewise.core import _validation
from gatewise.core.reasons import as_data_error


def default_root() -> Path:
    """Return the default folder for torchvision's files."""
    return Path(torch.hub.get_dir()).parent / "datasets"


def open_data_set(kind: str, root: Path, folder: Path, **options: Any) -> Any:
    """Open one split of a torchvision data set; its files are downloaded if they are missing.

    Args:
        kind: name of the class in `torchvision.datasets`.
        root: torchvision's folder.
        folder: the folder of this data set in it; if it exists, nothing is downloaded.
        options: further arguments of the class, which choose the split.

    Raises:
        DataError: the files are incomplete or damaged, or cannot be downloaded.
    """
    datasets = _validation.import_optional("torchvision.datasets", f"the data set {kind}")
    exists = folder.is_dir()
    problem = "is incomplete or damaged" if exists else "could not be downloaded"
    advice = "Remove it to download it again." if exists else "Check the network."
    with as_data_error(folder, problem, advice, of=(OSError, RuntimeError)):
        return getattr(datasets, kind)(str(root), download=not exists, **options)
