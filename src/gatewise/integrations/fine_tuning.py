"""The stages of fine-tuning in a trainer that calls back at the start of a training and of each epoch."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gaternet import GaterNet
from gatewise.insertion.tuning import (
    Stage,
    fine_tuning_stages,
    gate_parameters,
    set_total_steps,
    trainable_parameters,
)

_NAMED = 3  # parameters that a message names


class FineTuning:
    """Freeze and thaw a network in one training: `gate_epochs` epochs for the gates alone, then all parameters.

    With `gate_epochs` = 0 nothing is frozen or thawed, so parameters that were frozen before the training stay frozen.

    Args:
        gate_epochs: number of epochs that train only the gates.
    """

    def __init__(self, gate_epochs: int) -> None:
        _validation.check_integer_at_least(0, gate_epochs=gate_epochs)
        self.gate_epochs = gate_epochs
        self._stages: list[Stage] = []
        self._stage: Stage | None = None

    def start(
        self,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        *,
        epochs: int,
        steps: int | None,
        resumed: bool,
        distributed: bool,
    ) -> None:
        """Check that the training can be done in stages, and set the schedules in the network.

        Args:
            model: the network, with the weights of a checkpoint if there is one.
            optimizers: of the whole training.
            epochs: number of epochs of the whole training.
            steps: number of forwards in training mode in the whole training; None if unknown.
            resumed: whether a checkpoint was loaded; the schedules then continue.
            distributed: whether a wrapper such as DDP has collected the parameters that it synchronises.

        Raises:
            InvalidValueError: a stage is impossible in this training, or an optimizer lacks parameters.
        """
        self._stages = fine_tuning_stages(epochs, self.gate_epochs) if self.gate_epochs else []
        self._stage = None
        if self.gate_epochs:
            _check_stages_possible(model, self.gate_epochs, distributed)
        _check_optimized(model, optimizers, every_parameter=len(self._stages) > 1)
        if steps is not None:
            set_total_steps(model, steps, restart=not resumed)
        elif any(hasattr(module, "schedule") and not isinstance(module, GaterNet) for module in model.modules()):
            warnings.warn(
                "the trainer does not know how long it trains, so the schedule of the budget stays as it is (1,000 "
                "steps by default). Limit the training in epochs or steps, or call schedule(steps) of the GaterNet.",
                stacklevel=3,
            )

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Freeze and unfreeze parameters if a stage begins with this epoch; epochs count from 0."""
        for stage in self._stages:
            if epoch in stage.epochs and stage is not self._stage:
                stage.begin(model)
                self._stage = stage


def _check_stages_possible(model: nn.Module, gate_epochs: int, distributed: bool) -> None:
    if distributed:
        raise errors.InvalidValueError(
            f"gate_epochs={gate_epochs} needs a training in one process without DDP or FSDP, which do not synchronise "
            f"parameters that are thawed later. Call gatewise.train_only_gates(model) and train with gate_epochs=0; "
            f"then call gatewise.train_everything(model) and train again, with gate_epochs=0 and a new optimizer."
        )
    if not any(True for _ in gate_parameters(model)):
        raise errors.InvalidValueError(
            f"gate_epochs={gate_epochs} needs gates with parameters, but insert_gates() has put none into this "
            f"{type(model).__name__}. Insert gates before the optimizer is built, or set gate_epochs=0 (for a GaterNet "
            f"without other gates, for example)."
        )


def _check_optimized(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], *, every_parameter: bool) -> None:
    """Raise if the optimizers lack gates or, for every parameter, what a later stage will thaw."""
    held = {
        id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    }
    if held.isdisjoint(map(id, model.parameters())):
        return  # a sharded training, such as DeepSpeed's, has copies
    own = {id(parameter) for _, _, parameter in gate_parameters(model)}
    own |= {id(p) for net in model.modules() if isinstance(net, GaterNet) for p in net.gater.parameters()}
    missing = [
        name
        for name, parameter in trainable_parameters(model).items()
        if id(parameter) not in held and (every_parameter or id(parameter) in own)
    ]
    if missing:
        names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise errors.InvalidValueError(
            f"the optimizer lacks {len(missing)} trainable parameters of the network ({names}). Insert gates first, "
            f"then build the optimizer over all parameters before any are frozen; set requires_grad_(False) on those "
            f"that are never to be trained."
        )
