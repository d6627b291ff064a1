"""See what every gate of a network does while it runs, forward by forward, and keep nothing but the last."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.functional import at_least_float32, spatial_axes
from gatewise.insertion import gates_in
from gatewise.places import evaluation_mode
from gatewise.registry import Gate


@dataclass(frozen=True)
class Recorded:
    """What one gate did to a batch; all (N, C).

    Attributes:
        values: of a gate that multiplies, the factor of each channel; where it differs between positions, the one that
            fits them best: sum x y / sum x^2; not a number where the channel is zero everywhere, which tells nothing.
            Of a gate that adds, the mean over positions of what it adds to each channel, in units of the root mean
            square of the image's whole map.
        changes: root mean square over positions of y - x, in units of that of x, of the same channel or, for a gate
            that adds, of the whole map; not a number where `values` is none.
        before: root mean square of each channel at the input.
        after: and at the output.
    """

    values: Tensor
    changes: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, gate: Gate, x: Tensor, y: Tensor) -> Self:
        """Compare a gate's input and output, (N, C, *S) each.

        >>> from gatewise.registry import make_gate
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
    """Let `make(path)` see each gate's input and output while the `with` block is open.

    What it returns, if not None, takes the place of the output.
    """
    if any("forward" in gate.__dict__ for gate in gates.values()):
        raise errors.InvalidValueError(
            "gates of a network that is optimised for inference write over their maps, so nothing is seen there or "
            "changed. Take it back with undo() first."
        )
    with ExitStack() as stack:
        for path, gate in gates.items():
            stack.callback(gate.register_forward_hook(make(path)).remove)
        yield


class GateRecorder:
    """Record every gate of a network at each forward, in eval mode, while the `with` block is open.

    Behind it the hooks are gone and all training flags as before, whatever happened inside. Only the last forward of
    the network itself is held; hand it on with `take`. A gate that a forward calls several times counts with the mean
    of its calls; what reaches gates in another way (`forward_features`) adds to the calls until they are taken.

    A network without gates is refused with ValueError.

    >>> from gatewise.insertion import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1))
    >>> _ = insert_gates(net, "gct")
    >>> with GateRecorder(net) as recorder:
    ...     _ = net(torch.randn(4, 3, 5, 5))
    >>> {path: tuple(seen.values.shape) for path, seen in recorder.take().items()}
    {'0.gct': (4, 3)}
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.gates = model, gates_in(model)
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
            with hooks_on(self.gates, self._note), evaluation_mode(self.model):
                yield
        finally:
            begin.remove()

    def _note(self, path: str) -> Hook:
        def note(gate: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._calls.setdefault(path, []).append(Recorded.of(gate, args[0], output))

        return note

    def take(self) -> dict[str, Recorded]:
        """Return what each gate that was reached did in the last forward, by its path, and forget it."""
        calls, self._calls = self._calls, {}
        return {path: _mean(seen) for path, seen in calls.items()}


def _mean(calls: list[Recorded]) -> Recorded:
    if len(calls) == 1:
        return calls[0]
    columns = zip(*((call.values, call.changes, call.before, call.after) for call in calls), strict=True)
    return Recorded(*(torch.stack(column).nanmean(0) for column in columns))


@contextmanager
def gates_bypassed(gates: Mapping[str, Gate]) -> Generator[None]:
    """Let these gates return their input as it is while the `with` block is open.

    >>> from gatewise.registry import make_gate
    >>> gate, x = make_gate("se", 8), torch.ones(1, 8, 1, 1)
    >>> with gates_bypassed({"se": gate}):
    ...     bool((gate(x) == x).all())
    True
    """
    with hooks_on(gates, lambda _: lambda _, args, __: args[0]):
        yield
