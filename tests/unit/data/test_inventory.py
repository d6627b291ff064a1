"""What `gatewise check` counts in masks, against a count in loop form."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from gatewise.data import PairSource
from gatewise.data.inventory import take_inventory

RNG = np.random.default_rng(0)
NAMES = "sky,road,car,void"
VOID = 3


def write_pairs(folder: Path, values: list[list[int]]) -> dict[str, Counter[int]]:
    """Write pairs of 6x5 pixels, one for each list of mask values to draw from; return the pixels by split."""
    written: dict[str, Counter[int]] = {"train": Counter(), "val": Counter()}
    for number, choices in enumerate(values):
        split = "train" if number else "val"
        mask = RNG.choice(np.array(choices, dtype=np.uint8), size=(5, 6))
        for kind, picture in (("images", np.full((5, 6, 3), number, dtype=np.uint8)), ("masks", mask)):
            file = folder / split / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
        written[split].update(map(int, mask.flat))
    return written


def test_pixels_of_each_class_are_counted_in_each_split(tmp_path: Path) -> None:
    written = write_pairs(tmp_path, [[0, 1, 2, 2], [0, 1], [0, VOID, VOID]])
    found = take_inventory(PairSource(data=str(tmp_path), class_names=NAMES, ignore_index=VOID))
    for split, counts in (("train", written["train"]), ("validation", written["val"])):
        expected = {"sky": counts[0], "road": counts[1], "car": counts[2], "ignored": counts[VOID]}
        assert found.details["pixel_counts"][split] == expected
    train, validation = written["train"], written["val"]
    kept = train[0] + train[1]
    assert found.facts[1:6] == [
        "classes of pixels: 3",
        f"  sky: {100 * train[0] / kept:.2f} % of train, {100 * validation[0] / 30:.2f} % of validation",
        f"  road: {100 * train[1] / kept:.2f} % of train, {100 * validation[1] / 30:.2f} % of validation",
        f"  car: 0.00 % of train, {100 * validation[2] / 30:.2f} % of validation",
        f"  ignored: {100 * train[VOID] / 60:.2f} % of train, 0.00 % of validation",
    ]


def test_background_of_single_class_is_counted(tmp_path: Path) -> None:
    written = write_pairs(tmp_path, [[0, 1], [0, 1, 1]])
    found = take_inventory(PairSource(data=str(tmp_path), class_names="background,disc", foreground="disc"))
    counts = written["train"]
    expected = {"background": counts[0], "disc": counts[1], "ignored": 0}
    assert found.details["pixel_counts"]["train"] == expected
    assert not any("ignored" in line for line in found.facts)
