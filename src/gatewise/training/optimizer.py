"""Optimizers by name, from timm."""

import torch
from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.insertion.tuning import parameter_groups


def make_optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer for the parameters that are not frozen.

    Args:
        model: the network.
        name: any name of timm's `create_optimizer_v2`.
        lr: learning rate.
        momentum: of optimizers that have one.
        weight_decay: of all parameters except those that a gate exempts.

    Raises:
        InvalidValueError: the optimizer is unknown, needs second derivatives, or cannot be used on this machine.
    """
    timm_optim = _validation.import_optional("timm.optim", "training")
    _validation.check_one_of("optimizer", name.removeprefix("lookahead_"), timm_optim.list_optimizers())
    if "hessian" in name:
        raise errors.InvalidValueError(
            f"optimizer {name!r} needs second derivatives, which this training does not compute. Choose another."
        )
    groups = parameter_groups(model, weight_decay)
    try:
        return timm_optim.create_optimizer_v2(groups, opt=name, lr=lr, momentum=momentum)
    except (AssertionError, ImportError, RuntimeError) as error:  # some need a GPU or a package
        raise errors.InvalidValueError(f"optimizer {name!r} cannot be used here: {error}.") from None
