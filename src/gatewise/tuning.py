"""Train a network that has gates: who decays, who is frozen, what the gates add to the loss."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.insertion import gates_in
from gatewise.mixins import add_mixin, remove_mixin
from gatewise.registry import Gate

_BEFORE = "_requires_grad_before_freezing"  # of a module: that of its own parameters, by name


def gate_parameters(model: nn.Module) -> Iterator[tuple[Gate, str, nn.Parameter]]:
    """Yield every parameter that a gate owns: the gate, the parameter's name in it, the parameter."""
    for gate in gates_in(model).values():
        for name, parameter in gate.named_parameters():
            yield gate, name, parameter


def _exempt(model: nn.Module) -> set[int]:
    """Return the ids of parameters that their owner declares to be without weight decay."""
    exempt = {id(p) for gate, name, p in gate_parameters(model) if name in gate.no_weight_decay}
    for owner in model.modules():  # a part, such as a backbone, declares for itself
        declared: Any = getattr(owner, "no_weight_decay", None)
        names: Any = declared() if callable(declared) else ()
        exempt |= {id(p) for name, p in owner.named_parameters() if name in names}
    return exempt


def no_weight_decay_names(model: nn.Module) -> set[str]:
    """Return the names of what `parameter_groups` puts into its group without weight decay, frozen or not.

    >>> from gatewise.insertion import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> no_weight_decay_names(net)
    {'0.gct.beta'}
    """
    exempt = _exempt(model)
    return {name for name, parameter in model.named_parameters() if id(parameter) in exempt}


def parameter_groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Return trainable parameters in two groups for an optimizer, the second without weight decay.

    The second group holds what its owner declares in `no_weight_decay` (gct: beta), and what the network or a part
    of it declares as timm's models do; a parameter is recognised by its owner, not by its name. With
    weight_decay=None the first group leaves the optimizer's own setting. Fits timm's `param_group_fn`.

    >>> from gatewise.insertion import insert_gates
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


class _KeepsStatistics(nn.Module):
    """A frozen normalisation layer: it evaluates in training too, and what is inside it follows `mode`."""

    def train(self, mode: bool = True) -> "_KeepsStatistics":
        super().train(mode)
        self.training = False
        return self


def train_only_gates(model: nn.Module) -> None:
    """Freeze everything but the gates; frozen normalisation keeps its running statistics, through model.train() too.

    What `requires_grad` was before is kept for `train_everything`, in copies and pickles of the network too; a second
    call does not replace it.

    Raises:
        InvalidValueError: the network has no gates, or none with parameters.
    """
    gates = gates_in(model)
    if not any(True for _ in gate_parameters(model)):
        found = "its gates have no parameters" if gates else "it has no gates"
        raise errors.InvalidValueError(
            f"{type(model).__name__} has no gates to train ({found}). Insert some that learn with insert_gates()."
        )
    inside = {id(module) for gate in gates.values() for module in gate.modules()}
    own = {id(parameter) for _, _, parameter in gate_parameters(model)}
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            owner.__dict__.setdefault(_BEFORE, {}).setdefault(name, parameter.requires_grad)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    for layer in model.modules():
        if isinstance(getattr(layer, "running_mean", None), Tensor) and id(layer) not in inside:
            add_mixin(layer, _KeepsStatistics)
            layer.training = False


def train_everything(model: nn.Module) -> None:
    """Undo `train_only_gates`: thaw what it froze, and let normalisation follow its network's mode again.

    Every parameter's `requires_grad` is again what it was before the first `train_only_gates`: what was frozen then
    stays frozen. Without a `train_only_gates` before, nothing changes.

    Raises:
        InvalidValueError: a frozen layer's class was changed since, as a parametrization does.
    """
    _validation.check_module("train_everything", model)
    for owner in model.modules():
        for name, requires_grad in owner.__dict__.pop(_BEFORE, {}).items():
            parameter = owner._parameters.get(name)
            if parameter is not None:
                parameter.requires_grad_(requires_grad)
        if isinstance(owner, _KeepsStatistics):
            remove_mixin(owner, _KeepsStatistics)
            owner.train(model.training)


@dataclass(frozen=True)
class Stage:
    """Epochs in which the same parameters are trained; each stage wants an optimizer of its own.

    Attributes:
        epochs: their numbers, counted over all stages.
        only_gates: whether all else stays frozen, normalisation's running statistics too.
    """

    epochs: range
    only_gates: bool

    def begin(self, model: nn.Module) -> None:
        """Freeze and thaw what this stage needs."""
        if self.only_gates:
            train_only_gates(model)
        else:
            train_everything(model)


def fine_tuning_stages(epochs: int, gate_epochs: int) -> list[Stage]:
    """Return the stages of a tuning: `gate_epochs` epochs for the gates alone, the rest for everything.

    Gates that are the identity at init change nothing when they are inserted into a trained network; the first stage
    lets them find their values before they pull at the weights. Refused with ValueError: more gate epochs than epochs.

    >>> fine_tuning_stages(epochs=4, gate_epochs=1)
    [Stage(epochs=range(0, 1), only_gates=True), Stage(epochs=range(1, 4), only_gates=False)]
    >>> fine_tuning_stages(epochs=4, gate_epochs=0)
    [Stage(epochs=range(0, 4), only_gates=False)]
    """
    _validation.check_integer_at_least(1, epochs=epochs)
    _validation.check_integer_at_least(0, gate_epochs=gate_epochs)
    if gate_epochs > epochs:
        raise errors.InvalidValueError(
            f"gate_epochs ({gate_epochs}) must not exceed epochs ({epochs}), which count both."
        )
    stages = [Stage(range(gate_epochs), True), Stage(range(gate_epochs, epochs), False)]
    return [stage for stage in stages if stage.epochs]


def gate_loss(model: nn.Module) -> Tensor:
    """Return the sum of the extra losses that the network's gates and gaters ask for: a scalar, 0 if none does.

    >>> gate_loss(nn.Sequential(nn.Conv2d(3, 8, 3)))
    tensor(0.)
    """
    _validation.check_module("gate_loss", model)
    askers: Any = (module for module in model.modules() if hasattr(module, "extra_loss"))
    losses: list[Tensor] = [loss for asker in askers if (loss := asker.extra_loss()) is not None]
    anchor = next(model.parameters(), torch.empty(0))
    return functools.reduce(torch.add, losses) if losses else torch.zeros((), device=anchor.device)


def set_total_steps(model: nn.Module, steps: int) -> None:
    """Let whatever in the network follows a plan (a gater's budget) begin it anew, for so many training steps."""
    planners: Any = (module for module in model.modules() if hasattr(module, "schedule"))
    for planner in planners:
        planner.schedule(steps)
