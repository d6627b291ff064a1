"""Training of networks with gates: weight decay groups, freezing, and the gates' extra loss."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gates.registry import Gate
from gatewise.insertion.frozen_layers import (
    flags_before,
    keep_frozen,
    keep_statistics,
    record_of,
    thaw,
)
from gatewise.insertion.insert import gates_in
from gatewise.insertion.synchronised import check_not_synchronised


def gate_parameters(model: nn.Module) -> Iterator[tuple[Gate, str, nn.Parameter]]:
    """Yield (gate, name in the gate, parameter) for every parameter of every gate."""
    for gate in gates_in(model).values():
        for name, parameter in gate.named_parameters():
            yield gate, name, parameter


def _exempt(model: nn.Module) -> set[int]:
    """Return the ids of parameters that a module declares to be without weight decay."""
    exempt = {id(p) for gate, name, p in gate_parameters(model) if name in gate.no_weight_decay}
    for owner in model.modules():  # a submodule, such as a backbone, has its own declaration
        declared: Any = getattr(owner, "no_weight_decay", None)
        names: Any = declared() if callable(declared) else ()
        exempt |= {id(p) for name, p in owner.named_parameters() if name in names}
    return exempt


def no_weight_decay_names(model: nn.Module) -> set[str]:
    """Return the names of all parameters without weight decay in `parameter_groups`, frozen ones included.

    >>> from gatewise.insertion.insert import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> no_weight_decay_names(net)
    {'0.gct.beta'}
    """
    exempt = _exempt(model)
    return {name for name, parameter in model.named_parameters() if id(parameter) in exempt}


def parameter_groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups for an optimizer, the second without weight decay.

    The second group has the parameters that a gate lists in `no_weight_decay` (gct: beta), and those that the network
    or a submodule returns from `no_weight_decay()`, as timm's models do. Empty groups are omitted. The function can be
    passed to timm as `param_group_fn`.

    Args:
        model: the network.
        weight_decay: of the first group; None leaves the optimizer's default.

    >>> from gatewise.insertion.insert import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> [(len(group["params"]), group.get("weight_decay")) for group in parameter_groups(net)]
    [(4, None), (1, 0.0)]
    """
    exempt = _exempt(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    decay: dict[str, Any] = {"params": [p for p in trainable if id(p) not in exempt]}
    if weight_decay is not None:
        decay["weight_decay"] = weight_decay
    groups = [decay, {"params": [p for p in trainable if id(p) in exempt], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def train_only_gates(model: nn.Module) -> None:
    """Freeze everything but the gates; running statistics of frozen layers stay constant, also after model.train().

    The `requires_grad` flags are stored in the modules for `train_everything`, also in copies and pickles of the
    network; a second call does not replace them. Norms that take the place of frozen ones, as SyncBatchNorm does, are
    frozen at the next forward. DDP and FSDP synchronise the parameters that are trainable when they wrap the network,
    so freeze and unfreeze first, and wrap again for each stage.

    Raises:
        InvalidValueError: the network has no gates, or its gates have no parameters.
        InvalidTypeError: the network is wrapped by DDP or FSDP, and parameters would have to be frozen.
    """
    gates = gates_in(model)
    own = {id(parameter) for _, _, parameter in gate_parameters(model)}
    if any(parameter.requires_grad != (id(parameter) in own) for parameter in model.parameters()):
        _check_flags_can_change(model)
    if not own:
        reason = "its gates have no parameters" if gates else "it has no gates"
        raise errors.InvalidValueError(
            f"{type(model).__name__} has no gates to train ({reason}). Insert gates with parameters with "
            f"insert_gates()."
        )
    inside = {id(module) for gate in gates.values() for module in gate.modules()}
    before = flags_before(model)
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            record_of(owner).before[name] = before.get(id(parameter), parameter.requires_grad)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    for layer in model.modules():
        if isinstance(getattr(layer, "running_mean", None), Tensor) and id(layer) not in inside:
            keep_statistics(layer)
    keep_frozen(model, inside)


def train_everything(model: nn.Module) -> None:
    """Undo `train_only_gates`: unfreeze what it froze; normalisation follows model.train() again.

    Every parameter gets the `requires_grad` it had before the first `train_only_gates`, so parameters that were frozen
    then stay frozen. Without an earlier `train_only_gates` nothing changes.

    Raises:
        InvalidTypeError: the network is wrapped by DDP or FSDP, and parameters would have to be unfrozen.
        InvalidValueError: the class of a frozen layer was changed in between, for example by a parametrization.
    """
    _validation.check_module("train_everything", model)
    trainable = trainable_parameters(model)
    if any(parameter.requires_grad != (name in trainable) for name, parameter in model.named_parameters()):
        _check_flags_can_change(model)
    thaw(model)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter of all that require gradients, those that `train_only_gates` has frozen included."""
    frozen = flags_before(model)
    return {name: p for name, p in model.named_parameters() if frozen.get(id(p), p.requires_grad)}


def _check_flags_can_change(model: nn.Module) -> None:
    """Raise if a wrapper has collected the parameters that it synchronises."""
    check_not_synchronised(
        model,
        "synchronises the parameters that were trainable when it wrapped the network, and no others",
        "Freeze or unfreeze the network first, then wrap it; wrap it again for each stage.",
    )


@dataclass(frozen=True)
class Stage:
    """Epochs that train the same parameters; use a new optimizer for each stage.

    Attributes:
        epochs: the epoch numbers, counted over all stages.
        only_gates: whether everything but the gates is frozen, running statistics included.
        all_open: whether a gater's network is trained with all gates open, without the gater.
    """

    epochs: range
    only_gates: bool
    all_open: bool = False

    def begin(self, model: nn.Module) -> None:
        """Freeze and unfreeze parameters for this stage, and open the gates of a gater or leave them to it."""
        if self.only_gates:
            train_only_gates(model)
        else:
            train_everything(model)
        for module in model.modules():
            if hasattr(module, "all_open"):
                module.all_open = self.all_open  # type: ignore[assignment]  # pyright: ignore


def fine_tuning_stages(epochs: int, gate_epochs: int, dense_epochs: int = 0) -> list[Stage]:
    """Return the stages of fine-tuning: `gate_epochs` epochs for the gates only, the rest for all parameters.

    The stage of the gates trains new gates before their gradients change the weights of the trained network.

    Args:
        epochs: number of epochs in total.
        gate_epochs: number of epochs that train only the gates.
        dense_epochs: number of epochs, before those, that train a gater's network with all gates open.

    Raises:
        InvalidValueError: gate_epochs and dense_epochs exceed epochs.

    >>> [(stage.epochs, stage.only_gates) for stage in fine_tuning_stages(epochs=4, gate_epochs=1)]
    [(range(0, 1), True), (range(1, 4), False)]
    >>> [(stage.epochs, stage.all_open) for stage in fine_tuning_stages(epochs=4, gate_epochs=0, dense_epochs=2)]
    [(range(0, 2), True), (range(2, 4), False)]
    """
    _validation.check_integer_at_least(1, epochs=epochs)
    _validation.check_integer_at_least(0, gate_epochs=gate_epochs, dense_epochs=dense_epochs)
    if gate_epochs > epochs:
        raise errors.InvalidValueError(
            f"gate_epochs ({gate_epochs}) must not exceed epochs ({epochs}), which counts both stages: gate_epochs "
            f"for the gates alone, the rest for the whole network. Increase epochs or decrease gate_epochs."
        )
    if dense_epochs and dense_epochs + gate_epochs >= epochs:
        raise errors.InvalidValueError(
            f"dense_epochs ({dense_epochs}) must leave epochs for the gates, of {epochs} in all and {gate_epochs} for "
            f"the gates alone. Increase epochs or decrease dense_epochs."
        )
    first, second = dense_epochs, dense_epochs + gate_epochs
    stages = [Stage(range(first), False, True), Stage(range(first, second), True), Stage(range(second, epochs), False)]
    return [stage for stage in stages if stage.epochs]


def extra_losses(model: nn.Module) -> list[Tensor]:
    """Return the extra losses that are due, of all modules of the network that have `extra_loss()`."""
    modules: Any = (module for module in model.modules() if hasattr(module, "extra_loss"))
    return [loss for module in modules if (loss := module.extra_loss()) is not None]


def gate_loss(model: nn.Module) -> Tensor:
    """Return the sum of `extra_loss()` over all modules of the network: a scalar, 0 if there is none.

    >>> gate_loss(nn.Sequential(nn.Conv2d(3, 8, 3)))
    tensor(0.)
    """
    _validation.check_module("gate_loss", model)
    losses = extra_losses(model)
    anchor = next(model.parameters(), torch.empty(0))
    return functools.reduce(torch.add, losses) if losses else torch.zeros((), device=anchor.device)


def set_total_steps(model: nn.Module, steps: int, *, restart: bool = True) -> None:
    """Set every schedule in the network, such as that of a gater's budget, for this number of training steps.

    Args:
        model: the network.
        steps: number of forwards in training mode, over the whole training.
        restart: whether the schedules begin at their first step. If not, their buffers, such as the step and the price
            of a budget, keep their values: for a training that a checkpoint resumes.
    """
    modules: Any = [module for module in model.modules() if hasattr(module, "schedule")]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    reached = [buffer.clone() for buffer in buffers]
    for module in modules:
        module.schedule(steps)
    if not restart:
        for buffer, value in zip(buffers, reached, strict=True):
            buffer.copy_(value)
