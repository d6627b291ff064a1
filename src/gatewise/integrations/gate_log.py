"""What the gates of a network do during an evaluation of a trainer, as scalars for its log."""

import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from gatewise import errors
from gatewise.analysis import GateRecorder, GateStats
from gatewise.core import _validation
from gatewise.gaternet import GaterNet
from gatewise.insertion.insert import gates_in

_torchmetrics: Any = _validation.import_optional("torchmetrics", "gatewise.integrations")


@contextmanager
def _noting_gates(net: GaterNet, note: Callable[[Tensor], None]) -> Generator[None]:
    """Call `note` with the gates of each forward of a GaterNet, (N, gate_count), while the `with` block is open."""
    run = net.forward_with_gates

    def noted(x: Tensor, gates: Tensor | None = None) -> Any:
        output, gates = run(x, gates)
        note(gates.detach())
        return output, gates

    net.forward_with_gates = noted  # on the instance
    try:
        yield
    finally:
        del net.forward_with_gates


class GateLog:
    """Record the gates of a network from here to `close`, while a trainer evaluates it.

    Call `take` after each batch, and `compute` after the last.

    Args:
        model: the network, or a module that contains it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._recording = ExitStack()
        self._recorder = self._recording.enter_context(GateRecorder(model, keep_mode=True)) if gates_in(model) else None
        modules = dict[str, nn.Module](model.named_modules())
        self._nets = {path: net for path, net in modules.items() if isinstance(net, GaterNet)}
        for path, net in self._nets.items():
            self._recording.enter_context(_noting_gates(net, partial(self._note, path)))
        self.reset()

    def reset(self) -> None:
        """Forget the batches so far."""
        device = next(self._model.parameters()).device
        self.batches = 0
        self._stats = GateStats(self._model).to(device) if self._recorder else None
        names = [f"{path}/{name}".lstrip("/") for path in self._nets for name in ("open_fraction", "executed_macs")]
        self._means = {name: _torchmetrics.MeanMetric().to(device) for name in names}

    def _note(self, path: str, gates: Tensor) -> None:
        net = self._nets[path]
        for name, values in (("open_fraction", net.open_fraction(gates)), ("executed_macs", net.executed_macs(gates))):
            self._means[f"{path}/{name}".lstrip("/")].update(values)

    def take(self) -> None:
        """Add the batch that the network has just seen."""
        self.batches += 1
        if self._recorder is not None and self._stats is not None:
            self._stats.update(self._recorder.take())

    def compute(self) -> dict[str, float]:
        """Return the statistics over the images of all processes as scalars, by "gates/PATH/NAME".

        NAME is one of `GateStats.compute` for the path of a gate; open_fraction (of the gated filters' MACs) or
        executed_macs (multiply-adds per image) for that of a GaterNet.
        """
        values: dict[str, Tensor] = {name: mean.compute() for name, mean in self._means.items() if mean.update_called}
        if self._stats is not None:
            try:
                values |= self._stats.compute()
            except errors.InvalidValueError:  # of all processes, so that none waits for another
                warnings.warn(
                    "no gate has run in the evaluation, so there are no statistics of gates. A network that was "
                    "compiled or traced before hides its gates: evaluate the original, or set log_statistics=False.",
                    stacklevel=3,
                )
        return {f"gates/{name}": float(value) for name, value in values.items()}

    def close(self) -> None:
        """Stop recording."""
        self._recording.close()
