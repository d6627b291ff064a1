"""Write data sets of CIFAR-10 pictures with computed labels: several for each picture, and a number.

    python benchmarks/computed_labels.py CIFAR10 OUT [--train 3000] [--held-out 1000]

CIFAR10 is a folder with train*.parquet and validation*.parquet. OUT gets `labels/labels.csv` for `--task multilabel`
and `edges/edges.csv` for `--task regress`, each with a column `split`, and the pictures. Of the six labels four follow
from the class of a picture and two from its pixels; the number follows from the pixels alone, so it can be predicted
exactly.
"""

# pyright: basic

import argparse
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet as parquet
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OF_CLASS = {
    "animal": {"bird", "cat", "deer", "dog", "frog", "horse"},
    "flies": {"airplane", "bird"},
    "hooves": {"deer", "horse"},
    "wheels": {"airplane", "automobile", "truck"},
}


def of_pixels(pixels: numpy.ndarray) -> dict[str, bool]:
    """Return the labels that follow from the pixels (H, W, 3) of a picture, 0 to 255."""
    red, _, blue = pixels.mean((0, 1))
    return {"dark": bool(pixels.mean() < 95), "reddish": bool(red > blue + 25)}


def count_edges(pixels: numpy.ndarray) -> int:
    """Return the number of pairs of neighbouring pixels whose mean over colours differs by more than 32."""
    grey = pixels.mean(2)
    return sum(int((numpy.abs(numpy.diff(grey, axis=axis)) > 32).sum()) for axis in (0, 1))


def pictures(file: Path, first: int, last: int) -> Iterator[tuple[bytes, str]]:
    """Yield the encoded pictures of some rows of a table, each with its class."""
    rows = parquet.read_table(file).slice(first, last - first).to_pydict()
    for image, label in zip(rows["img"], rows["label"], strict=True):
        yield image["bytes"], CLASSES[label]


def write(cifar10: Path, out: Path, train: int, held_out: int) -> None:
    """Write both data sets."""
    files = {name: next(cifar10.glob(f"{name}*.parquet")) for name in ("train", "validation")}
    parts = {
        "train": pictures(files["train"], 0, train),
        "val": pictures(files["validation"], 0, held_out),
        "test": pictures(files["validation"], held_out, 2 * held_out),
    }
    labels: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    for split, found in parts.items():
        for number, (content, kind) in enumerate(found):
            name = f"images/{split}_{number:05}.jpg"
            pixels = numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=numpy.float64)
            hot = {label: kind in kinds for label, kinds in OF_CLASS.items()} | of_pixels(pixels)
            labels.append({"image": name, "split": split} | {label: int(value) for label, value in hot.items()})
            edges.append({"image": name, "split": split, "edges": count_edges(pixels)})
            for folder in ("labels", "edges"):
                (out / folder / "images").mkdir(parents=True, exist_ok=True)
                (out / folder / name).write_bytes(content)
    for folder, rows in (("labels", labels), ("edges", edges)):
        with (out / folder / f"{folder}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, metavar="CIFAR10")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--train", type=int, default=3000, help="pictures for training [3000]")
    parser.add_argument("--held-out", type=int, default=1000, help="pictures each for validation and test [1000]")
    options = parser.parse_args()
    write(options.cifar10, options.out, options.train, options.held_out)


if __name__ == "__main__":
    main()
