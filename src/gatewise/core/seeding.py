"""Seeds of the initial weights."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None) -> Generator[None]:
    """Draw random numbers from this seed while the block runs; None continues torch's global generator.

    Only the generator of the CPU is seeded, and its state is restored afterwards.

    >>> with seeded(0):
    ...     first = torch.rand(2)
    >>> with seeded(0):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
        yield
