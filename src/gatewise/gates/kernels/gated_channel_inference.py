"""`gct` at inference, in two passes together with the batch norm and the ReLU before it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise.gates.inference_form import ChannelAffine, check_no_gradients
from gatewise.gates.kernels.backend import kernels_for
from gatewise.gates.kernels.gated_channel_transform import Definition, kernel_options, kernel_parameters


@dataclass
class FusedNormReluGate:
    """Run `gct` together with the batch norm and the ReLU before it, whose own forwards are then skipped.

    Attributes:
        gate: the `GatedChannelTransform` whose parameters are used.
        definition: the function of the gate, for maps that no kernel can read.
        norm: the batch norm that is applied here, or None.
        activates: whether a ReLU is applied here.
        owned: whether the input map may be overwritten; otherwise a new map is allocated.
    """

    gate: Any
    definition: Definition
    norm: ChannelAffine | None
    activates: bool
    owned: bool

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x)[0] if self._takes(x) else self._defined(x)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the map after norm and ReLU, and the gate's factors, (N, C); None if no kernel can read `x`."""
        if not self._takes(x):
            return None
        factors = x.new_empty(x.shape[:2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        return self._run(x, factors)

    def _takes(self, x: Tensor) -> bool:
        check_no_gradients(x)
        self.gate.check_input(x)
        return not self.gate.why_not_fused(x) and x.device.type == "cpu"

    def _defined(self, x: Tensor) -> Tensor:
        """Return the result computed by the reference implementations of norm, ReLU and gate."""
        if self.norm is not None:
            x = self.norm(x)
        if self.activates:
            x = x.relu()
        return self.definition(x, *self.gate.numbers, **self.gate.channel_options)

    def _run(self, x: Tensor, factors: Any = None) -> tuple[Tensor, Any]:
        """Return (gated map, None), or (map after norm and ReLU, `factors`) with the gate's factors written there."""
        kernels = kernels_for(x.device, "gated_channel_transform")
        numbers = kernel_parameters((x, *self.gate.numbers))
        changes = factors is None or self.activates or self.norm is not None
        y = None if not changes else x if self.owned else torch.empty_like(x)
        affine = None if self.norm is None else self.norm.terms(numbers[0].dtype)
        reading = kernels.Reading(affine, 0.0 if self.activates else -math.inf)
        options = kernel_options(**self.gate.channel_options)
        kernels.infer(x.detach(), y, *numbers, **options, reading=reading, factors=factors)
        return x if y is None else y, factors
