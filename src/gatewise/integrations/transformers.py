"""A callback for the `Trainer` of Hugging Face's transformers."""

from typing import Any

from torch import nn

from gatewise.core import _validation
from gatewise.integrations.fine_tuning import FineTuning
from gatewise.integrations.gate_log import GateLog

__all__ = ["GateTuning"]
_purpose = "gatewise.integrations.transformers"
_callbacks: Any = _validation.import_optional("transformers.trainer_callback", _purpose, package="transformers")
_TrainerCallback: Any = _callbacks.TrainerCallback
_ExportableState: Any = _callbacks.ExportableState


class GateTuning(_TrainerCallback, _ExportableState):
    """Train the gates of a network in stages, set its schedules, and log what its gates do.

    - Stages: for `gate_epochs` epochs everything but the gates is frozen, running statistics included; then everything
      is trained, except parameters that were frozen before. Insert the gates before the trainer is created. Its own
      optimizer holds all parameters, but decays gct's beta; `optimizers=(optimizer, None)` with an optimizer of
      `gatewise.parameter_groups(model)` does not.
    - Schedules, such as that of a GaterNet's `budget`, get the number of batches of the whole training. With
      `train(resume_from_checkpoint=...)`, they and the stages continue where the checkpoint was written.
    - Log, in each evaluation of a training: of each gate the statistics of `gatewise.analysis.GateStats`, as
      "eval_gates/PATH/NAME"; of a GaterNet "eval_gates/PATH/open_fraction" and "eval_gates/PATH/executed_macs". They
      are also among the metrics of the evaluation, so that one can be `metric_for_best_model`.

    A callback cannot change the loss: pass `compute_loss_func=gatewise.GateLoss(criterion, model)` to the trainer.

    Reporters that `report_to` names are called before any callback and do not see the statistics of gates. Leave it at
    "none", and pass the reporters after this callback: `callbacks=[GateTuning(), TensorBoardCallback()]`.

    Args:
        gate_epochs: number of epochs that train only the gates; 0 leaves what is frozen to you, and is required with
            several processes.
        log_statistics: whether to log statistics of the gates.

    Raises:
        InvalidValueError: at the start of the training, if `gate_epochs` exceeds its epochs, or is not 0 without gates
            or with several processes; or if the optimizer lacks parameters.
    """

    def __init__(self, gate_epochs: int = 1, log_statistics: bool = True) -> None:
        super().__init__()
        _validation.check_bool(log_statistics=log_statistics)
        self.log_statistics = log_statistics
        self._tuning = FineTuning(gate_epochs)
        self._epoch = 0
        self._log: GateLog | None = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs: the stages follow from `gate_epochs` and the epoch."""
        return {
            "args": {"gate_epochs": self._tuning.gate_epochs, "log_statistics": self.log_statistics},
            "attributes": {},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **about: Any) -> None:  # noqa: ARG002
        """Check the training, and set the schedules."""
        self._epoch = int(state.epoch or 0)
        self._tuning.start(
            model,
            [about["optimizer"]],
            epochs=state.num_train_epochs,
            steps=_forwards(args, state, about["train_dataloader"]),
            resumed=state.global_step > 0,
            distributed=args.parallel_mode.value == "distributed",
        )
        if args.eval_on_start:
            self._record(model)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:  # noqa: ARG002
        """Begin the stage of this epoch."""
        self._close()
        self._tuning.begin_epoch(model, self._epoch)
        self._epoch += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop recording if there was an evaluation."""
        self._close()

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:  # noqa: ARG002
        """Begin to record the gates if an evaluation follows."""
        if control.should_evaluate:
            self._record(model)

    on_epoch_end = on_step_end

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Add a batch to the statistics."""
        if self._log is not None:
            self._log.take()

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **_: Any) -> None:  # noqa: ARG002
        """Add the statistics to the metrics of an evaluation, which is what is logged after its batches."""
        if self._log is None or not self._log.batches:
            return
        prefix = next(name.removesuffix("runtime") for name in logs if name.endswith("_runtime"))
        values = {f"{prefix}{name}": value for name, value in self._log.compute().items()}
        logs.update(values)
        state.log_history[-1].update(values)
        self._log.reset()  # for the next of several evaluation sets

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop recording."""
        self._close()

    def _record(self, model: nn.Module) -> None:
        if self.log_statistics and self._log is None:
            self._log = GateLog(model)

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def _forwards(args: Any, state: Any, batches: Any) -> int:
    """Return the number of training batches of the whole training."""
    limit = state.max_steps * args.gradient_accumulation_steps
    try:
        return min(limit, state.num_train_epochs * len(batches))  # the last step of an epoch may have fewer
    except TypeError:  # a stream has no length
        return limit
