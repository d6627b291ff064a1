"""Record the effect of every gate of a network during a forward."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.gates.functional import at_least_float32, spatial_axes
from gatewise.gates.registry import Gate
from gatewise.graph import evaluation_mode
from gatewise.insertion.insert import gates_in


@dataclass(frozen=True)
class Recorded:
    """Effect of one gate on a batch, from its input x and output y; all tensors have shape (N, C).

    Attributes:
        values: for a gate that multiplies, the least-squares scale of each channel, sum x y / sum x^2 over positions;
            NaN if the channel is zero everywhere. For a gate that adds, the mean of y - x over positions, divided by
            the RMS (root mean square) of x over all channels and positions of the image.
        changes: RMS of y - x over positions, divided by the RMS of x over the same channel or, for a gate that adds,
            over all channels and positions of the image; NaN where `values` is NaN.
        before: root mean square of each channel of x.
        after: root mean square of each channel of y.
    """

    values: Tensor
    changes: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, gate: Gate, x: Tensor, y: Tensor) -> Self:
        """Return the record of a gate from its input and output, both (N, C, *S).

        >>> from gatewise.gates.registry import make_gate
        >>> x = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
        >>> Recorded.of(make_gate("gct", 2), x, 0.5 * x).values
        tensor([[0.5000,    nan]])
        """
        axes = spatial_axes(x)
        x, y = (z.detach().to(at_least_float32(z.dtype)) for z in (x, y))
        power = x.square().mean(axes)
        added = y - x
        before, after, change = power.sqrt(), y.square().mean(axes).sqrt(), added.square().mean(axes).sqrt()
        if gate.is_additive:
            size = power.mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(power.dtype).tiny)
            return cls(added.mean(axes) / size, change / size, before, after)
        nothing = torch.where(power > 0, 0.0, torch.nan)
        return cls((x * y).mean(axes) / power + nothing, change / before + nothing, before, after)


Hook = Callable[[Any, tuple[Tensor, ...], Tensor], Tensor | None]


@contextmanager
def hooks_on(gates: Mapping[str, Gate], make: Callable[[str], Hook]) -> Generator[None]:
    """Register the forward hook `make(path)` on each gate while the `with` block is open.

    As in PyTorch, a hook replaces the output by what it returns, unless that is None.

    Raises:
        InvalidValueError: if the network is optimised for inference.
    """
    if any("forward" in gate.__dict__ for gate in gates.values()):
        raise errors.InvalidValueError(
            "the network is optimised for inference: its gates overwrite their inputs, so they cannot be recorded or "
            "bypassed. Call undo() of the optimised network first."
        )
    with ExitStack() as stack:
        for path, gate in gates.items():
            stack.callback(gate.register_forward_hook(make(path)).remove)
        yield


class GateRecorder:
    """Record every gate of a network during each forward, in eval mode, while the `with` block is open.

    The end of the block removes the hooks and restores all training flags, also after an exception. Only the last
    forward of the network is kept; get it with `take`. If a forward calls a gate several times, its record is the mean
    over the calls. Calls outside the network's own forward (such as `forward_features`) are added until `take`.

    Args:
        model: the network.
        keep_mode: whether to leave the training flags as they are, for a block within somebody's evaluation loop.

    Raises:
        InvalidValueError: if the network has no gates.

    >>> from gatewise.insertion.insert import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1))
    >>> _ = insert_gates(net, "gct")
    >>> with GateRecorder(net) as recorder:
    ...     _ = net(torch.randn(4, 3, 5, 5))
    >>> {path: tuple(record.values.shape) for path, record in recorder.take().items()}
    {'0.gct': (4, 3)}
    """

    def __init__(self, model: nn.Module, *, keep_mode: bool = False) -> None:
        self.model, self.gates, self.keep_mode = model, gates_in(model), keep_mode
        if not self.gates:
            raise errors.InvalidValueError(f"{type(model).__name__} has no gates to record.")
        self._calls: dict[str, list[Recorded]] = {}
        self._open: Any = None

    def __enter__(self) -> Self:
        self._open = self._recording()
        self._open.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @contextmanager
    def _recording(self) -> Generator[None]:
        begin = self.model.register_forward_pre_hook(lambda *_: self._calls.clear())
        try:
            with hooks_on(self.gates, self._note), nullcontext() if self.keep_mode else evaluation_mode(self.model):
                yield
        finally:
            begin.remove()

    def _note(self, path: str) -> Hook:
        def note(gate: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._calls.setdefault(path, []).append(Recorded.of(gate, args[0], output))

        return note

    def take(self) -> dict[str, Recorded]:
        """Return gate path -> record of the last forward, for each gate that was reached, and clear the records."""
        calls, self._calls = self._calls, {}
        return {path: _mean(records) for path, records in calls.items()}


def _mean(calls: list[Recorded]) -> Recorded:
    if len(calls) == 1:
        return calls[0]
    columns = zip(*((call.values, call.changes, call.before, call.after) for call in calls), strict=True)
    return Recorded(*(torch.stack(column).nanmean(0) for column in columns))


@contextmanager
def gates_bypassed(gates: Mapping[str, Gate]) -> Generator[None]:
    """Make these gates return their input unchanged while the `with` block is open.

    >>> from gatewise.gates.registry import make_gate
    >>> gate, x = make_gate("se", 8), torch.ones(1, 8, 1, 1)
    >>> with gates_bypassed({"se": gate}):
    ...     bool((gate(x) == x).all())
    True
    """
    with hooks_on(gates, lambda _: lambda _, args, __: args[0]):
        yield
