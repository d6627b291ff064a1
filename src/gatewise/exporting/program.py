"""Trace a network to a program of torch.export, with its gates in their export form."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.insertion.insert import gates_in


def exported_program(network: nn.Module, example: Tensor, *, free_size: bool, export_forms: bool = False) -> Any:
    """Export a network with a dynamic batch size and, if `free_size`, a dynamic size of images.

    Args:
        network: the network, in eval mode.
        example: two images or more.
        free_size: whether all axes after the channels are dynamic, too.
        export_forms: whether gates run in their `export_form`.
    """
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=2**16)}
    if free_size:
        free |= dict.fromkeys(range(2, example.dim()), torch.export.Dim.DYNAMIC)
    with torch.no_grad(), _gates_in_export_form(network if export_forms else nn.Module()):
        return torch.export.export(network, (example,), dynamic_shapes=(free,), strict=False)


@contextmanager
def _gates_in_export_form(network: nn.Module) -> Generator[None]:
    """Let the gates of a network run in the form for other runtimes."""
    changed = [(gate, form) for gate in gates_in(network).values() if (form := gate.export_form()) is not None]
    for gate, form in changed:
        gate.__dict__["forward"] = form
    try:
        yield
    finally:
        for gate, _ in changed:
            del gate.__dict__["forward"]
