"""Images in memory and in class folders, and augmentations of each kind."""

from pathlib import Path

import pytest
import torch

from gatewise.data import Augmentation, Images
from gatewise.data.decode import picture_of

ZERO, ONE = torch.zeros(3), torch.ones(3)
KINDS = [
    Augmentation(),
    Augmentation(padding=2, flip=True),
    Augmentation(crop=True),
    Augmentation(padding=1, policy="rand-m9-mstd0.5"),
    Augmentation(crop=True, flip=True, policy="augmix-m3-w2"),
]


def images(count: int = 12, channels: int = 3, size: int = 16) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders with the same 12 images to learn from and to measure on."""
    root = tmp_path_factory.mktemp("folders")
    for split in ("train", "val"):
        for index in range(12):
            path = root / split / "ab"[index // 6] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture_of(images()[index]).save(path)
    return root
