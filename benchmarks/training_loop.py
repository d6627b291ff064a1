"""Compare the images per second of `gatewise train` with bare steps on tensors in memory.

    python benchmarks/training_loop.py [--rounds 7] [--images 12800] [--out FILE]

The bare loop has the same network, precision, layout and optimizer. It has no augmentation, shuffling, schedule or
log. Both run in turn, one epoch each, and each round gives one ratio.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.data import Dataset, Images
from gatewise.graph.measure import environment
from gatewise.training import Recipe, train
from gatewise.training.learner import resolve_precision

BATCH = 128


def random_dataset(images: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Images(pixels, torch.arange(images) % 10)
    few = Images(pixels[:500], split.labels[:500])
    return Dataset("random", tuple("0123456789"), split, few, padding=4, flip=True)


def bare_epoch(model: str, images: int, device: torch.device) -> float:
    """Return images per second of bare steps."""
    net = gw.make_model(model, seed=0).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(BATCH, device=device) % 10
    half = resolve_precision("auto", device) == "bf16"
    steps = images // BATCH
    started = time.perf_counter()
    for _ in range(steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loss.item()
    return steps * BATCH / (time.perf_counter() - started)


def our_epoch(model: str, dataset: Dataset) -> float:
    """Return images per second of one epoch of the training loop, from its own log."""
    with tempfile.TemporaryDirectory() as folder:
        train(Recipe(model=model, epochs=1, batch_size=BATCH, lr=0.01), folder, dataset=dataset)
        row = json.loads((Path(folder) / "log.jsonl").read_text())
    return row["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = random_dataset(options.images)
    bare_epoch(options.model, 10 * BATCH, device), our_epoch(options.model, random_dataset(10 * BATCH))  # warm up
    pairs = []
    for number in range(options.rounds):
        pairs.append((our_epoch(options.model, dataset), bare_epoch(options.model, options.images, device)))
        print(f"round {number + 1}: train {pairs[-1][0]:.0f}, bare {pairs[-1][1]:.0f} images/s", flush=True)
    low, median, high = statistics.quantiles([ours / bare for ours, bare in pairs], n=4, method="inclusive")
    results = {
        "environment": environment(device),
        "model": options.model,
        "images": options.images,
        "ratio": {"median": median, "low": low, "high": high},
        "images_per_second": [{"train": ours, "bare": bare} for ours, bare in pairs],
    }
    print(f"ratio {median:.3f} [{low:.3f}, {high:.3f}] over {options.rounds} rounds")
    out = options.out or Path(__file__).parent / "results" / f"training_loop-{device.type}.json"
    write_json(out, results)
    print(out)


if __name__ == "__main__":
    main()
