"""Train small networks, alone or as one of several processes, and save what this process read and wrote.

python train_in_processes.py FOLDER CASE ...
torchrun --standalone --nproc-per-node 2 train_in_processes.py FOLDER CASE ...
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gatewise.comparison import compare, run_results
from gatewise.data import Dataset, Images, SegmentationDataset, load, load_pairs
from gatewise.errors import GatewiseError
from gatewise.gates.spec import parse_gates
from gatewise.graph import measure
from gatewise.training import Processes, Recipe, learner, train
from gatewise.training.distributed import mean_over_processes
from gatewise.training.tasks.segment import pixel_loss
from support.few_digits import first_digits
from support.small_runs import RECIPE, dataset_in_memory

PLAIN = "test_convnext:patch_size=1"  # no BatchNorm, no noise
SCENES: dict[str, Any] = {"task": "segment", "model": "test_resnet:channels=8", "ignore_index": 9, "batch_size": 6}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"model": PLAIN, "gate": "gct", "ema": 0.5},
    "normed": {"epochs": 2},
    "one_step": {"epochs": 1, "batch_size": 48},
    "noisy": {"model": f"{PLAIN},drop_rate=0.5", "epochs": 1},
    "gater": {"gate": "gaternet:budget=0.5", "epochs": 2},
    "scenes": {**SCENES, "epochs": 1},
    "uneven": {"batch_size": 15},
}


def recipe_of(case: str, folder: Path) -> Recipe:
    return dataclasses.replace(RECIPE, **CASES[case], data=str(folder / "scenes") if case == "scenes" else "memory")


def data_of(recipe: Recipe) -> Dataset | SegmentationDataset:
    """Return 48 and 29 images: 29 are two batches of 16, and no number of images for two processes."""
    if recipe.task == "segment":
        return load_pairs(recipe.data, **{name: getattr(recipe, name) for name in ("ignore_index", "crop_size")})
    data = dataset_in_memory()
    validation = Images(data.validation.pixels[:29], data.validation.labels[:29])
    return dataclasses.replace(data, validation=validation)


def why_observed(folder: Path, written: list[str]) -> None:
    """Record every file below `folder` that this process opens for writing, renames, makes or removes."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"} or (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if writes and str(arguments[0]).startswith(str(folder)):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)


def gradient_of_pixels(processes: Processes) -> list[float]:
    """Return the mean gradient of a loss over pixels of which the second process has one, the first three."""
    logits = torch.zeros(2, 2, 2, 2, requires_grad=True)
    masks = torch.tensor([[[0, 1], [1, 255]], [[1, 255], [255, 255]]])
    own = slice(processes.rank, None, processes.count)
    weights = torch.tensor([1.0, 2.0])
    pixel_loss(logits[own], masks[own], weights, shared=mean_over_processes).backward()
    assert logits.grad is not None
    gradients = torch.stack(processes.all_gather_object(logits.grad))
    return gradients.mean(0).flatten().tolist()


def compared(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Compare gct with no gate on a few digits, and measure latency as briefly as possible."""
    small = first_digits()
    with (
        mock.patch.object(load, "load_dataset", return_value=small),
        mock.patch.object(run_results, "_ROUNDS", 2),
        mock.patch.object(measure, "_calls_within", return_value=1),
    ):
        return compare(recipe, [(), parse_gates("gct")], 1, out)


def main(folder: Path, *cases: str) -> None:
    torch.set_num_threads(1)
    processes = Processes()
    written: list[str] = []
    seeds: list[int] = []
    found: dict[str, Any] = {"gradient": gradient_of_pixels(processes), "written": written, "seeds": seeds}
    out = folder / f"of_{processes.count}"
    why_observed(out, written)
    seed = learner.seed_generators
    learner.seed_generators = lambda number: seeds.append(number) or seed(number)
    for case in cases:
        recipe = recipe_of(case, folder)
        try:
            found[case] = train(recipe, out / case, dataset=data_of(recipe))
        except GatewiseError as error:
            found[case] = str(error)
    if "plain" in cases:
        recipe = dataclasses.replace(recipe_of("plain", folder), ema=0.0, epochs=1, data="digits", batch_size=32)
        found["comparison"] = compared(recipe, out / "comparison")
    (folder / f"{processes.rank}_of_{processes.count}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
