"""How a gate runs while its network is optimised for inference: what it is offered, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gatewise import errors


class ChannelAffine(Protocol):
    """A batch norm in eval mode."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x * scale + shift, (N, C, *S)."""
        ...

    def terms(self, dtype: torch.dtype) -> Tensor:
        """Return scale and shift of each channel, (2, C)."""
        ...


@dataclass(frozen=True)
class InferencePattern:
    """What precedes a gate in a network that is optimised for inference.

    Attributes:
        owned: whether the gate may overwrite its input; not if it applies `norm` itself.
        relu: whether a ReLU is directly before the gate, which the gate may apply itself.
        norm: the batch norm before that, which the gate may apply itself; None if there is none, or it is folded into a
            convolution.
    """

    owned: bool = False
    relu: bool = False
    norm: ChannelAffine | None = None


@dataclass(frozen=True)
class InferenceForm:
    """How a gate runs at inference.

    Attributes:
        run: maps the gate's input, (N, C, *S), to its output. It must be picklable, as a method of the gate is.
        in_place: whether `run` overwrites its input.
        relu: whether `run` applies the ReLU before the gate.
        norm: whether `run` applies the batch norm before the gate.
        factors: for a gate that only scales channels: maps the input, (1, C, *S), to the map before the gate and the
            gate's factors, (1, C), by which the next convolution can scale its weights instead; it returns None where
            it cannot run. None if there is no such form.
    """

    run: Callable[[Tensor], Tensor]
    in_place: bool = False
    relu: bool = False
    norm: bool = False
    factors: Callable[[Tensor], tuple[Tensor, Tensor] | None] | None = None

    def __str__(self) -> str:
        words = ["in place" if self.in_place else "new map", *["norm"] * self.norm, *["relu"] * self.relu]
        return " + ".join(words)


def check_no_gradients(x: Tensor) -> None:
    """Raise if x requires a gradient: optimised layers overwrite maps that the backward pass would need."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise errors.InvalidValueError(
            "a network that is optimised for inference has no gradients. Take it back with undo(), or run it under "
            "torch.no_grad()."
        )
