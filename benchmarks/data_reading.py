"""Measure the time and memory until the first batch of many small files, in class folders and named by a table.

    python benchmarks/data_reading.py [--images 100000] [--classes 100] [--rounds 3] [--folder FOLDER] [--out FILE]

Three ways, in turn and each in a new process: class folders (divided by the rule), a CSV with the same files, and
torchvision's ImageFolder with a DataLoader. The files are written once; the first round warms the system's cache of
files and is left out. Images are streamed, without workers, in batches of 128. On a machine that does other work,
seconds of CPU (user and system) say more than seconds of the clock.
"""

import argparse
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gatewise.core.files import write_json

_BATCH = 128


def write_images(folder: Path, images: int, classes: int) -> None:
    """Write small JPEG files that differ in a few bytes at their end, and a table of them."""
    from PIL import Image

    drawn = random.Random(0)
    pictures: list[bytes] = []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (32, 32), drawn.randbytes(3 * 32 * 32)).save(buffer, format="JPEG")
        pictures.append(buffer.getvalue())
    rows = ["file,label"]
    for number in range(images):
        name = f"class_{number % classes:03}/{number:06}.jpg"
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % 64] + str(number).encode())  # decoders ignore what follows the image
        rows.append(f"photos/{name},class_{number % classes:03}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def first_batch(way: str, folder: Path) -> None:
    """Read one batch in one way, and print seconds and memory as JSON."""
    import torch

    import_started = time.perf_counter()
    if way == "ImageFolder":
        from torchvision import datasets, transforms
    else:
        from gatewise.data import Augmentation, load_dataset, make_batches
    cpu, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if way == "ImageFolder":
        images = datasets.ImageFolder(str(folder / "photos"), transforms.ToTensor())
        batch = next(iter(torch.utils.data.DataLoader(images, _BATCH, shuffle=True)))
        parts = {}
    else:
        source = folder / ("photos" if way == "class folders" else "labels.csv")
        dataset = load_dataset(source, loading="stream")
        loaded = time.perf_counter() - started
        mean, std = dataset.statistics()
        measured = time.perf_counter() - started - loaded
        batches = make_batches(dataset.train, _BATCH, mean, std, augmentation=Augmentation())
        batch = next(batches.training(0, seed=0, augmentation=Augmentation()))
        parts = {"read_and_divided_s": loaded, "statistics_s": measured}
    assert len(batch[0]) == _BATCH
    print(
        json.dumps({
            "seconds": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
            **parts,
            "memory_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
            "import_s": started - import_started,
        })
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/gatewise_data_reading"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/data_reading-cpu.json")
    parser.add_argument("--way", help="measure one way in this process; used by the program itself")
    options = parser.parse_args()
    if options.way:
        first_batch(options.way, options.folder)
        return
    if not (options.folder / "labels.csv").exists():
        write_images(options.folder, options.images, options.classes)
    found: dict[str, list[dict[str, float]]] = {"class folders": [], "table": [], "ImageFolder": []}
    for number in range(options.rounds + 1):
        for way, results in found.items():
            command = [sys.executable, __file__, "--way", way, "--folder", str(options.folder)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if number:
                results.append(json.loads(printed))
    for way, results in found.items():
        middle = {name: statistics.median(result[name] for result in results) for name in results[0]}
        print(way, ", ".join(f"{name} {value:.2f}" for name, value in middle.items()))
    write_json(options.out, {"images": options.images, "classes": options.classes, "rounds": found})


if __name__ == "__main__":
    main()
