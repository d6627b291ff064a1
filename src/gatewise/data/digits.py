"""The data set "digits": scikit-learn's handwritten digits."""

from typing import Any

import torch

from gatewise.core import _validation
from gatewise.data.images import Dataset, Images


def read_digits() -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, 8x8; a stratified random fifth is for validation."""
    datasets = _validation.import_optional("sklearn.datasets", "the digits data set")
    selection = _validation.import_optional("sklearn.model_selection", "the digits data set")
    bunch: Any = datasets.load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, validation = selection.train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return Dataset(
        "digits",
        tuple(str(digit) for digit in range(10)),
        Images(pixels[train], labels[train]),
        Images(pixels[validation], labels[validation]),
        padding=1,
        flip=False,
    )
