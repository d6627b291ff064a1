"""Load checkpoints of the plain network, or of a part of it, with strict=True after gates were inserted."""

# pyright: basic

import uuid
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from gatewise.core.hooks import modules_around, names_of
from gatewise.gates.registry import Gate
from gatewise.insertion.meta_device import materialise_gates

_INSERTION = "_gatewise_insertion"  # attribute of an inserted gate, also in copies: the insertion that it belongs to


def accept_plain_checkpoints(model: nn.Module, gates: dict[str, Gate]) -> list[RemovableHandle]:
    """Let a network, each part of it that contains some of the gates, and their layers load plain checkpoints.

    Args:
        model: the network.
        gates: inserted together, by path.
    """
    accept = _AcceptPlainCheckpoint(uuid.uuid4().hex)
    for gate in gates.values():
        setattr(gate, _INSERTION, accept.insertion)
    loaded = modules_around(model, [names_of(path) for path in gates]).values()
    return [handle for module in loaded for handle in accept.attach(module)]


class _AcceptPlainCheckpoint:
    """Hooks that let the gates of one insertion keep their values if a checkpoint has none of them.

    Before the outermost of the hooked modules loads, the values of its gates are added to the checkpoint. If the
    checkpoint has some of these gates, nothing is added: the others are missing. Gates on the meta device get their
    initial values afterwards.
    """

    def __init__(self, insertion: str) -> None:
        self.insertion = insertion
        self.missing: Any = None  # the list of missing keys, the same in all modules of one call of load_state_dict
        self.is_plain = False

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        """Call the hooks whenever a module is loaded."""
        before = module.register_load_state_dict_pre_hook(self.before_load)
        return [before, module.register_load_state_dict_post_hook(self.after_load)]

    def before_load(self, module: nn.Module, state: dict[str, Any], prefix: str, *details: Any) -> None:
        """Add the values of the gates to `state`, if it has none of them and no outer module was loaded before."""
        _, _, missing, *_ = details  # local metadata, strict, missing keys
        if self.missing is missing:
            return
        names = module.named_modules(remove_duplicate=False)  # a layer with several names has keys under each of them
        gates = [(name, gate) for name, gate in names if getattr(gate, _INSERTION, None) == self.insertion]
        values = {
            f"{prefix}{name}.{key}": value
            for name, gate in gates
            for key, value in gate.state_dict(keep_vars=True).items()
        }
        self.missing, self.is_plain = missing, state.keys().isdisjoint(values)
        if self.is_plain:
            state.update(values)

    def after_load(self, module: nn.Module, incompatible: Any) -> None:
        """Give initial values to gates that were on the meta device and are not in the checkpoint."""
        if self.missing is incompatible.missing_keys and self.is_plain:
            materialise_gates(module)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "missing": None}
