"""Inference on maps of one kind after another: what was found out about the last is not asked again.

Between two convolutions of an image Python costs more than a small map's kernel: the convolutions sweep the caches, and
everything that an interpreter looks up is fetched from memory. So a gate remembers the facts that its last call was
decided by, and a function that needs nothing else; where all facts are the same, it calls that.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, get_num_threads, is_grad_enabled
from torch.compiler import is_compiling

from gatewise.kernels.backend import watched

Run = Callable[..., Tensor]


def _facts(x: Tensor, numbers: tuple[Tensor, ...], options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return all that decides whether and how a kernel runs, except the values of tensors and where they lie."""
    of_numbers = [(type(p), p.dtype, p.is_cpu, p.shape, p.is_contiguous()) for p in numbers]
    return type(x), x.dtype, x.is_cpu, x.shape, x.stride(), get_num_threads(), options, of_numbers


class Repeated:
    """What a gate remembers of its last map; copies and pickles of it remember nothing."""

    def __init__(self) -> None:
        self._known: tuple[tuple[Any, ...], Run] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Repeated, ()

    def take(self, x: Tensor, numbers: tuple[Tensor, ...], options: tuple[Any, ...]) -> Tensor | None:
        """Return what the remembered function makes of x and the gate's numbers; None where anything is different."""
        if is_compiling() or is_grad_enabled() or watched():
            return None
        known = self._known
        return known[1](x, *numbers) if known is not None and known[0] == _facts(x, numbers, options) else None

    def remember(
        self, x: Tensor, numbers: tuple[Tensor, ...], options: tuple[Any, ...], prepare: Callable[[], Run | None]
    ) -> None:
        """Where no gradients are recorded, remember what `prepare` returns for maps like x."""
        if not is_grad_enabled():
            run = prepare()
            self._known = None if run is None else (_facts(x, numbers, options), run)
