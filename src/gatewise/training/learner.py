"""The network of one training, with its optimizer, the moving average of its weights, and its checkpoints."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.data import Batches, Dataset, SegmentationDataset, seed_generators
from gatewise.gaternet import GaterNet, gate_warnings
from gatewise.graph import evaluation_mode
from gatewise.insertion.tuning import Stage, gate_loss, gate_parameters, parameter_groups
from gatewise.models import Segmenter
from gatewise.models.create import make_model
from gatewise.models.serialization import check_weights_finite, load_gater, not_finite
from gatewise.models.weights import load_weights
from gatewise.models.weights.transfer import Transfer, has_segmentation_head, load_backbone
from gatewise.training.checkpoint import load_state, save_state
from gatewise.training.distributed import Processes, of_all_processes
from gatewise.training.evaluation import Evaluation, evaluate
from gatewise.training.finite_checks import check_gradients_finite, check_loss_finite, ruined_optimizer
from gatewise.training.recipe import Recipe, resolve_precision
from gatewise.training.tasks import make_task


class Learner:
    """The recipe's network on its device, in its precision.

    Attributes:
        details: arguments of `make_model` apart from the spec.
        transfer: report on loading a classifier's weights into a segmenter, or None.
        mean: mean per channel on the scale 0 to 255, (C,): that of the initial weights' training, else of the data set.
        std: standard deviation per channel, the same way.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset | SegmentationDataset, processes: Processes | None = None
    ) -> None:
        accelerate = _validation.import_optional("accelerate", "training")
        # Private: Accelerate has no public way to change the precision, in which runs in one process may differ.
        accelerate.state.AcceleratorState._reset_state()
        self.processes = processes or Processes()
        device = self.processes.device
        self.precision = resolve_precision(recipe.precision, device)
        mixed = "no" if self.precision == "fp32" else self.precision
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed)
        self.recipe = recipe
        self.task = make_task(recipe, dataset)
        self.details = {"num_classes": self.task.maps, "in_chans": dataset.channels}
        model = build_model(recipe, dataset)
        if recipe.gate_epochs and not any(True for _ in gate_parameters(model)):
            raise errors.InvalidValueError(
                f"gate_epochs is {recipe.gate_epochs}, but there are no gates with parameters to train. "
                f"Set gate, or set gate_epochs to 0."
            )
        config, self.transfer = _load_initial(model, recipe.initial_weights)
        _check_same_gates(recipe, config)
        if recipe.initial_gater:
            load_gater(model, recipe.initial_gater)
        check_weights_finite(recipe.initial_weights or recipe.spec, model, "Start from other weights")
        self.mean, self.std = _normalisation(recipe, model, config, dataset)
        self.model: Any = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore
        # raises on an invalid optimizer before any file is written
        self.optimizer: Any = _optimizer(recipe, self.model)
        self.average = _average(recipe, self.model)
        self.mix = _mix(recipe, self.task.maps)
        self._opened: Tensor | None = None  # images that opened each gate at the last evaluation
        # Check each step before it is applied only on a CPU (a GPU would have to synchronise), without a gradient
        # scaler (it skips steps that overflow), and in one process (others would wait for the gradients of this one).
        alone = self.processes.count == 1
        self._watched = alone and device.type == "cpu" and self.accelerator.scaler is None

    @property
    def plain_model(self) -> nn.Module:
        """The trained network without Accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def side_weight(self) -> float:
        """Weight of each side output's loss."""
        model: Any = self.plain_model
        return getattr(model.backbone if isinstance(model, GaterNet) else model, "side_weight", 1.0)

    @property
    def best_model(self) -> nn.Module:
        """The network to evaluate and save: the moving average if there is one."""
        return self.plain_model if self.average is None else self.average.module

    def begin(self, stage: Stage) -> None:
        """Freeze the parameters that the stage does not train, and create its optimizer."""
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        stage.begin(model)
        self.accelerator.free_memory()
        self.model, self.optimizer = self.accelerator.prepare(model, _optimizer(self.recipe, model))

    def step(self, images: Tensor, labels: Tensor, rate: float, number: int) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; random numbers (dropout, mixup) depend only on the seed, `number` and the process.

        Args:
            images: this process's part of the batch, (B, C, H, W).
            labels: (B,), or (B, H, W) for masks.
            rate: learning rate.
            number: index of the step in the training.

        Returns:
            The mean loss, and the number of correctly classified images, both over all processes.

        Raises:
            NotFinite: the loss or a gradient is not finite; the weights are unchanged. Checked on a CPU in one process
                only.
        """
        processes = self.processes
        seed_generators(((self.recipe.seed << 32) + number) * processes.count + processes.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels)
        logits, *sides = _as_tuple(self.model(images))
        parts = {"the loss of the output": self.task.loss(logits, targets), "the gates' loss": gate_loss(self.model)}
        for index, side in enumerate(sides, 1):
            parts[f"the loss of side output {index}"] = self.side_weight * self.task.loss(side, targets)
        loss = functools.reduce(torch.add, parts.values())
        if self._watched:
            check_loss_finite(loss, parts, self.model, images)
        self.accelerator.backward(loss)
        if self._watched:
            check_gradients_finite(self.plain_model)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.plain_model, number + 1)
        hits = self.task.num_correct(logits.detach(), labels)
        rows = of_all_processes(torch.stack([loss.float(), hits.float()]))  # (processes, 2)
        return rows[:, 0].mean(), rows[:, 1].sum()

    def evaluate(self, batches: Batches) -> Evaluation:
        """Evaluate `best_model` on a split; for a GaterNet, `results` also has warnings about its gates."""
        self.processes.share_buffers(self.best_model)
        with self.accelerator.autocast():
            tally = self.task.new_results(self.accelerator.device)
            evaluation = evaluate(self.best_model, batches.evaluation(), tally, self.processes)
        if evaluation.opened is not None:
            net: Any = self.plain_model
            evaluation.results["warnings"] = gate_warnings(net, evaluation.opened, evaluation.images, self._opened)
            self._opened = evaluation.opened
        return evaluation

    def not_finite(self) -> str | None:
        """Return the name of the first tensor of a checkpoint that is not finite, or None."""
        for kind, module in self._modules.items():
            if (name := not_finite(module)) is not None:
                return name if kind == "model" else f"{name} of the moving average"
        return ruined_optimizer(self.plain_model, self.optimizer)

    def save(self, folder: Path, progress: dict[str, Any]) -> None:
        """Write a checkpoint as a new folder `folder`; `progress` is the position in the training."""
        scaler = self.accelerator.scaler
        progress = {**progress, "scaler": scaler.state_dict() if scaler is not None else None}
        save_state(folder, self._modules, self.optimizer, progress)

    def restore(self, folder: Path, *, stage_is_new: bool) -> None:
        """Restore a checkpoint, without the optimizer if a new stage begins there (it was the previous stage's)."""
        progress = load_state(folder, self._modules, None if stage_is_new else self.optimizer)
        if self.accelerator.scaler is not None and progress["scaler"]:
            self.accelerator.scaler.load_state_dict(progress["scaler"])

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.plain_model} | ({} if self.average is None else {"ema": self.average.module})


def _as_tuple(output: Any) -> tuple[Tensor, ...]:
    """Return a network's output followed by its side outputs, which some networks have in training mode."""
    return cast(tuple[Tensor, ...], output) if isinstance(output, tuple) else (output,)


def build_model(recipe: Recipe, dataset: Dataset | SegmentationDataset) -> nn.Module:
    """Return the recipe's network for a data set.

    Raises:
        InvalidValueError: the network fails on an image of this size, or its output has an unexpected shape.
    """
    options: dict[str, Any] = {
        "num_classes": len(dataset.classes),
        "in_chans": dataset.channels,
        "image_size": dataset.size,
    }
    model = make_model(recipe.spec, **options, seed=recipe.seed)
    try:
        with evaluation_mode(model), torch.no_grad():
            output = model(torch.zeros(1, dataset.channels, *dataset.size))
    except Exception as error:
        size = " x ".join(map(str, (dataset.channels, *dataset.size)))
        raise errors.InvalidValueError(
            f"{recipe.spec} fails on the data's images of {size}: {' '.join(str(error).split())[:200]}. "
            f"Choose another network, or set image_size."
        ) from None
    expected = make_task(recipe, dataset).shape(dataset.size)
    if tuple(output.shape) != expected:
        raise errors.InvalidValueError(
            f"{recipe.spec} returns shape {tuple(output.shape)} for one image; expected {expected}, one logit per class"
            f"{' and pixel' if recipe.task == 'segment' else ''}. Choose another network."
        )
    return model


def _load_initial(model: nn.Module, source: str | None) -> tuple[dict[str, Any], Transfer | None]:
    """Load initial weights if there are any; return their `config.json`, and the report of `load_backbone` if used."""
    if source is None:
        return {}, None
    plain = model.backbone if isinstance(model, GaterNet) else model
    if isinstance(plain, Segmenter) and not has_segmentation_head(source):
        transfer = load_backbone(plain, source)
        return dict(transfer.config), transfer
    return dict(load_weights(model, source).config), None


def _check_same_gates(recipe: Recipe, config: dict[str, Any]) -> None:
    """Raise if the initial weights were trained with other gate options, which would change their meaning."""
    trained = {gate["gate"]: gate["options"] for gate in config.get("spec", {}).get("gates", ())}
    for choice in recipe.spec.gates:
        there = trained.get(choice.name)
        if there is not None and not choice.is_gater and dict(there) != dict(choice.options):
            raise errors.InvalidValueError(
                f"{recipe.initial_weights} was trained with {choice.name} and options {dict(there)}, got "
                f"{dict(choice.options)}. Use the same options: the weights have another meaning with others."
            )


def _normalisation(
    recipe: Recipe, model: Any, config: dict[str, Any], dataset: Dataset | SegmentationDataset
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel: those of the initial weights' training, else of the data set."""
    if len(config.get("mean", ())) == len(config.get("std", ())) == dataset.channels:
        return torch.tensor(config["mean"]), torch.tensor(config["std"])
    model = model.backbone if isinstance(model, GaterNet) else model
    known: Mapping[str, Any] = model.pretrained_cfg if recipe.spec.model_options.get("pretrained") else {}
    if len(known.get("mean", ())) == dataset.channels:
        return 255 * torch.tensor(known["mean"]), 255 * torch.tensor(known["std"])
    return dataset.statistics()


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the parameters that are not frozen."""
    timm_optim = _validation.import_optional("timm.optim", "training")
    _validation.check_one_of("optimizer", recipe.optimizer.removeprefix("lookahead_"), timm_optim.list_optimizers())
    groups, options = parameter_groups(model, recipe.weight_decay), {"lr": recipe.lr, "momentum": recipe.momentum}
    if "hessian" in recipe.optimizer:
        raise errors.InvalidValueError(
            f"optimizer {recipe.optimizer!r} needs second derivatives, which this training does not compute. "
            f"Choose another."
        )
    try:
        return timm_optim.create_optimizer_v2(groups, opt=recipe.optimizer, **options)
    except (AssertionError, ImportError, RuntimeError) as error:  # some need a GPU or a package
        raise errors.InvalidValueError(f"optimizer {recipe.optimizer!r} cannot be used here: {error}.") from None


def _average(recipe: Recipe, model: nn.Module) -> Any:
    """Return timm's moving average of the weights, or None."""
    if not recipe.ema:
        return None
    return _validation.import_optional("timm.utils", "ema").ModelEmaV3(model, decay=recipe.ema, use_warmup=True)


def _mix(recipe: Recipe, classes: int) -> Any:
    """Return timm's mixup and CutMix, or None; label smoothing is applied by the loss instead."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    mixup = _validation.import_optional("timm.data", "mixup").Mixup
    return mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=classes)
