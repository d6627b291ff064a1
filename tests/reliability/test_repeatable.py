"""Repeatability: the same bytes for the same seed, with any number of threads and workers and any hash seed."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gatewise.data import Augmentation, Batches, load_dataset, make_batches
from gatewise.training import train
from support.class_folders import (
    KINDS,
    ONE,
    ZERO,
    folder,
    images,
)
from support.small_runs import RECIPE, trained
from support.whole_files import outcome

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors
__all__ = ["folder"]  # a fixture


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def epochs(batches: Batches, augmentation: Augmentation) -> list[Tensor]:
    """Return all that two epochs show."""
    pairs = [pair for number in (0, 1) for pair in batches.training(number, seed=5, augmentation=augmentation)]
    return [tensor for pair in pairs for tensor in pair]


@pytest.mark.extended
@pytest.mark.parametrize("gate", ["none", "gct", "gaternet"])
def test_same_seed_writes_same_bytes(tmp_path: Path, gate: str) -> None:
    recipe = dataclasses.replace(RECIPE, gate=gate, epochs=2)
    for name in ("first", "second"):
        torch.manual_seed(len(name))
        trained(tmp_path / name, recipe)
    first, second = outcome(tmp_path / "first"), outcome(tmp_path / "second")
    assert first == second
    assert {"model.safetensors", "config.json", "recipe.yaml", "predictions.safetensors"} <= set(first)


@pytest.mark.parametrize("augmentation", KINDS, ids=str)
def test_number_of_threads_does_not_change_batches(threads: int, augmentation: Augmentation) -> None:
    found = digest(epochs(make_batches(images(), 4, ZERO, ONE, augmentation=augmentation), augmentation))
    torch.set_num_threads(1)
    assert found == digest(epochs(make_batches(images(), 4, ZERO, ONE, augmentation=augmentation), augmentation))


@pytest.mark.extended
def test_number_of_workers_does_not_change_bytes_of_run(folder: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        RECIPE, data=str(folder), batch_size=4, epochs=2, loading="stream", augmentation="crop"
    )
    dataset = load_dataset(folder, loading="stream")
    for workers in (0, 1, 3):
        train(recipe, tmp_path / str(workers), dataset=dataset, workers=workers)
    alone = outcome(tmp_path / "0")
    assert outcome(tmp_path / "1") == alone
    assert outcome(tmp_path / "3") == alone


SHOW = """
import hashlib, sys
from gatewise.data import load_dataset, make_batches
dataset = load_dataset(sys.argv[1], loading="stream")
augmentation = dataset.augmentation("auto")
batches = make_batches(dataset.train, 4, *dataset.statistics(), augmentation=augmentation, workers=int(sys.argv[2]))
found = hashlib.sha256()
for epoch in range(3):
    for pixels, labels in batches.training(epoch, seed=7, augmentation=augmentation):
        found.update(pixels.contiguous().numpy().tobytes() + labels.numpy().tobytes())
print(found.hexdigest())
"""


@pytest.mark.slow
def test_threads_workers_and_hash_seeds_do_not_change_images(folder: Path) -> None:
    shown = set()
    for threads, workers, hashes in ((1, 0, 0), (2, 0, 1), (1, 2, 2), (2, 3, 3)):
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(hashes)}
        command = [sys.executable, "-c", SHOW, str(folder), str(workers)]
        shown.add(subprocess.run(command, env=_with(environment), capture_output=True, text=True, check=True).stdout)
    assert len(shown) == 1


@pytest.mark.slow
def test_hash_seeds_do_not_change_bytes(tmp_path: Path) -> None:
    flags = ["--data", "digits", "--model", "resnet20", "--gate", "se", "--epochs", "2", "--precision", "fp32"]
    for hashes in ("1", "2"):
        command = [sys.executable, "-m", "gatewise", "train", *flags, "--workers", hashes, "--out", hashes]
        subprocess.run(command, env=_with({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": hashes}), cwd=tmp_path, check=True)
    first, second = outcome(tmp_path / "1"), outcome(tmp_path / "2")
    assert json.dumps(first) == json.dumps(second)


def _with(changes: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **changes}
