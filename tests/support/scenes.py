"""A folder of small scenes with masks, and a run on it.

Each process makes them once, for all modules that use these fixtures; tests only read them.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatewise.training import Recipe, train

CLASSES = ("wall", "disc", "square")
TINY = "test_resnet:channels=8"  # timm's smallest, as a backbone
SIDE = 48


def scene(number: int) -> tuple[Image.Image, Image.Image]:
    """Return a picture of a bright disc and a dark square before a noisy wall, and its mask with a border of 9."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, : SIDE + 4]
    mask = np.zeros((SIDE, SIDE + 4), dtype=np.uint8)
    cy, cx, top, left = draw.integers(10, SIDE - 14, 4)
    mask[(y - cy) ** 2 + (x - cx) ** 2 < 120] = 1
    mask[top : top + 14, left : left + 14] = 2
    pixels = np.array([[120, 120, 120], [230, 40, 40], [20, 60, 200]], dtype=np.int64)[mask]
    pixels = (pixels + draw.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
    mask[:1] = 9
    return Image.fromarray(pixels), Image.fromarray(mask)


@functools.cache
def _scenes(base: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=base))
    for split, numbers in (("train", range(24)), ("val", range(24, 32))):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in numbers:
            picture, mask = scene(number)
            picture.save(folder / split / "images" / f"{number}.png")
            mask.save(folder / split / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def _recipe(folder: Path) -> Recipe:
    sizes = {"epochs": 2, "batch_size": 6, "lr": 0.05}
    return Recipe(task="segment", data=str(folder), model=TINY, ignore_index=9, precision="fp32", **sizes)


@functools.cache
def _run(folder: Path) -> Path:
    out = Path(tempfile.mkdtemp(dir=folder.parent)) / "run"
    chosen = {"model": f"{TINY},output_stride=8", "gate": "gc@context", "augmentation": "flip"}
    train(dataclasses.replace(_recipe(folder), **chosen, epochs=20, optimizer="adamw", lr=0.003), out)
    return out


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 24 + 8 scenes."""
    return _scenes(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def recipe(folder: Path) -> Recipe:
    return _recipe(folder)


@pytest.fixture(scope="session")
def done(folder: Path) -> Path:
    """Return a finished run with a context block."""
    return _run(folder)
