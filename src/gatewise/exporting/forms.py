"""The forms in which a network is exported: what its file does with closed filters."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.types import Output, main_output
from gatewise.exporting.agreement import as_pair
from gatewise.gaternet import GaterNet, run_with_gates

FORMS = ("masked", "compact", "skip", "routes")


def chosen_form(name: str, net: nn.Module, form: str | None, *, of_routes: Mapping[str, bool]) -> str:
    """Return the form of a network's file: the given one, or "routes" if it has or is given routes, else "masked".

    Args:
        name: name of the network, for the error messages.
        net: the network.
        form: the form, or None.
        of_routes: options of the form "routes", and whether each is given.

    Raises:
        InvalidValueError: the network does not have the form, or an option of routes is given for another one.
    """
    routes: Any = net.routes if isinstance(net, GaterNet) else None
    if form is None:
        form = "routes" if routes is not None or any(of_routes.values()) else "masked"
    _validation.check_one_of("form", form, FORMS)
    if form != "masked" and not isinstance(net, GaterNet):
        raise errors.InvalidValueError(f"{name} has no gater, so it has only the form masked. Choose form masked.")
    if form != "routes" and routes is not None and len(routes) > 1:
        raise errors.InvalidValueError(f"{name} has routes, so its file has only the form routes. Choose form routes.")
    for option, is_given in of_routes.items():
        if is_given and form != "routes":
            raise errors.InvalidValueError(
                f"{option} is for the form routes, got form {form}. Omit it, or set form routes."
            )
    return form


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
