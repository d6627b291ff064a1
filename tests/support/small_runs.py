"""Small trainings on images in memory, and what they wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gatewise.data import Augmentation, Dataset, Images
from gatewise.training import Progress, Recipe, from_recipe, learner, train

RECIPE = Recipe(data="memory", model="resnet20", epochs=3, batch_size=16, lr=0.02, precision="fp32")
TIMES = ("seconds", "images_per_second")
SHIFT = Augmentation(padding=1)


def dataset_in_memory(flip: bool = False) -> Dataset:
    """Return 48 and 30 noisy images, 8x8, of three classes."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 256, (3, 1, 8, 8), generator=generator)

    def split(count: int) -> Images:
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 256, (count, 1, 8, 8), generator=generator)
        return Images(((2 * patterns[labels] + noise) // 3).to(torch.uint8), labels)

    return Dataset("memory", ("a", "b", "c"), split(48), split(30), padding=1, flip=flip)


DATASET = dataset_in_memory()


class Stop(Exception):  # noqa: N818
    """The end of a training before its time."""


class Interrupting(Progress):
    """Stops the training at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__(quiet=True)
        self.last = epoch

    def epoch(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == self.last:
            raise Stop


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def log(out: Path, *left_out: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in left_out} for row in rows]


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def trained(folder: Path, recipe: Recipe = RECIPE, **options: Any) -> dict[str, Tensor]:
    """Train into the folder and return the weights."""
    train(recipe, folder, dataset=DATASET, **options)
    return weights(folder)


def trained_without_results(folder: Path, *, resume: bool = False) -> Path:
    """Train all epochs into the folder and stop as a kill would before the results are written; return the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_recipe, "write_results", Mock(side_effect=Stop))
        with pytest.raises(Stop):
            train(RECIPE, folder, dataset=DATASET, resume=resume)
    return folder


def content_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time of change and bytes of every file."""
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted(folder.rglob("*")) if f.is_file()}


def look_rarely(patch: pytest.MonkeyPatch) -> None:
    """Check losses only every few steps, as on a GPU."""
    patch.setattr(learner, "check_loss_finite", lambda *_: None)
    patch.setattr(learner, "check_gradients_finite", lambda _: None)
