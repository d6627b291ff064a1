"""Activation checkpointing: parts of a forward are computed again in the backward pass."""

import torch

from gatewise import _checks


def recomputing() -> bool:
    """Whether this is such a second computation. While torch.compile reads a network it is none."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def refuse_lost_gates() -> None:
    """Refuse to compute a part of a GaterNet's backbone again: its gates are gone, and gradients would be wrong."""
    if recomputing():
        raise _checks.InvalidValueError(
            "a part of GaterNet's backbone is computed again in the backward pass, where its gates are gone. Switch "
            "activation checkpointing off in the backbone, and checkpoint the whole net instead: "
            "torch.utils.checkpoint.checkpoint(net, images, use_reentrant=False)"
        )
