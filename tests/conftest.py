"""What all tests share: a fixed seed, one table of tolerances, reproducible property tests."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start too

import pytest
import torch
from hypothesis import settings

# How close two results of one type must be when only the order of operations differs.
TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_costs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is measured here apart from the user's."""
    os.environ["GATEWISE_CACHE"] = str(tmp_path_factory.mktemp("costs") / "costs.json")


# Tests use small tensors: more threads cost more than they bring, and crawl where another process is busy.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Keep what lives to the end, a million objects of modules and tests, out of every collection of garbage."""
    gc.freeze()
