"""Shared fixtures and settings: a fixed seed, reproducible property tests, separate caches."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start too
os.environ.pop("COLUMNS", None)  # readline in the process that starts pytest-xdist's workers sets it

import pytest
import torch
from hypothesis import settings

from gatewise.graph import measure

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_no_garbage() -> None:
    """Freeze the million objects of imported modules, so that garbage collections do not scan them again."""
    gc.collect()
    gc.freeze()


collect_ignore = ["support/ultralytics_in_process.py"]  # a program that needs arguments and closes the network


@pytest.fixture(autouse=True, scope="session")
def moments_suffice() -> Iterator[None]:
    """Time one call per round: no test depends on speed, and longer rounds would add up to minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_calls_within", lambda *_: 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def support_in_processes() -> None:
    """Let processes that tests start import `support`."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


# Tests use small tensors: more threads are slower, most of all on a busy machine.
torch.set_num_threads(1)
