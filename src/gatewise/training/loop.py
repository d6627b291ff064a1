"""The training loop: epochs of steps, each with an evaluation, a log row and a checkpoint; resumable after any step."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core.files import remove_leftovers
from gatewise.core.run_files import CHECKPOINTS
from gatewise.data import Augmentation, Batches
from gatewise.insertion.tuning import Stage, set_total_steps
from gatewise.training.checkpoint import check_position, complete_states, keep_newest_states, state_progress
from gatewise.training.evaluation import Evaluation
from gatewise.training.finite_checks import NotFinite, hopeless_scale
from gatewise.training.learner import Learner
from gatewise.training.options import Schedule
from gatewise.training.progress import Progress
from gatewise.training.run_folder import last_good, naming_what_is_left
from gatewise.training.run_log import RunLog
from gatewise.training.signals import Interrupted, Interruption
from gatewise.training.trackers import DEFAULT

_CHECK_EVERY = 50  # steps between checks of the losses: each check synchronises with the GPU
_SAVE_EVERY_S = 600.0  # longest time without a checkpoint within an epoch
_KEEP = 2  # number of checkpoints


@dataclass(kw_only=True)
class Training:
    """A training in a run folder, with its position: complete epochs, and steps after them.

    Attributes:
        title: name of the training on the progress display.
        data: name of the data set, for errors.
        out: the run folder.
        learner: the network, its task and its optimizer.
        batches: batches of the training images.
        augmentation: their augmentation.
        validation: batches of the validation images.
        stages: the epochs, with the parameters that they train.
        schedule: the learning rate of each step of a stage.
        progress: where to show progress.
        track: names of trackers.
        config: the recipe, for trackers.
        draws_routes: whether the routes of a GaterNet are computed when the gater begins to decide.
    """

    title: str
    data: str
    out: Path
    learner: Learner
    batches: Batches
    augmentation: Augmentation
    validation: Batches
    stages: Sequence[Stage]
    schedule: Schedule
    progress: Progress
    track: Sequence[str] = DEFAULT
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    draws_routes: bool = True

    def __post_init__(self) -> None:
        self.steps, self.epochs = self.batches.steps, self.stages[-1].epochs.stop
        self.processes, self.checkpoints = self.learner.processes, self.out / CHECKPOINTS
        self.epoch = self.step = 0
        self.losses: list[Tensor] = []  # of the task, of this epoch's steps
        self.gate_losses: list[Tensor] = []
        self.correct = torch.zeros((), device=self.processes.device)
        self._saved_at = time.monotonic()
        self._warned = 0  # the previous epoch if it gave warnings

    def run(self) -> tuple[Evaluation, RunLog]:
        """Train the remaining epochs; return the evaluation of the trained network, and the log."""
        checkpoint = self._find_position()
        if checkpoint is not None:
            done, total = self.epoch * self.steps + self.step, self.epochs * self.steps
            self.progress.say(f"{self.out} continues after step {done:,} of {total:,}")
        self.log = RunLog(self.out, self.epoch, self.progress, self.processes, self.track, self.title, self.config)
        self.progress.start(self.title, self.epochs, self.steps, self.epoch, self.step)
        set_total_steps(self.learner.plain_model, (self.epochs - self._gating.epochs.start) * self.steps)
        if self.processes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.processes.device)
        try:
            with Interruption(launched=self.processes.count > 1) as interruption:
                for stage in self.stages:
                    if self.epoch in stage.epochs or (checkpoint and stage is self.stages[-1]):
                        self._begin(stage, checkpoint)
                        checkpoint = None
                    while self.epoch in stage.epochs:
                        self._train_epoch(stage, interruption)
                        self._stop_if_asked(interruption)
            return self.learner.evaluate(self.validation), self.log
        finally:
            self.log.close()

    def _find_position(self) -> Path | None:
        """Return the newest checkpoint, or None, and restore its position."""
        if self.processes.is_main:
            for folder in (self.out, self.checkpoints):
                remove_leftovers(folder)
        if not (states := complete_states(self.checkpoints)):
            return None
        with naming_what_is_left(states[-1]):
            position = state_progress(states[-1])
            check_position(states[-1], position, epochs=self.epochs, steps=self.steps)
        self.epoch, self.step = position["epoch"], position["step"]
        self.losses, self.gate_losses = (
            list(torch.tensor(position.get(name) or [0.0] * self.step, device=self.processes.device))
            for name in ("losses", "gate_losses")
        )
        self.correct += position["correct"]
        return states[-1]

    def _begin(self, stage: Stage, checkpoint: Path | None) -> None:
        """Begin a stage, or continue it from a checkpoint."""
        self.learner.begin(stage)
        is_new = (self.epoch, self.step) == (stage.epochs.start, 0)
        if checkpoint is not None:
            with naming_what_is_left(checkpoint):
                self.learner.restore(checkpoint, stage_is_new=is_new)
        if is_new and stage is self._gating and self.draws_routes:
            self.learner.draw_routes()

    @property
    def _gating(self) -> Stage:
        """The first stage in which a gater decides."""
        return next(stage for stage in self.stages if not stage.all_open)

    def _train_epoch(self, stage: Stage, interruption: Interruption) -> None:
        """Train the remaining steps of one epoch, then evaluate, log and save."""
        self.learner.model.train()
        started, first, rate = time.perf_counter(), self.step, 0.0
        options: Any = {"seed": self.learner.seed, "augmentation": self.augmentation, "start": self.step}
        for images, labels in self.batches.training(self.epoch, **options):
            in_stage = (self.epoch - stage.epochs.start) * self.steps + self.step
            rate = self.schedule.rate(in_stage, len(stage.epochs) * self.steps)
            try:
                loss, of_gates, correct = self.learner.step(images, labels, rate, self.epoch * self.steps + self.step)
            except NotFinite as found:
                at = f"step {self.step + 1} of epoch {self.epoch + 1}"
                raise self._failed(f"{found.what} at {at}. {found.cause}") from None
            self.losses.append(loss)
            self.gate_losses.append(of_gates)
            self.correct += correct
            self.step += 1
            if self.step % _CHECK_EVERY == 0 or self.step == self.steps:
                self._check_losses_finite()
            self.progress.step()
            if self.step < self.steps:
                self._stop_if_asked(interruption)
        # synchronises with the device before the time is taken
        mean_loss, of_gates = (float(torch.stack(of).mean()) for of in (self.losses, self.gate_losses))
        seconds, images_per_step = time.perf_counter() - started, self.batches.batch_size
        evaluation, task = self.learner.evaluate(self.validation), self.learner.task
        scores = {name: value for name, value in evaluation.scores.items() if isinstance(value, int | float)}
        self._check_evaluation(evaluation)
        row = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * self.steps,
            "loss": mean_loss,
            **({"gate_loss": of_gates} if of_gates else {}),
            f"train_{task.hit.name}": float(self.correct) / (self.steps * images_per_step),
            **{f"validation_{name}": scores[name] for name in ("loss", task.score.name, *scores)},
            **evaluation.work,
            "lr": rate,
            "seconds": seconds,
            "images_per_second": (self.step - first) * images_per_step / seconds,
        }
        self.epoch, self.step, self.losses, self.gate_losses = self.epoch + 1, 0, [], []
        self.correct = torch.zeros_like(self.correct)
        self.log.add(row)
        self.progress.epoch(row)
        for line in evaluation.warnings:
            self.progress.say(f"warning: {line}")
        if self._warned and not evaluation.warnings:
            self.progress.say(f"the warnings after epoch {self._warned} no longer hold: the gates have no problem now")
        self._warned = self.epoch if evaluation.warnings else 0
        self._save()

    def _stop_if_asked(self, interruption: Interruption) -> None:
        """Save after ten minutes; save and raise `Interrupted` after a signal; all processes do so at the same step."""
        waited = time.monotonic() - self._saved_at
        signal, waited = self.processes.all_reduce_max(interruption.signal or 0, waited)
        if self.step and (signal or waited > _SAVE_EVERY_S):
            self._save()
        if signal:
            raise Interrupted(f"stopped after {self._now()}, saved in {self.out}", int(signal))

    def _save(self) -> None:
        """Write a checkpoint and remove old ones; raise instead if a tensor of it is not finite."""
        self._check_losses_finite()
        names: list[str | None] = self.processes.all_gather_object(self.learner.not_finite())  # statistics differ
        if (name := next(filter(None, names), None)) is not None:
            raise self._failed(f"{name} has values that are not finite after {self._now()}.")
        self._saved_at = time.monotonic()
        if self.processes.is_main:
            losses, of_gates = ([float(loss) for loss in of] for of in (self.losses, self.gate_losses))
            position = {"epoch": self.epoch, "step": self.step, "losses": losses, "correct": float(self.correct)}
            if any(of_gates):
                position["gate_losses"] = of_gates
            self.learner.save(self.checkpoints / f"step_{self.epoch * self.steps + self.step:09d}", position)
            keep_newest_states(self.checkpoints, _KEEP)

    def _check_losses_finite(self) -> None:
        if (hopeless := hopeless_scale(self.learner.accelerator.scaler)) is not None:
            raise self._failed(f"{hopeless}, after step {self.step} of epoch {self.epoch + 1}.")
        every = [loss + of_gates for loss, of_gates in zip(self.losses, self.gate_losses, strict=True)][-_CHECK_EVERY:]
        recent = torch.stack(every) if every else torch.zeros(0)
        bad = (~recent.isfinite()).nonzero()
        if len(bad):
            step = len(self.losses) - len(recent) + int(bad[0]) + 1
            what = f"the loss is {float(recent[bad[0]])} at step {step} of epoch {self.epoch + 1}."
            raise self._failed(what, name_tensor=True)

    def _check_evaluation(self, evaluation: Evaluation) -> None:
        loss, task = evaluation.scores["loss"], self.learner.task
        if not math.isfinite(loss):  # the last step's loss can be finite and its update not
            raise self._failed(f"the validation loss is {loss} after epoch {self.epoch + 1}.", name_tensor=True)
        if not math.isfinite(evaluation.scores[task.score.name]):
            raise errors.DataError(f"{self.data}: {task.why_undefined()}")

    def _now(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def _failed(self, what: str, *, name_tensor: bool = False) -> errors.TrainingError:
        """Return an error that says what failed, optionally with the first tensor that is not finite."""
        if name_tensor and (name := self.learner.not_finite()) is not None:
            what += f" {name} has values that are not finite."
        advice = f"Try a lower lr than {self.schedule.lr:g}, a longer warmup, or precision fp32."
        return errors.TrainingError(f"{what} {advice} {last_good(self.out)}")
