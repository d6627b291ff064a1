"""The network of one training, with its optimizer, the moving average of its weights, and its checkpoints."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.hooks import FORWARD_OF_ACCELERATE
from gatewise.data import Batches, seed_generators
from gatewise.gaternet import GaterNet, gate_warnings, plain_network
from gatewise.gaternet.recalibration import recalibrate
from gatewise.gaternet.teaching import TeacherLoss
from gatewise.insertion.tuning import Stage, gate_loss
from gatewise.models.serialization import not_finite
from gatewise.training.checkpoint import load_state, save_state
from gatewise.training.distributed import Processes, of_all_processes
from gatewise.training.evaluation import Evaluation, evaluate
from gatewise.training.finite_checks import check_gradients_finite, check_loss_finite, ruined_optimizer
from gatewise.training.tasks import Task


class Learner:
    """A network in training: on its device, in its precision.

    Args:
        network: the network, with its initial weights.
        task: what it is trained to do.
        make_optimizer: function from a network to the optimizer of its parameters that are not frozen.
        precision: auto, fp32, bf16 or fp16; see `resolve_precision`.
        ema: decay of the moving average of the weights; 0 disables it.
        compiled: whether to train with torch.compile.
        seed: random seed of dropout and mixing.
        processes: the processes of the training; None detects them.
        sample: training images from which routes and, before evaluations, the running statistics of a GaterNet are
            computed; None leaves the statistics as the training steps left them.
        teacher: a trained network or "self", with the weight and the temperature of the divergence from it; None trains
            from the labels alone.

    Raises:
        InvalidValueError: the optimizer or the precision cannot be used here.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        precision: str = "auto",
        ema: float = 0.0,
        compiled: bool = False,
        seed: int = 0,
        processes: Processes | None = None,
        sample: Iterable[Tensor] | None = None,
        teacher: tuple[str | nn.Module, float, float] | None = None,
    ) -> None:
        self.processes = processes or Processes()
        device = self.processes.device
        self.precision = resolve_precision(precision, device)
        self.accelerator = _accelerator(self.precision, compiled=compiled)
        self.task, self.seed, self._make_optimizer = task, seed, make_optimizer
        self.model: Any = network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore
        # raises on an invalid optimizer before any file is written
        self.optimizer: Any = make_optimizer(self.model)
        self.average = _average(self.model, ema)
        self.sample = sample
        self.teaching = None if teacher is None else self._teaching(*teacher)
        self._opened: Tensor | None = None  # images that opened each gate at the last evaluation
        # Check each step before it is applied only on a CPU (a GPU would have to synchronise), without a gradient
        # scaler (it skips steps that overflow), and in one process (others would wait for the gradients of this one).
        alone = self.processes.count == 1
        self._watched = alone and device.type == "cpu" and self.accelerator.scaler is None

    def _teaching(self, teacher: str | nn.Module, weight: float, temperature: float) -> TeacherLoss:
        if isinstance(teacher, nn.Module):
            teacher = teacher.to(self.processes.device).to(memory_format=torch.channels_last)  # pyright: ignore
        options: Any = {"weight": weight, "temperature": temperature, "divergence": self.task.divergence}
        return TeacherLoss(self.task.loss, self.model, teacher, **options)

    @property
    def plain_model(self) -> nn.Module:
        """The trained network without Accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def side_weight(self) -> float:
        """Weight of each side output's loss."""
        return getattr(plain_network(self.plain_model), "side_weight", 1.0)

    @property
    def best_model(self) -> nn.Module:
        """The network to evaluate and save: the moving average if there is one."""
        return self.plain_model if self.average is None else self.average.module

    def begin(self, stage: Stage) -> None:
        """Freeze the parameters that the stage does not train, and create its optimizer."""
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        stage.begin(model)
        if isinstance(self.best_model, GaterNet):
            self.best_model.all_open = stage.all_open  # the moving average is another network
        self.accelerator.free_memory()
        self.model, self.optimizer = self.accelerator.prepare(model, self._make_optimizer(model))

    def draw_routes(self) -> None:
        """Compute the routes of a GaterNet from its weights and the sample of training images; else do nothing."""
        net = self.plain_model
        if not isinstance(net, GaterNet) or net.routes is None or self.sample is None:
            return
        net.draw_routes(self.sample)
        self.processes.share_buffers(net)
        if self.average is not None:
            self.average.set(net)

    def step(self, images: Tensor, labels: Tensor, rate: float, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Take one optimizer step; random numbers (dropout, mixup) depend only on the seed, `number` and the process.

        Args:
            images: this process's part of the batch, (B, C, H, W).
            labels: (B,), or (B, H, W) for masks.
            rate: learning rate.
            number: index of the step in the training.

        Returns:
            The mean loss of the task (with side outputs), the mean loss of the gates, and the number of correctly
            classified images, all over all processes.

        Raises:
            NotFinite: the loss or a gradient is not finite; the weights are unchanged. Checked on a CPU in one process
                only.
        """
        processes = self.processes
        seed_generators(((self.seed << 32) + number) * processes.count + processes.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets = labels
        if self.task.mix is not None:
            images, targets = self.task.mix(images, labels)
        logits, *sides = _as_tuple(self.model(images))
        parts = {"the loss of the output": self.task.loss(logits, targets), "the gates' loss": gate_loss(self.model)}
        if self.teaching is not None:
            with self.accelerator.autocast():
                parts["the teacher's loss"] = self.teaching.lesson(logits, targets, images)
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
        hits = self.task.hits(logits.detach(), labels).sum()
        of_gates = parts.pop("the gates' loss").float()
        of_task = functools.reduce(torch.add, parts.values()).float()
        rows = of_all_processes(torch.stack([of_task, of_gates, hits.float()]))  # (processes, 3)
        return rows[:, 0].mean(), rows[:, 1].mean(), rows[:, 2].sum()

    def evaluate(self, batches: Batches) -> Evaluation:
        """Evaluate `best_model` on a split, in float32; a GaterNet with new statistics and warnings about its gates."""
        best = self.best_model
        if isinstance(best, GaterNet) and self.sample is not None and not best.all_open:
            with _without_autocast(best):
                recalibrate(best, self.sample)
        self.processes.share_buffers(best)
        tally = self.task.new_results(self.accelerator.device)
        with _without_autocast(self.best_model):
            evaluation = evaluate(self.best_model, batches.evaluation(), tally, self.processes)
        if evaluation.opened is not None and isinstance(best, GaterNet) and not best.all_open:
            net: Any = self.plain_model
            warnings = gate_warnings(net, evaluation.opened, evaluation.images, self._opened)
            self._opened = evaluation.opened
            return dataclasses.replace(evaluation, warnings=tuple(warnings))
        return evaluation

    def evaluate_all_open(self, batches: Batches) -> Evaluation:
        """Evaluate a GaterNet with all gates open."""
        net: Any = self.best_model
        net.all_open = True
        try:
            return self.evaluate(batches)
        finally:
            net.all_open = False

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


@contextlib.contextmanager
def _without_autocast(model: nn.Module) -> Generator[None]:
    """Run a network that Accelerate prepared in float32: it keeps the forward that it replaced by autocast."""
    original = vars(model).get(FORWARD_OF_ACCELERATE)
    if original is None:
        yield
        return
    prepared, model.forward = model.forward, original
    try:
        yield
    finally:
        model.forward = prepared


def _average(model: nn.Module, decay: float) -> Any:
    """Return timm's moving average of the weights, or None."""
    if not decay:
        return None
    return _validation.import_optional("timm.utils", "ema").ModelEmaV3(model, decay=decay, use_warmup=True)


def _accelerator(precision: str, *, compiled: bool) -> Any:
    """Return Accelerate's wrapper for a precision, with torch.compile or without.

    Accelerate holds one state per process and rejects another precision. It has no public way to drop that
    state; its own tests call `_reset_state` too.
    """
    accelerate = _validation.import_optional("accelerate", "training")
    accelerate.state.AcceleratorState._reset_state()
    backend = {"dynamo_backend": "inductor"} if compiled else {}
    return accelerate.Accelerator(mixed_precision="no" if precision == "fp32" else precision, **backend)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision, with "auto" resolved for `device`: bf16 where the hardware supports it, else fp32.

    Raises:
        InvalidValueError: fp16 was requested on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise errors.InvalidValueError("precision fp16 needs a GPU, got a CPU; use bf16, fp32 or auto.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
    return "fp32"
