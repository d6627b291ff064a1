"""From a recipe to a training: everything that reads a recipe to build what the loop needs.

A run folder contains `recipe.yaml`, `log.jsonl` (one line per epoch), `checkpoints/` (the last two) and TensorBoard
logs. After the last epoch, `model.safetensors`, `config.json`, `predictions.safetensors` and, as the last file,
`metrics.json` are added: a run is complete if `metrics.json` exists. Only then are its checkpoints removed.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gatewise import errors
from gatewise.core.files import check_folder_writable
from gatewise.core.reasons import reason_of
from gatewise.core.run_files import CHECKPOINTS, RECIPE
from gatewise.data import Augmentation, Batches, Dataset, SegmentationDataset, make_batches
from gatewise.data.pixel_format import PixelFormat
from gatewise.gaternet import GaterNet
from gatewise.gaternet.given_routes import follow_gates
from gatewise.gaternet.teaching import SELF
from gatewise.gates.spec import ModelSpec
from gatewise.graph import evaluation_mode
from gatewise.insertion.tuning import gate_parameters
from gatewise.models.create import make_model
from gatewise.models.pretrained import is_pretrained
from gatewise.training.checkpoint import complete_states
from gatewise.training.constant_answer import constant_answer
from gatewise.training.distributed import Processes
from gatewise.training.evaluation import Evaluation, evaluate
from gatewise.training.first_facts import first_facts
from gatewise.training.initial import Initial, load_initial
from gatewise.training.learner import Learner
from gatewise.training.loop import Training
from gatewise.training.optimizer import make_optimizer
from gatewise.training.progress import Progress
from gatewise.training.recipe import Plan, Recipe
from gatewise.training.results import write_results
from gatewise.training.run_folder import check_may_train, clear_checkpoints, finished_metrics, holds_run, last_good
from gatewise.training.sample import Sample
from gatewise.training.tasks import Task
from gatewise.training.teacher import load_teacher
from gatewise.training.trackers import DEFAULT, NONE, parse_trackers


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    dataset: Dataset | SegmentationDataset | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    track: Sequence[str] = DEFAULT,
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
        track: names of experiment trackers that Accelerate knows: "tensorboard", "wandb", "mlflow", ...

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
    recipe, track = recipe.resolved(), parse_trackers(",".join(track) or NONE)
    out, progress, processes = Path(out), progress or Progress(quiet=True), Processes()
    with processes.holding_folder(out):
        check_may_train(out, resume=resume)
        stored = Recipe.load(out / RECIPE) if holds_run(out) else None
        if stored is not None:
            stored.check_same_recipe(recipe, out)
        keep = recipe.keep_checkpoint or (stored is not None and stored.keep_checkpoint)
        finished, states = finished_metrics(out), complete_states(out / CHECKPOINTS)
        newest = "finished" if finished else max((state.name for state in states), default="")
        processes.check_same_everywhere(f"state of {out}", newest)
        progress.quiet = progress.quiet or not processes.is_main
        if finished is not None:
            progress.say(f"{out} has finished already and is not trained again")
            processes.on_main_process(functools.partial(clear_checkpoints, out, keep=keep))
            return finished
        processes.on_main_process(functools.partial(check_folder_writable, out))
        plan = recipe.plan()
        given, dataset = dataset, dataset or plan.source.load()
        if states and dataset.division is not None:
            dataset.division.check_same(out)
        setup = build(plan, dataset, processes, workers)
        if given is None:  # a caller who loads the data says what is in it
            for line in first_facts(dataset, plan.optimisation, constant_answer(setup.task, dataset)):
                progress.say(line)
        setup.announce(progress)
        try:
            with processes.joined():
                if processes.is_main and (not states or recipe != stored):  # the data was moved
                    recipe.save(out / RECIPE)
                if processes.is_main and not states and dataset.division is not None:
                    dataset.division.write(out)
                metrics = setup.train(recipe, out, dataset, progress, track)
                processes.on_main_process(functools.partial(clear_checkpoints, out, keep=keep))
                return metrics
        except errors.StorageError as error:
            raise errors.UnsavedError(
                f"{error} {last_good(out)} Then give the same command again (train: with --resume)."
            ) from error
        finally:
            progress.stop()


@dataclass(frozen=True)
class Setup:
    """What a recipe and a data set are built into, before the first step."""

    plan: Plan
    task: Task
    initial: Initial
    learner: Learner
    augmentation: Augmentation
    batches: Batches
    validation: Batches
    test: Batches | None

    def announce(self, progress: Progress) -> None:
        """Show what was found in the data and in the initial weights."""
        if self.task.class_per_pixel:
            progress.say(f"classes of pixels, {len(self.task.classes)}: {', '.join(self.task.classes)}")
        if is_pretrained(self.plan.spec):
            mean, std = (_listed(part.tolist()) for part in (self.initial.mean, self.initial.std))
            progress.say(
                f"pretrained {self.plan.spec.model}: pixels normalised by mean {mean} and deviation {std} of 0 to 255, "
                f"learning rate {self.plan.schedule.lr:g}; --lr sets another"
            )
        if self.initial.transfer is not None:
            progress.say(f"{self.initial.weights}: {self.initial.transfer}")

    def train(
        self,
        recipe: Recipe,
        out: Path,
        dataset: Dataset | SegmentationDataset,
        progress: Progress,
        track: Sequence[str],
    ) -> dict[str, Any]:
        """Train, write the results, and return the metrics."""
        training = Training(
            title=self.plan.title,
            data=recipe.data,
            out=out,
            learner=self.learner,
            batches=self.batches,
            augmentation=self.augmentation,
            validation=self.validation,
            stages=self.plan.stages,
            schedule=self.plan.schedule,
            progress=progress,
            track=track,
            config=dataclasses.asdict(recipe),
            draws_routes=not self.initial.has_routes,
        )
        before = self.before(progress)
        evaluation, log = training.run()
        self.say_what_is_lost(before, evaluation, progress)
        details = {**self.details(dataset), "task": self.plan.task_in_full}
        test = None if self.test is None else self.learner.evaluate(self.test)
        return write_results(out, self.learner, evaluation, log, self.plan.spec, details, test, before)

    def before(self, progress: Progress) -> dict[str, Any] | None:
        """Score the initial weights of a GaterNet; None for other networks and new weights.

        Weights without a gater run with all gates open. If routes were made of the weights' gates, "routed" has the
        scores with these routes.
        """
        if self.initial.weights is None or not isinstance(self.learner.plain_model, GaterNet):
            return None
        title, unrouted = self.task.score.title, self.initial.unrouted
        if unrouted is None:
            evaluated = self.learner.evaluate if self.initial.has_gates else self.learner.evaluate_all_open
            found = self._scored(evaluated(self.validation))
            progress.say(f"{self.initial.weights}{self._opened}: validation {title} {self._text(found)}")
            return found
        processes = self.learner.processes
        found, routed = (
            self._scored(
                evaluate(net, self.validation.evaluation(), self.task.new_results(processes.device), processes)
            )
            for net in (unrouted.to(processes.device), self.learner.plain_model)
        )
        progress.say(
            f"{self.initial.weights}: validation {title} {self._text(found)}, with routes of its gates "
            f"{self._text(routed)}"
        )
        return {**found, "routed": routed}

    def say_what_is_lost(self, before: dict[str, Any] | None, after: Evaluation, progress: Progress) -> None:
        """Show the difference of the validation score to that of the initial weights."""
        if before is not None:
            score = self.task.score
            then, now = before[score.name], after.scores[score.name]
            lost = then - now if score.higher_is_better else now - then
            change = f"lost {score.number(lost)}" if lost >= 0 else f"gained {score.number(-lost)}"
            progress.say(f"{score.title} from {score.text(then)}{self._opened} to {score.text(now)}: {change}")

    @property
    def _opened(self) -> str:
        """How the initial weights run, after their name."""
        return "" if self.initial.has_gates else " with all gates open"

    def _scored(self, found: Evaluation) -> dict[str, Any]:
        return {name: found.scores[name] for name in (self.task.score.name, "loss")}

    def _text(self, scores: Mapping[str, Any]) -> str:
        return self.task.score.text(scores[self.task.score.name])

    def details(self, dataset: Dataset | SegmentationDataset) -> dict[str, Any]:
        """Return the entries of `config.json` about images and classes."""
        division = dataset.division
        split = {"split": division.details} if division is not None and division.recorded else {}
        delimiter = dataset.delimiter if isinstance(dataset, Dataset) else None
        return {
            **split,
            **({} if delimiter is None else {"label_delimiter": delimiter}),
            "num_classes": self.task.outputs,
            "in_chans": dataset.channels,
            "classes": list(dataset.classes),
            "mean": self.initial.mean.tolist(),
            "std": self.initial.std.tolist(),
            "image_size": list(dataset.size),
            "pixels": dataclasses.asdict(dataset.pixel_format or PixelFormat.of_count(dataset.channels)),
            **(
                {"masks": dataclasses.asdict(dataset.train.meaning)} if isinstance(dataset, SegmentationDataset) else {}
            ),
            **self.task.stored(),
        }


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def build(
    plan: Plan, dataset: Dataset | SegmentationDataset, processes: Processes | None = None, workers: int = 0
) -> Setup:
    """Build task, network, optimizer, augmentation and batches.

    Args:
        plan: what the recipe means.
        dataset: its data.
        processes: the processes of the training; None detects them.
        workers: number of processes that decode images.

    Raises:
        GatewiseError: an option cannot be used with this data, these weights or this machine.
    """
    processes, optimisation = processes or Processes(), plan.optimisation
    augmentation = dataset.augmentation(plan.augmentation)
    if augmentation.per_image and isinstance(dataset, Dataset):
        augmentation.of_picture(dataset.size)  # raises on an invalid policy before any file is written
    task = plan.task.make(dataset.classes)
    network = _build(plan.spec, task, dataset, optimisation.seed)
    if optimisation.gate_epochs and not any(True for _ in gate_parameters(network)):
        raise errors.InvalidValueError(
            f"gate_epochs is {optimisation.gate_epochs}, but there are no gates with parameters to train. "
            f"Set gate, or set gate_epochs to 0."
        )
    initial = load_initial(network, plan.spec, dataset, plan.initial_weights, plan.initial_gater)
    task.prepare(dataset)
    share = processes.rank, processes.count
    arguments: Any = (optimisation.batch_size, initial.mean, initial.std)
    common: Any = {"device": processes.device, "workers": workers, "share": share}
    batches = make_batches(dataset.train, *arguments, augmentation=augmentation, **common)
    if initial.unrouted is not None and isinstance(network, GaterNet):
        whole = make_batches(dataset.train, *arguments, augmentation=Augmentation(), device=processes.device)
        follow_gates(network, initial.unrouted, (images.cpu() for images in Sample(whole, optimisation.seed)))
    sample = Sample(batches, optimisation.seed)
    if not initial.has_routes:
        _check_routes_can_be_drawn(network, sample.count // processes.count)
    learner = Learner(
        network,
        task,
        functools.partial(
            make_optimizer,
            name=optimisation.optimizer,
            lr=plan.schedule.lr,
            momentum=optimisation.momentum,
            weight_decay=optimisation.weight_decay,
        ),
        precision=optimisation.precision,
        ema=optimisation.ema,
        compiled=optimisation.compile,
        seed=optimisation.seed,
        processes=processes,
        sample=sample,
        teacher=_teacher(plan, task, dataset, initial),
    )
    validation = make_batches(dataset.validation, *arguments, augmentation=Augmentation(), **common)
    test = (
        None if dataset.test is None else make_batches(dataset.test, *arguments, augmentation=Augmentation(), **common)
    )
    processes.check_divides_batch(batches.batch_size)
    if task.mix is not None and batches.batch_size // processes.count % 2:
        raise errors.InvalidValueError(
            f"mixup and cutmix need an even number of images per process, got a batch of {batches.batch_size} for "
            f"{processes.count}. Choose another batch_size."
        )
    return Setup(
        plan=plan,
        task=task,
        initial=initial,
        learner=learner,
        augmentation=augmentation,
        batches=batches,
        validation=validation,
        test=test,
    )


def _check_routes_can_be_drawn(network: nn.Module, images: int) -> None:
    """Raise before a training if the images from which its routes will be computed are fewer than the routes."""
    count = len(network.routes) if isinstance(network, GaterNet) and network.routes is not None else 0
    if count > images:
        raise errors.InvalidValueError(
            f"routes must be at most the number of images from which they are computed, {images}, got {count}. Choose "
            f"fewer routes: 2 to 8 are usual."
        )


def _teacher(
    plan: Plan, task: Task, dataset: Dataset | SegmentationDataset, initial: Initial
) -> tuple[str | nn.Module, float, float] | None:
    """Return the teacher with the weight and the temperature of what it teaches, or None."""
    if plan.teacher is None:
        return None
    teacher = SELF if plan.teacher == SELF else load_teacher(plan.teacher, task, dataset, initial.mean, initial.std)
    return teacher, plan.teacher_weight, plan.teacher_temperature


def build_model(recipe: Recipe, dataset: Dataset | SegmentationDataset) -> nn.Module:
    """Return the recipe's network for a data set.

    Raises:
        InvalidValueError: the network fails on an image of this size, or its output has an unexpected shape.
    """
    return _build(recipe.spec, recipe.task_spec.make(dataset.classes), dataset, recipe.seed)


def _build(spec: ModelSpec, task: Task, dataset: Dataset | SegmentationDataset, seed: int) -> nn.Module:
    """Build a network and check the shape of its output."""
    options: dict[str, Any] = {"num_classes": task.outputs, "in_chans": dataset.channels, "image_size": dataset.size}
    model = make_model(spec, **options, seed=seed)
    try:
        with evaluation_mode(model), torch.no_grad():
            output = model(torch.zeros(1, dataset.channels, *dataset.size))
    except Exception as error:
        size = " x ".join(map(str, (dataset.channels, *dataset.size)))
        raise errors.InvalidValueError(
            f"{spec} fails on the data's images of {size}: {reason_of(error)}. "
            f"Choose another network, or set image_size."
        ) from None
    expected = task.shape(dataset.size)
    if tuple(output.shape) != expected:
        raise errors.InvalidValueError(
            f"{spec} returns shape {tuple(output.shape)} for one image; expected {expected}, one logit per class"
            f"{' and pixel' if task.class_per_pixel else ''}. Choose another network."
        )
    return model
