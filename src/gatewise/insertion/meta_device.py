"""Initial values for gates in networks that are built on the meta device, without values, and filled from a file.

A file of the plain network has no values for gates. They get their initial values when their network gets its own: in
`to_empty`, in `load_state_dict(..., assign=True)`, and in loaders that initialise module by module what a file lacks.
"""

# pyright: basic

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gatewise.core._torch_compat import has_meta_tensors
from gatewise.gates.registry import Gate
from gatewise.insertion.mixins import add_mixin, remove_mixin

_LOADED = "_is_hf_initialized"  # attribute of the tensors that transformers has read from a file


def materialise_gates(model: nn.Module) -> None:
    """Give initial values to gates on the meta device whose layer, or network, has values; on its device and dtype."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, gate in modules.items():
        if isinstance(gate, Gate) and has_meta_tensors(gate):
            layer = modules[path.rpartition(".")[0]]
            real = (p for owner in (layer, model) for p in owner.parameters() if not p.is_meta)
            anchor = next((p for p in real if p.is_floating_point()), None)
            if anchor is not None:
                gate.to(dtype=anchor.dtype).to_empty(device=anchor.device)


class _InitialisesGates(nn.Module):
    """A network with `_init_weights(module)`, which transformers calls for each module after a file was read."""

    def _init_weights(self, module: Any) -> None:
        gates = (gate for gate in self.modules() if isinstance(gate, Gate))
        gate = next((gate for gate in gates if any(part is module for part in gate.modules())), None)
        if gate is None:
            super()._init_weights(module)  # type: ignore[misc]
        elif not has_meta_tensors(gate):  # also for a part of it: modules without tensors of their own may be left out
            tensors = (*gate.parameters(), *gate.buffers())
            loaded = [(tensor, tensor.detach().clone()) for tensor in tensors if getattr(tensor, _LOADED, False)]
            gate.reset_parameters()
            with torch.no_grad():
                for tensor, value in loaded:
                    tensor.copy_(value)


class InitialisesGates:
    """Lets the modules of a network initialise the gates in them, if these are on the meta device.

    Args:
        model: the network.
        gates: its gates.
    """

    def __init__(self, model: nn.Module, gates: Iterable[Gate]) -> None:
        empty = {gate for gate in gates if has_meta_tensors(gate)}
        self.modules = [
            module
            for module in (model.modules() if empty else ())
            if hasattr(module, "_init_weights") and not empty.isdisjoint(module.modules())
        ]
        for module in self.modules:
            add_mixin(module, _InitialisesGates)

    def remove(self) -> None:
        """Undo it."""
        for module in self.modules:
            if isinstance(module, _InitialisesGates):
                remove_mixin(module, _InitialisesGates)
