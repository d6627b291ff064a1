"""A criterion that includes the gates' extra loss."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gates.registry import Gate
from gatewise.insertion.tuning import extra_losses

_IGNORED = -100  # label of positions without a class, as in torch's cross_entropy and in transformers


class GateLoss(nn.Module):
    """Return criterion(output, target, ...) + gate_loss(model), for trainers that accept a criterion.

    A GaterNet with `budget` or `sparsity` has such an extra loss, and so can gates of your own. It is that of the last
    forward in training mode, and it is added once per forward: without such a forward, as in an evaluation, the loss
    is the criterion's alone.

    The network is not a submodule, so an optimizer, DDP or a state dict that contains this module does not contain the
    network's parameters a second time. A copy or a pickle of something that contains both refers to the copied network;
    a copy of this module alone has a network of its own.

    With the keyword `num_items_in_batch`, which transformers' `Trainer` passes if it accumulates gradients, the
    criterion must divide by it, as the trainer adds up the losses of several batches. The gates' loss is then weighted
    by n / num_items_in_batch, with n the number of targets of this batch (those of -100 do not count).

    Args:
        criterion: a module or function that returns a tensor. It receives all arguments of the call.
        model: the network that is trained, or a module that contains it.

    Raises:
        InvalidTypeError: `criterion` cannot be called, or what it returns is no tensor.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))  # without gates the loss is the criterion's
    >>> GateLoss(nn.MSELoss(), net)(torch.ones(2), torch.zeros(2))
    tensor(1.)
    """

    def __init__(self, criterion: Callable[..., Tensor], model: nn.Module) -> None:
        super().__init__()
        _validation.check_module("GateLoss", model)
        if not callable(criterion):
            raise errors.InvalidTypeError(
                f"criterion must be a module or a function, got {_validation.safe_repr(criterion)}."
            )
        self.criterion = criterion
        self._network = (model,)  # in a tuple, so that it is no submodule

    @property
    def model(self) -> nn.Module:
        """The network whose gates are asked for their loss."""
        return self._network[0]

    def forward(self, *args: Any, **options: Any) -> Tensor:
        loss: object = self.criterion(*args, **options)
        if not isinstance(loss, Tensor):
            raise errors.InvalidTypeError(
                f"criterion must return a tensor, got {type(loss).__name__}. Wrap it in a function that returns the "
                f"loss to minimise."
            )
        losses = extra_losses(self.model)
        if not losses:
            self._warn_if_missing()
            return loss
        extra = functools.reduce(torch.add, losses)
        items = options.get("num_items_in_batch")
        return loss + (extra if items is None else extra * (args[1].ne(_IGNORED).sum() / items))

    def _warn_if_missing(self) -> None:
        """Warn if a training step is computed without the loss that the network's gates define."""
        defined = (getattr(type(module), "extra_loss", Gate.extra_loss) for module in self.model.modules())
        if torch.is_grad_enabled() and self.model.training and any(own is not Gate.extra_loss for own in defined):
            warnings.warn(
                f"this loss has no loss of the gates: {type(self.model).__name__} has computed none since it was last "
                f"added. Give GateLoss the network that runs, not a copy of it, and call it once per forward.",
                stacklevel=3,
            )
