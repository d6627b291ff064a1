"""Measure what a teacher adds to a training step: time and memory without one, with itself, and with a finished run.

    python benchmarks/teachers.py [--model NAME] [--side 32] [--batch 128] [--gates gates] [--rounds 15] [--out FILE]

Steps of `gatewise train` on random images: of the plain network, of a GaterNet with a budget of 0.5, and of one with
four routes, each without teacher, taught by a plain run, and (with gates) by itself. All are timed in turn in one
process, so that each round gives a ratio to the step of the same network without teacher. Memory is the peak of the
steps above that before them: of a GPU by its own counter, otherwise resident memory of a process of its own (Linux).
"""

import argparse
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gatewise.core.files import write_json
from gatewise.data import Dataset, Images
from gatewise.graph.measure import environment, interleaved_latency
from gatewise.training import Recipe, train
from gatewise.training.from_recipe import build

GATES = {"plain": "none", "gates": "gaternet:budget=0.5", "routes": "gaternet:budget=0.5,routes=4"}
TEACHERS = ("none", "run", "self")
STEPS_FOR_MEMORY = 3


def random_dataset(side: int, batch: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(batch) % 10)
    return Dataset("random", tuple("0123456789"), images, images, padding=4, flip=True)


def recipe_of(form: str, model: str, batch: int, run: str) -> Recipe:
    gates, teacher = form.split()
    taught = {"none": None, "run": run, "self": "self"}[teacher]
    return Recipe(
        data="random",
        model=model,
        gate=GATES[gates],
        teacher=taught,
        epochs=2,
        batch_size=batch,
        lr=1e-4,
        dense_epochs=0,
    )


def step_of(recipe: Recipe, dataset: Dataset) -> Callable[[], Any]:
    """Return a function that takes one training step with all that a recipe asks for."""
    setup = build(recipe.plan(), dataset)
    learner = setup.learner
    learner.begin(setup.plan.stages[-1])
    learner.model.train()
    ((images, labels),) = setup.batches.training(0, seed=0, augmentation=setup.augmentation)
    return functools.partial(learner.step, images, labels, recipe.lr, 0)


def memory(step: Callable[[], Any]) -> float:
    """Return the peak memory of a few steps above that before them, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
        before, peak = resident("VmRSS"), functools.partial(resident, "VmHWM")
    for _ in range(STEPS_FOR_MEMORY):
        step()
    return (peak() - before) / 2**20


def resident(entry: str) -> int:
    """Return the resident memory of this process, now (VmRSS) or at its peak (VmHWM), in bytes; on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("FORM", "RUN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    dataset = random_dataset(args.side, args.batch)
    if args.memory_of:
        form, run = args.memory_of
        print(memory(step_of(recipe_of(form, args.model, args.batch, run), dataset)))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forms = [f"{gates} {taught}" for gates in args.gates for taught in TEACHERS if (gates, taught) != ("plain", "self")]
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as run:
        train(recipe_of("plain none", args.model, args.batch, ""), run, dataset=dataset, track=())
        own = [sys.executable, __file__, "--model", args.model, "--side", str(args.side), "--batch", str(args.batch)]
        for form in forms:
            found = subprocess.run([*own, "--memory-of", form, run], check=True, capture_output=True, text=True)
            peaks[form] = float(found.stdout)
            print(f"{form}: {peaks[form]:.0f} MiB", flush=True)
        steps = {form: step_of(recipe_of(form, args.model, args.batch, run), dataset) for form in forms}
        times = interleaved_latency(steps, rounds=args.rounds, seconds_per_turn=0.1)
    rows: dict[str, Any] = {}
    for form in forms:
        alone = f"{form.split()[0]} none"
        ratio = times[form].times(times[alone])
        rows[form] = {
            "ms": 1e3 * times[form].median_s,
            "of_no_teacher": [ratio.median_s, ratio.low_s, ratio.high_s],
            "step_mib": peaks[form],
        }
        spread = f"{ratio.median_s:.2f} [{ratio.low_s:.2f}, {ratio.high_s:.2f}]"
        print(f"{form:12} {rows[form]['ms']:8.1f} ms, {spread} times {alone}", flush=True)
    if args.out is not None:
        settings = {"model": args.model, "side": args.side, "batch": args.batch, "rounds": args.rounds}
        write_json(args.out, {"environment": environment(device), **settings, "forms": rows})


if __name__ == "__main__":
    main()
