"""What `gatewise check` counts in masks, against a count in loop form, and of images that cannot be read."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatewise.data import PairSource
from gatewise.data.inventory import take_inventory
from gatewise.data.load import DataSource
from gatewise.errors import DataError
from support.picture_folders import by_class

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


def test_any_number_of_broken_images_is_counted(tmp_path: Path) -> None:
    """More than 5 % ended the check, which named one of them."""
    by_class(tmp_path, {"cat": 10, "dog": 10})
    for number in range(3):
        (tmp_path / f"cat/{number}.png").write_bytes(b"")
    found = take_inventory(DataSource(data=str(tmp_path)))
    assert [Path(name).name for name, _ in found.broken] == ["0.png", "1.png", "2.png"]
    assert sum(found.counts[split]["cat"] for split in ("train", "validation")) == 7
    assert "warning: 3 of 20 images of train cannot be read; --on-broken skip leaves out up to 5%" in found.facts


@pytest.mark.parametrize(
    ("broken", "expected"),
    [("train/cat", "3 of 6 images of train"), ("val", "2 of 2 images of val"), ("test", "2 of 2 images of test")],
)
def test_broken_images_are_the_reason_if_none_of_a_class_or_split_is_left(
    tmp_path: Path, broken: str, expected: str
) -> None:
    by_class(tmp_path, {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1, "test/cat": 1, "test/dog": 1})
    for file in (tmp_path / broken).rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{expected}/? cannot be read, more than 5%: .*{broken}.*0\.png"):
        take_inventory(DataSource(data=str(tmp_path)))
