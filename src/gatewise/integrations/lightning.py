"""A callback for Lightning's `Trainer`."""

import importlib.util
import sys
import warnings
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gatewise.core import _validation
from gatewise.integrations.fine_tuning import FineTuning
from gatewise.integrations.gate_log import GateLog

__all__ = ["GateTuning"]
# Both names of the package are in use; a callback of either works with the trainer of the other.
_only_old = importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is not None
_name = "pytorch_lightning" if _only_old else "lightning.pytorch"
_Callback: Any = _validation.import_optional(_name, "gatewise.integrations.lightning", package="lightning").Callback


class GateTuning(_Callback):
    """Train the gates of a LightningModule in stages, set its schedules, and log what its gates do.

    - Stages: for `gate_epochs` epochs everything but the gates is frozen, running statistics included; then everything
      is trained, except parameters that were frozen before. The optimizer must hold all parameters from the start:
      insert the gates in `__init__` or `configure_model`, and build it with `gatewise.parameter_groups(self)`.
    - Schedules, such as that of a GaterNet's `budget`, get the number of batches of the whole training. With a
      checkpoint (`ckpt_path`), they and the stages continue where it was written.
    - Log, in each validation: of each gate the statistics of `gatewise.analysis.GateStats`, as "gates/PATH/NAME"; of a
      GaterNet "gates/PATH/open_fraction" and "gates/PATH/executed_macs".

    A callback cannot change the loss: add `gatewise.gate_loss(self)` in `training_step`, or use `gatewise.GateLoss`.

    Args:
        gate_epochs: number of epochs that train only the gates; 0 leaves what is frozen to you, and is required with
            several processes.
        log_statistics: whether to log statistics of the gates.

    Raises:
        InvalidValueError: at the start of the training, if `gate_epochs` exceeds its epochs, or is not 0 without gates
            or with DDP; or if the optimizer lacks parameters.
    """

    def __init__(self, gate_epochs: int = 1, log_statistics: bool = True) -> None:
        super().__init__()
        _validation.check_bool(log_statistics=log_statistics)
        self.log_statistics = log_statistics
        self._tuning = FineTuning(gate_epochs)
        self._log: GateLog | None = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Check the training, set the schedules, and begin the stage of the first or resumed epoch."""
        unlimited = trainer.fast_dev_run or (trainer.max_epochs or -1) == -1  # the former tries a part of an epoch
        self._tuning.start(
            pl_module,
            trainer.optimizers,
            epochs=sys.maxsize if unlimited else trainer.max_epochs,
            steps=_forwards(trainer),
            resumed=trainer.global_step > 0,
            distributed=trainer.world_size > 1 or isinstance(trainer.strategy.model, DistributedDataParallel),
        )
        self._tuning.begin_epoch(pl_module, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin the stage of this epoch."""
        self._tuning.begin_epoch(pl_module, trainer.current_epoch)

    def on_validation_epoch_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin to record the gates."""
        if self.log_statistics and not trainer.sanity_checking:
            self._log = GateLog(pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:  # noqa: ARG002
        """Add a batch to the statistics."""
        if self._log is not None:
            self._log.take()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Log the statistics."""
        if self._log is not None:
            self._log.close()
            pl_module.log_dict(self._log.compute(), sync_dist=True)  # the same values in each process
            self._log = None

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:  # noqa: ARG002
        """Stop recording."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: the stages follow from `gate_epochs` and the epoch."""
        return {"gate_epochs": self._tuning.gate_epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the checkpoint was written by a training with other stages."""
        if state_dict["gate_epochs"] != self._tuning.gate_epochs:
            warnings.warn(
                f"the checkpoint was written with gate_epochs={state_dict['gate_epochs']}, this training has "
                f"gate_epochs={self._tuning.gate_epochs}; the latter applies.",
                stacklevel=2,
            )


def _forwards(trainer: Any) -> int | None:
    """Return the number of training batches of the whole training, or None if it is endless."""
    limits = [trainer.max_steps * trainer.accumulate_grad_batches] if trainer.max_steps != -1 else []
    if trainer.max_epochs not in {None, -1}:
        limits.append(trainer.num_training_batches * trainer.max_epochs)
    forwards = min(limits, default=float("inf"))
    return int(forwards) if forwards < float("inf") else None
