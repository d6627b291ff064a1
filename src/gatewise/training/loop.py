"""The training loop: one run folder from a recipe, resumable after any epoch.

A run folder holds `recipe.yaml`, `log.jsonl` (one line an epoch), `checkpoints/` (the last two), TensorBoard curves,
and at the end `model.safetensors` with `config.json`, `predictions.safetensors`, and last of all `metrics.json`:
a run is complete when that exists.
"""

import contextlib
import json
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gatewise import _checks
from gatewise.checkpoint import load_state, read_json, save_model, save_state, write_atomically, write_json
from gatewise.data import Batches, Dataset, load_dataset
from gatewise.measure import environment, parameter_count
from gatewise.models import make_model
from gatewise.training.progress import Progress
from gatewise.training.recipe import Recipe, resolve_precision
from gatewise.tuning import gate_loss, parameter_groups

_CHECK_EVERY = 50  # steps between looks at the losses: each look waits for the device
_KEEP = 2  # checkpoints


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the recipe's network into the run folder `out` and return its metrics.

    Args:
        recipe: what to train.
        out: the run folder. One that holds a run already is refused unless `resume` is set; with it, a finished run
            is left alone, an unfinished one goes on behind its last epoch, and where there is none it starts afresh.
        resume: see above.
        dataset: the recipe's data if it is loaded already.
        progress: where to show progress; None shows nothing.

    Raises:
        TrainingError: the loss is not finite; the message names the step.
    """
    out, progress = Path(out), progress or Progress(quiet=True)
    if (finished := _claim(out, recipe, resume=resume)) is not None:
        return finished
    dataset = dataset or load_dataset(recipe.data, recipe.image_size)
    run = _Run(recipe, out, dataset)
    start = run.restore()
    run.open_log(start)
    progress.start(f"{recipe.gate} seed {recipe.seed}", recipe.epochs, run.batches.steps, start)
    try:
        for epoch in range(start, recipe.epochs):
            row = run.train_epoch(epoch, progress)
            run.record(row)
            progress.epoch(row)
            run.save(epoch + 1)
        return run.finish()
    finally:
        progress.stop()
        run.close()


def _claim(out: Path, recipe: Recipe, *, resume: bool) -> dict[str, Any] | None:
    """Refuse a folder that holds another run; return the metrics of a finished one."""
    if not (out / "recipe.yaml").exists():
        out.mkdir(parents=True, exist_ok=True)
        return None
    if not resume:
        raise _checks.InvalidValueError(f"{out} holds a run already. Choose another --out, or go on with --resume.")
    Recipe.load(out / "recipe.yaml").refuse_other(recipe, out)
    return read_json(out / "metrics.json") if (out / "metrics.json").exists() else None


class _Run:
    """One training's model, optimizer, data and files."""

    def __init__(self, recipe: Recipe, out: Path, dataset: Dataset) -> None:
        accelerate = _checks.optional_module("accelerate", "training")
        accelerate.state.AcceleratorState._reset_state()  # each run of a process may have its own precision
        device = accelerate.PartialState().device
        self.precision = resolve_precision(recipe.precision, device)
        mixed = "no" if self.precision == "fp32" else self.precision
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed)
        self.recipe, self.out, self.dataset = recipe, out, dataset
        self.spec = recipe.spec
        self.details = {"num_classes": len(dataset.classes), "in_chans": dataset.channels}
        model = make_model(self.spec, **self.details, seed=recipe.seed)
        timm_optim = _checks.optional_module("timm.optim", "training")
        _checks.one_of("optimizer", recipe.optimizer.removeprefix("lookahead_"), timm_optim.list_optimizers())
        groups, options = parameter_groups(model, recipe.weight_decay), {"lr": recipe.lr, "momentum": recipe.momentum}
        try:
            optimizer = timm_optim.create_optimizer_v2(groups, opt=recipe.optimizer, **options)
        except (AssertionError, ImportError, RuntimeError) as error:  # those that need a GPU or a package
            raise _checks.InvalidValueError(f"optimizer {recipe.optimizer!r} cannot be used here: {error}.") from None
        model = model.to(memory_format=torch.channels_last)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.mean, self.std = dataset.statistics()
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        options = {"device": self.accelerator.device, "share": share}
        self.batches = Batches(dataset.train, recipe.batch_size, self.mean, self.std, **options)
        self.validation = Batches(dataset.validation, 500, self.mean, self.std, device=self.accelerator.device)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.rows: list[dict[str, Any]] = []
        self._board: Any = None

    @property
    def plain_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    @property
    def augmentation(self) -> dict[str, Any]:
        """Shift and flip, as the recipe or the data set says."""
        chosen = self.recipe.augmentation
        if chosen == "auto":
            chosen = "shift+flip" if self.dataset.flip else "shift"
        return {"padding": self.dataset.padding if "shift" in chosen else 0, "flip": "flip" in chosen}

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one, and return the number of epochs it has behind it."""
        checkpoints = sorted((self.out / "checkpoints").glob("epoch_*"))
        if not checkpoints:
            self.recipe.save(self.out / "recipe.yaml")
            return 0
        state = load_state(checkpoints[-1], self.plain_model, self.optimizer)
        return int(state["epochs"])

    def open_log(self, epochs: int) -> None:
        """Keep the log's rows of epochs that are behind us, and no others."""
        log = self.out / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["epoch"] <= epochs]
        if not self.accelerator.is_main_process:
            return
        with contextlib.suppress(_checks.MissingExtraError):
            tensorboard = _checks.optional_module("torch.utils.tensorboard", "TensorBoard")
            self._board = tensorboard.SummaryWriter(str(self.out / "tensorboard"), purge_step=epochs + 1)

    def train_epoch(self, epoch: int, progress: Progress) -> dict[str, Any]:
        """Train one epoch, evaluate, and return its row for the log."""
        recipe, model = self.recipe, self.model
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)  # for dropout: the same whether resumed or not
        model.train()
        steps = recipe.epochs * self.batches.steps
        losses: list[Tensor] = []
        correct = torch.zeros((), device=self.accelerator.device)
        started = time.perf_counter()
        rate = 0.0
        for index, (images, labels) in enumerate(self.batches.training(epoch, seed=recipe.seed, **self.augmentation)):
            rate = recipe.learning_rate(epoch * self.batches.steps + index, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            logits = model(images)
            loss = self.criterion(logits, labels) + gate_loss(model)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
            correct += (logits.detach().argmax(1) == labels).sum()
            if len(losses) % _CHECK_EVERY == 0 or len(losses) == self.batches.steps:
                self._refuse_nan(losses, epoch)
            progress.step()
        mean_loss = float(torch.stack(losses).mean())  # waits for the device, so the time below is whole
        seconds = time.perf_counter() - started
        images_seen = self.batches.steps * self.batches.batch_size
        evaluation = self.evaluate()
        if not math.isfinite(evaluation["loss"]):  # the last step may ruin the weights after its own loss was seen
            raise self._failed(f"the validation loss is {evaluation['loss']} after epoch {epoch + 1}")
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.batches.steps,
            "loss": mean_loss,
            "train_accuracy": float(correct) * self.accelerator.num_processes / images_seen,
            "validation_loss": evaluation["loss"],
            "validation_accuracy": evaluation["accuracy"],
            "lr": rate,
            "seconds": seconds,
            "images_per_second": images_seen / seconds,
        }

    def _refuse_nan(self, losses: list[Tensor], epoch: int) -> None:
        recent = torch.stack(losses[-_CHECK_EVERY:])
        bad = (~recent.isfinite()).nonzero()
        if len(bad):
            step = len(losses) - len(recent) + int(bad[0]) + 1
            raise self._failed(f"the loss is {float(recent[bad[0]])} at step {step} of epoch {epoch + 1}")

    def _failed(self, what: str) -> _checks.TrainingError:
        return _checks.TrainingError(
            f"{what}. Try a lower lr than {self.recipe.lr:g}, a longer warmup, or precision fp32; "
            f"the last good checkpoint, if there is one, is in {self.out / 'checkpoints'}."
        )

    def evaluate(self) -> dict[str, Any]:
        """Return accuracy, loss and predictions on the validation images, in eval mode."""
        metrics = _checks.optional_module("torchmetrics", "evaluation")
        classes = len(self.dataset.classes)
        accuracy = metrics.Accuracy("multiclass", num_classes=classes).to(self.accelerator.device)
        self.model.eval()
        with torch.no_grad():
            logits = [self.model(images) for images, _ in self.validation.evaluation()]
        scores, labels = torch.cat(logits).float(), self.validation.labels
        accuracy.update(scores, labels)
        return {
            "accuracy": float(accuracy.compute()),
            "loss": float(nn.functional.cross_entropy(scores, labels)),
            "predictions": scores.argmax(1),
        }

    def record(self, row: dict[str, Any]) -> None:
        """Add one row to the log and to TensorBoard."""
        self.rows.append(row)
        if self.accelerator.is_main_process:
            write_atomically(self.out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        if self._board is not None:
            for name, value in row.items():
                if name not in {"epoch", "step"}:
                    self._board.add_scalar(name, value, row["epoch"])

    def save(self, epochs: int) -> None:
        """Write a checkpoint and remove all but the newest."""
        if not self.accelerator.is_main_process:
            return
        folder = self.out / "checkpoints"
        save_state(folder / f"epoch_{epochs:04d}", self.plain_model, self.optimizer, {"epochs": epochs})
        for old in sorted(folder.glob("epoch_*"))[:-_KEEP]:
            shutil.rmtree(old)

    def finish(self) -> dict[str, Any]:
        """Evaluate, write weights and predictions, and last of all the metrics."""
        evaluation = self.evaluate()
        speed = statistics.median(row["images_per_second"] for row in self.rows)
        metrics = {
            "accuracy": evaluation["accuracy"],
            "loss": evaluation["loss"],
            "train_accuracy": self.rows[-1]["train_accuracy"],
            "epochs": self.recipe.epochs,
            "parameters": parameter_count(self.plain_model),
            "images_per_second": speed,
            "precision": self.precision,
            "environment": environment(self.accelerator.device),
        }
        if self.accelerator.is_main_process:
            details = {
                **self.details,
                "classes": list(self.dataset.classes),
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
                "image_size": list(self.dataset.size),
            }
            save_model(self.out, self.plain_model, self.spec, details)
            tensors = {"predictions": evaluation["predictions"].cpu(), "labels": self.dataset.validation.labels}
            write_atomically(self.out / "predictions.safetensors", save_tensors(tensors))
            write_json(self.out / "metrics.json", metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
