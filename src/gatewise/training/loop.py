"""The training loop: train a recipe into a run folder, resumable after any step.

A run folder contains `recipe.yaml`, `log.jsonl` (one line per epoch), `checkpoints/` (the last two) and TensorBoard
logs. After the last epoch, `model.safetensors`, `config.json`, `predictions.safetensors` and, as the last file,
`metrics.json` are added: a run is complete if `metrics.json` exists.
"""

import functools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from gatewise import errors
from gatewise.core.files import check_writable, remove_leftovers, write_atomically
from gatewise.core.run_files import CHECKPOINTS, LOG, PREDICTIONS, RECIPE, TENSORBOARD
from gatewise.data import Augmentation, Dataset, SegmentationDataset, make_batches
from gatewise.graph.measure import environment, parameter_count
from gatewise.insertion.tuning import Stage, set_total_steps
from gatewise.models.serialization import save_model, write_metrics
from gatewise.training.checkpoint import check_position, complete_states, keep_newest_states, state_progress
from gatewise.training.distributed import Processes
from gatewise.training.finite_checks import NotFinite, hopeless_scale
from gatewise.training.learner import Learner
from gatewise.training.progress import Progress
from gatewise.training.recipe import Recipe
from gatewise.training.run_folder import claim, last_good, naming_what_is_left, read_log
from gatewise.training.signals import Interrupted, Interruption
from gatewise.training.tasks import TITLES
from gatewise.training.tensorboard import Board

_CHECK_EVERY = 50  # steps between checks of the losses: each check synchronises with the GPU
_SAVE_EVERY_S = 600.0  # longest time without a checkpoint within an epoch
_KEEP = 2  # number of checkpoints


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    dataset: Dataset | SegmentationDataset | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the recipe's network into the run folder `out` and return its metrics.

    Args:
        recipe: what to train.
        out: the run folder.
        resume: whether `out` may already contain a run of this recipe. A finished run is not trained again. An
            unfinished run continues from its last checkpoint and ends with bitwise the same weights as an
            uninterrupted run. Without a checkpoint, the training starts from the beginning.
        dataset: the recipe's data, if already loaded.
        workers: number of processes that decode and augment images one by one; the result does not depend on it.
        progress: where to show progress; None shows nothing.

    Returns:
        The metrics, as in `metrics.json`.

    Raises:
        TrainingError: a loss, a gradient or a weight is not finite; the message names it, the step, and the last good
            checkpoint.
        UnsavedError: a file could not be written; the message names it and the last good checkpoint.
        StorageError: the folder cannot be written to; nothing was trained.
        InvalidValueError: another process uses the folder, the folder contains a run of another recipe, or it contains
            a run and `resume` is not set.
        Interrupted: SIGINT or SIGTERM was received; the step was finished and saved.

    In distributed training (`torchrun`, `accelerate launch`) process 0 writes the folder.
    """
    processes = Processes()
    with processes.holding_folder(Path(out)):
        return _train(recipe, Path(out), resume, dataset, workers, progress or Progress(quiet=True), processes)


def _train(
    recipe: Recipe,
    out: Path,
    resume: bool,
    dataset: Dataset | SegmentationDataset | None,
    workers: int,
    progress: Progress,
    processes: Processes,
) -> dict[str, Any]:
    """Train as `train` does, in a folder that this training has locked."""
    finished = claim(out, recipe, resume=resume)
    newest = "finished" if finished else max((state.name for state in complete_states(out / CHECKPOINTS)), default="")
    processes.check_same_everywhere(f"state of {out}", newest)
    if finished is not None:
        return finished
    processes.on_main_process(functools.partial(check_writable, out))
    progress.quiet = progress.quiet or not processes.is_main
    dataset = dataset or recipe.source.load()
    run = _Run(recipe, out, dataset, workers, progress, processes)
    try:
        with processes.joined():
            with Interruption(launched=processes.count > 1) as interruption:
                run.train(interruption)
            return run.finish()
    except errors.StorageError as error:
        raise errors.UnsavedError(
            f"{error} {last_good(out)} Then give the same command again (train: with --resume)."
        ) from error
    finally:
        progress.stop()
        run.close()


class _Run:
    """The position, batches and files of one training."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        dataset: Dataset | SegmentationDataset,
        workers: int,
        progress: Progress,
        processes: Processes,
    ) -> None:
        self.recipe, self.out, self.dataset, self.progress = recipe, out, dataset, progress
        self.processes = processes
        self.augmentation = dataset.augmentation(recipe.augmentation)
        if self.augmentation.per_image and isinstance(dataset, Dataset):
            self.augmentation.of_picture(dataset.size)  # raises on an invalid policy before any file is written
        self.learner = learner = Learner(recipe, dataset, processes)
        if isinstance(dataset, SegmentationDataset):
            progress.say(f"classes of pixels, {len(dataset.classes)}: {', '.join(dataset.classes)}")
        if learner.transfer is not None:
            progress.say(f"{recipe.initial_weights}: {learner.transfer}")
        accelerator = self.accelerator = learner.accelerator
        share = (processes.rank, processes.count)
        common: Any = {"device": accelerator.device, "workers": workers, "share": share}
        normalisation = learner.mean, learner.std
        augmented: dict[str, Any] = {**common, "augmentation": self.augmentation}
        self.batches = make_batches(dataset.train, recipe.batch_size, *normalisation, **augmented)
        self.validation = make_batches(
            dataset.validation, recipe.batch_size, *normalisation, augmentation=Augmentation(), **common
        )
        processes.check_divides_batch(self.batches.batch_size)
        if learner.mix is not None and self.batches.batch_size // share[1] % 2:
            raise errors.InvalidValueError(
                f"mixup and cutmix need an even number of images per process, got a batch of "
                f"{self.batches.batch_size} for {share[1]}. Choose another batch_size."
            )
        self.epoch = self.step = 0  # complete epochs, and steps after them
        self.losses: list[Tensor] = []  # of this epoch's steps
        self.correct = torch.zeros((), device=accelerator.device)
        self.rows: list[dict[str, Any]] = []
        self._tensorboard: Board | None = None
        self._saved_at = time.monotonic()

    def train(self, interruption: Interruption) -> None:
        """Train the remaining epochs."""
        checkpoint = self._find_checkpoint()
        self._open_log()
        title = f"{self.recipe.gate} seed {self.recipe.seed}"
        self.progress.start(title, self.recipe.epochs, self.batches.steps, self.epoch, self.step)
        set_total_steps(self.learner.plain_model, self.recipe.epochs * self.batches.steps)
        for stage in self.recipe.stages:
            if self.epoch not in stage.epochs:
                continue
            self.learner.begin(stage)
            if checkpoint is not None:
                self._restore(checkpoint, stage_is_new=(self.epoch, self.step) == (stage.epochs.start, 0))
                checkpoint = None
            while self.epoch in stage.epochs:
                self._train_epoch(stage, interruption)
                self._stop_if_asked(interruption)
        if checkpoint is not None:  # all epochs are trained, but their results are not written
            self.learner.begin(self.recipe.stages[-1])
            self._restore(checkpoint, stage_is_new=False)

    def _restore(self, checkpoint: Path, *, stage_is_new: bool) -> None:
        """Restore a checkpoint; the error for a damaged one names an intact one."""
        with naming_what_is_left(checkpoint):
            self.learner.restore(checkpoint, stage_is_new=stage_is_new)

    def _find_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, or None, and restore its position."""
        if self.processes.is_main:
            for folder in (self.out, self.out / CHECKPOINTS):
                remove_leftovers(folder)
        states = complete_states(self.out / CHECKPOINTS)
        if not states:
            if self.processes.is_main:
                self.recipe.save(self.out / RECIPE)
            return None
        checkpoint = states[-1]
        with naming_what_is_left(checkpoint):
            progress = state_progress(checkpoint)
            check_position(checkpoint, progress, epochs=self.recipe.epochs, steps=self.batches.steps)
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.losses = list(torch.tensor(progress["losses"], device=self.accelerator.device))
        self.correct += progress["correct"]
        return checkpoint

    def _open_log(self) -> None:
        """Read the log's rows of completed epochs, drop later ones, and open the TensorBoard writer."""
        self.rows = [row for row in read_log(self.out) if row["epoch"] <= self.epoch]
        if len(self.rows) < self.epoch:
            raise errors.DataError(
                f"{self.out / LOG}: expected {self.epoch} epochs, found {len(self.rows)}. Restore the file from a copy."
            )
        if not self.processes.is_main:
            return
        self._tensorboard = Board(self.out / TENSORBOARD, self.epoch + 1, self.progress.say)

    def _train_epoch(self, stage: Stage, interruption: Interruption) -> None:
        """Train the remaining steps of one epoch, then evaluate, log and save."""
        recipe, steps = self.recipe, self.batches.steps
        self.learner.model.train()
        started, first, rate = time.perf_counter(), self.step, 0.0
        batches = self.batches.training(self.epoch, seed=recipe.seed, augmentation=self.augmentation, start=self.step)
        for images, labels in batches:
            in_stage = (self.epoch - stage.epochs.start) * steps + self.step
            rate = recipe.learning_rate(in_stage, len(stage.epochs) * steps)
            try:
                loss, correct = self.learner.step(images, labels, rate, self.epoch * steps + self.step)
            except NotFinite as found:
                where = f"step {self.step + 1} of epoch {self.epoch + 1}"
                raise self._failed(f"{found.what} at {where}. {found.cause}") from None
            self.losses.append(loss)
            self.correct += correct
            self.step += 1
            if self.step % _CHECK_EVERY == 0 or self.step == steps:
                self._check_scores_finite()
            self.progress.step()
            if self.step < steps:
                self._stop_if_asked(interruption)
        mean_loss = float(torch.stack(self.losses).mean())  # synchronises with the device before the time is taken
        self._end_epoch(mean_loss, rate, time.perf_counter() - started, self.step - first)

    def _end_epoch(self, mean_loss: float, rate: float, seconds: float, steps: int) -> None:
        """Evaluate, log and save after the last step of an epoch; its last `steps` steps took `seconds`."""
        evaluation = self.learner.evaluate(self.validation).results
        if not math.isfinite(evaluation["loss"]):  # the last step's loss can be finite and its update not
            raise self._failed(
                f"the validation loss is {evaluation['loss']} after epoch {self.epoch + 1}.{self._not_finite_now()}"
            )
        if not math.isfinite(evaluation[self.learner.task.score]):
            raise errors.DataError(
                f"{self.recipe.data}: no validation mask has a pixel of {', '.join(self.dataset.classes)}, so "
                f"{TITLES[self.learner.task.score]} is not defined. Choose another class or split."
            )
        images = self.batches.steps * self.batches.batch_size
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "step": self.epoch * self.batches.steps,
            "loss": mean_loss,
            "train_accuracy": float(self.correct) / images,
            **{f"validation_{name}": evaluation[name] for name in ("loss", *self._scores(evaluation))},
            **_work(evaluation),
            "lr": rate,
            "seconds": seconds,
            "images_per_second": steps * self.batches.batch_size / seconds,
        }
        self.step, self.losses, self.correct = 0, [], torch.zeros_like(self.correct)
        self._record(row)
        self.progress.epoch(row)
        for line in evaluation.get("warnings", ()):
            self.progress.say(f"warning: {line}")
        self._save()

    def _scores(self, evaluation: dict[str, Any]) -> list[str]:
        """Return the names of an evaluation's scores, the task's main score first."""
        first = self.learner.task.score
        return [first, *(name for name in ("pixel_accuracy", "iou_by_class") if name in evaluation)]

    def _stop_if_asked(self, interruption: Interruption) -> None:
        wait = time.monotonic() - self._saved_at
        signal, wait = self.processes.all_reduce_max(
            interruption.signal or 0, wait
        )  # all stop, or save, at the same step
        if self.step and (signal or wait > _SAVE_EVERY_S):
            self._save()
        if not signal:
            return
        where = f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"
        raise Interrupted(f"stopped after {where}, saved in {self.out}", int(signal))

    def _check_scores_finite(self) -> None:
        if (hopeless := hopeless_scale(self.accelerator.scaler)) is not None:
            raise self._failed(f"{hopeless}, after step {self.step} of epoch {self.epoch + 1}.")
        if not self.losses:
            return
        recent = torch.stack(self.losses[-_CHECK_EVERY:])
        bad = (~recent.isfinite()).nonzero()
        if len(bad):
            step = len(self.losses) - len(recent) + int(bad[0]) + 1
            where = f"step {step} of epoch {self.epoch + 1}"
            raise self._failed(f"the loss is {float(recent[bad[0]])} at {where}.{self._not_finite_now()}")

    def _not_finite_now(self) -> str:
        """Return a sentence that names the first tensor that is not finite, or ""."""
        name = self.learner.not_finite()
        return "" if name is None else f" {name} has values that are not finite."

    def _failed(self, what: str) -> errors.TrainingError:
        return errors.TrainingError(
            f"{what} Try a lower lr than {self.recipe.lr:g}, a longer warmup, or precision fp32. {last_good(self.out)}"
        )

    def _record(self, row: dict[str, Any]) -> None:
        """Add one row to the log and to TensorBoard."""
        self.rows.append(row)
        if self.processes.is_main:
            write_atomically(self.out / LOG, "".join(json.dumps(row) + "\n" for row in self.rows))
        if self._tensorboard is not None:
            self._tensorboard.add(row)

    def _save(self) -> None:
        """Write a checkpoint and remove old ones; raise instead if a tensor of it is not finite."""
        self._check_scores_finite()
        # each process has its own running statistics of normalisation layers
        names: list[str | None] = self.processes.all_gather_object(self.learner.not_finite())
        if (name := next(filter(None, names), None)) is not None:
            at = f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"
            raise self._failed(f"{name} has values that are not finite after {at}.")
        self._saved_at = time.monotonic()
        if not self.processes.is_main:
            return
        folder = self.out / CHECKPOINTS
        losses = [float(loss) for loss in self.losses]
        position = {"epoch": self.epoch, "step": self.step, "losses": losses, "correct": float(self.correct)}
        self.learner.save(folder / f"step_{self.epoch * self.batches.steps + self.step:09d}", position)
        keep_newest_states(folder, _KEEP)

    def finish(self) -> dict[str, Any]:
        """Evaluate, write weights and predictions, then the metrics as the last file; return the metrics."""
        learner = self.learner
        evaluated = learner.evaluate(self.validation)
        evaluation = evaluated.results
        metrics = {
            "score": learner.task.score,
            **{name: evaluation[name] for name in (*self._scores(evaluation), "loss")},
            **_work(evaluation),
            "train_accuracy": self.rows[-1]["train_accuracy"],
            "epochs": self.recipe.epochs,
            "parameters": parameter_count(learner.plain_model),
            "images_per_second": statistics.median(row["images_per_second"] for row in self.rows),
            "precision": learner.precision,
            "environment": environment(self.accelerator.device),
        }
        if self.processes.is_main:
            details: dict[str, Any] = {
                **learner.details,
                "task": self.recipe.task,
                "classes": list(self.dataset.classes),
                "mean": learner.mean.tolist(),
                "std": learner.std.tolist(),
                "image_size": list(self.dataset.size),
            }
            save_model(self.out, learner.best_model, self.recipe.spec, details)
            write_atomically(self.out / PREDICTIONS, save_tensors(evaluated.record))
            metrics = write_metrics(self.out, metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


def _work(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the open fraction and executed MACs of a GaterNet's evaluation, {} for other networks."""
    return {key: evaluation[key] for key in ("open_fraction", "executed_macs") if key in evaluation}
