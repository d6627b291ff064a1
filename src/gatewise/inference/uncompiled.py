"""Exclude skipping networks from torch.compile: their control flow depends on the data. Importing it loads dynamo."""

from typing import Any

import torch
from torch import Tensor

_REASON = (
    "a skipping net reads the gates of each batch in Python to select weights, so it runs uncompiled. Compile the "
    "GaterNet that it was made from, or omit fullgraph=True."
)


def _run(net: Any, x: Tensor, gates: Tensor | None) -> tuple[Any, Tensor]:
    return net.forward_with_gates(x, gates)


run_uncompiled: Any = torch.compiler.disable(_run, reason=_REASON)
