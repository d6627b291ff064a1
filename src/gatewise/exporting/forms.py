"""The forms in which a network is exported: what its file does with closed filters."""

from collections.abc import Callable

from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.types import Output, main_output
from gatewise.exporting.agreement import as_pair
from gatewise.gaternet import GaterNet, run_with_gates

FORMS = ("masked", "compact", "skip", "routes")


def check_form(name: str, net: nn.Module, form: str) -> None:
    """Raise `InvalidValueError` if a network does not have a form."""
    _validation.check_one_of("form", form, FORMS)
    if form != "masked" and not isinstance(net, GaterNet):
        raise errors.InvalidValueError(f"{name} has no gater, so it has only the form masked. Choose form masked.")


class WithGates(nn.Module):
    """Wrap a network for export: (N, C, H, W) -> logits, or (logits, gates) for a GaterNet."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        output, gates = run_with_gates(self.network, image)
        return main_output(output) if gates is None else (main_output(output), gates)


class Readable(nn.Module):
    """Apply a function to the first output of a network, such as that from logits to numbers in their unit."""

    def __init__(self, network: nn.Module, readable: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.readable = network, readable

    def forward(self, image: Tensor) -> Output:
        logits, gates = as_pair(self.network(image))
        output = self.readable(logits)
        return output if gates is None else (output, gates)
