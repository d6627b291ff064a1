"""Folders of small random pictures, laid out as people have them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Return random pixels of a (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, names: Sequence[str], seed: int = 0) -> Path:
    """Write a different picture under each relative path; return the folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed + number).save(path)
    return folder


def by_class(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write CLASS/N.png for each class; a class may be a path with several folders."""
    names = [f"{name}/{number}.png" for name, count in counts.items() for number in range(count)]
    return write_pictures(folder, names, seed)
