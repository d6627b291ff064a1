"""Runs by the command line: with a gater whose gates are partly constant, compacted, and without gates.

Each process trains them once, for all modules that use these fixtures; tests only read them.
"""

import functools
import shlex
import tempfile
from pathlib import Path

import pytest
import torch

from gatewise.cli import run
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import load_model, save_model
from gatewise.training.runs import open_runs

# In bf16 this network has gradients that are not finite on some processors.
TRAIN = shlex.split("train --data digits --model test_resnet --epochs 1 --precision fp32 --batch-size 256 --workers 0")


@functools.cache
def _gated(base: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=base)) / "gated"
    assert run([*TRAIN, "--budget", "0.5", "--out", str(folder)]) == 0
    net, config = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    last = net.gater.head.fc2
    with torch.no_grad():
        last.bias.copy_(torch.randn(last.bias.shape, generator=generator))
        last.weight.copy_(
            torch.randn(last.weight.shape, generator=generator) * (torch.arange(len(last.bias)) % 2)[:, None]
        )
        for site in net.sites:
            last.bias[site.first], last.weight[site.first] = 1, 0  # each layer has an open filter
    details = {key: value for key, value in config.items() if key not in {"spec", "sha256"}}
    save_model(folder, net, ModelSpec.from_dict(config["spec"]), details)
    return folder


@functools.cache
def _plain(base: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=base)) / "plain"
    assert run([*TRAIN, "--out", str(folder)]) == 0
    return folder


@functools.cache
def _small(gated: Path) -> Path:
    folder = gated.with_name("small")
    assert run(["compact", str(gated), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose gates are partly constant: those of a fresh gater are, so its last layer is drawn again."""
    return _gated(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _plain(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def small(gated: Path) -> Path:
    return _small(gated)


def images_of(folder: Path) -> torch.Tensor:
    (opened,) = open_runs([folder])
    return torch.cat([images for images, _ in opened.batches()])
