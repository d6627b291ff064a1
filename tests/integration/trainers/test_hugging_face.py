"""The Trainer of transformers with gates: stages, schedules, loss, log, checkpoints, and from_pretrained."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw
from support.launched import LAUNCHER
from support.project import SUPPORT
from support.trained_elsewhere import (
    BATCH,
    BATCHES,
    EPOCHS,
    EXAMPLES,
    IMAGES,
    budget_net,
    changed,
    expected_statistics,
    gated_net,
    loader,
    of_gates,
    own_loop,
    sgd,
    snapshot,
)

transformers = pytest.importorskip("transformers")
from gatewise.integrations.transformers import GateTuning  # noqa: E402 - needs transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error:this loss has no loss of the gates")]


class Model(nn.Module):
    """A network in the form that the trainer expects."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def criterion(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    total = F.cross_entropy(outputs["logits"], labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
    """Batches in the same order, random numbers that depend on the index of the batch, and all losses."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(EXAMPLES)  # type: ignore[arg-type]

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        self.losses = getattr(self, "losses", [])
        first = self.state.global_step * self.args.gradient_accumulation_steps if not self.losses else self.first
        self.first = first
        torch.manual_seed(first + len(self.losses))
        loss = super().training_step(*args, **options)
        self.losses.append(loss.item())
        return loss


class Snapshots(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Keeps the tensors of the network at the start and after each epoch."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self.kept.append(snapshot(model.net))

    def on_epoch_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.kept.append(snapshot(model.net))


def trainer(folder: Path, net: nn.Module, *callbacks: Any, **options: Any) -> Any:
    model = Model(net)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="epoch",
        eval_strategy=options.pop("eval_strategy", "epoch"),
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:16],
        compute_loss_func=gw.GateLoss(criterion, model),
        optimizers=(sgd(model), None),
        callbacks=list(callbacks),
    )


@pytest.mark.situation("The network is trained by another trainer: the gates first, then everything.")
def test_stages(tmp_path: Path) -> None:
    snapshots = Snapshots()
    trainer(tmp_path, gated_net(), GateTuning(gate_epochs=1), snapshots).train()
    start, gates_alone, everything = snapshots.kept
    assert changed(start, gates_alone) == of_gates(start) != set(), "running statistics are frozen too"
    assert changed(gates_alone, everything) == set(start)


@pytest.mark.parametrize(("make", "gate_epochs"), [(gated_net, 1), (gated_net, 0), (budget_net, 0)])
def test_training_equals_own_loop(tmp_path: Path, make: Any, gate_epochs: int) -> None:
    host, own = trainer(tmp_path, make(), GateTuning(gate_epochs)), make()
    host.train()
    losses = own_loop(own, gate_epochs)
    assert host.losses == pytest.approx(losses, rel=1e-5), "the loss contains that of the gates"
    for name, value in snapshot(own).items():
        torch.testing.assert_close(snapshot(host.model.net)[name], value)


def test_accumulated_gradients_equal_those_of_own_loop(tmp_path: Path) -> None:
    host = trainer(tmp_path, budget_net(), GateTuning(0), gradient_accumulation_steps=2)
    host.train()
    own = budget_net()
    losses = own_loop(own, 0, accumulate=2)
    assert host.losses == pytest.approx([loss / 2 for loss in losses], rel=1e-4)
    for name, value in snapshot(own).items():
        torch.testing.assert_close(snapshot(host.model.net)[name], value)
    assert host.model.net.price.ramp == EPOCHS * BATCHES // 2
    assert int(host.model.net.price.state[0]) == EPOCHS * BATCHES


@pytest.mark.parametrize(("options", "forwards"), [({}, 8), ({"max_steps": 6}, 6), ({"num_train_epochs": 1.5}, 6)])
def test_schedule_of_the_budget_reaches_its_end(tmp_path: Path, options: Any, forwards: int) -> None:
    host = trainer(tmp_path, budget_net(), GateTuning(0))
    for name, value in options.items():
        setattr(host.args, name, value)
    host.train()
    assert host.model.net.price.ramp == forwards // 2
    assert int(host.model.net.price.state[0]) == forwards


def test_schedule_of_an_incomplete_accumulation(tmp_path: Path) -> None:
    """Three batches a step: an epoch of four has a step of three and one of one."""
    host = trainer(tmp_path, budget_net(), GateTuning(0), gradient_accumulation_steps=3)
    host.train()
    assert host.model.net.price.ramp == EPOCHS * BATCHES // 2


@pytest.mark.situation("A training is resumed from the checkpoint of another trainer.")
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize(
    ("make", "gate_epochs", "at"),
    [(gated_net, 1, 4), (gated_net, 1, 2), (gated_net, 1, 6), (budget_net, 0, 4), (budget_net, 0, 6)],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, make: Any, gate_epochs: int, at: int, restore: bool) -> None:
    options = {"restore_callback_states_from_checkpoint": restore}
    whole = trainer(tmp_path, make(), GateTuning(gate_epochs), **options)
    whole.train()
    resumed = trainer(tmp_path, make(), GateTuning(gate_epochs), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert resumed.losses == whole.losses[at:]
    assert changed(snapshot(whole.model), snapshot(resumed.model)) == set()


def test_checkpoint_has_the_options(tmp_path: Path) -> None:
    trainer(tmp_path, gated_net(), GateTuning(1, log_statistics=False)).train()
    saved = json.loads((tmp_path / "checkpoint-8/trainer_state.json").read_text())["stateful_callbacks"]
    assert saved["GateTuning"]["args"] == {"gate_epochs": 1, "log_statistics": False}


class Reporter(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Keeps what is logged, as TensorBoard's callback would."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logged.append(dict(logs))


def of_evaluation(logs: dict[str, float], prefix: str = "eval_gates/net.") -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_statistics_are_logged(tmp_path: Path, strategy: str) -> None:
    reporter = Reporter()
    host = trainer(tmp_path, gated_net(), GateTuning(), reporter, eval_strategy=strategy, eval_steps=4)
    host.train()
    expected = expected_statistics(host.model.net, loader(16))
    history = [row for row in host.state.log_history if "eval_loss" in row]
    assert len(history) == EPOCHS
    assert of_evaluation(history[-1]) == pytest.approx(expected, rel=1e-5)
    assert expected["3.gct/mean"] != 1, "the gates have been trained"
    assert of_evaluation([row for row in reporter.logged if "eval_loss" in row][-1]) == of_evaluation(history[-1])
    assert not any(of_evaluation(row) for row in host.state.log_history if "eval_loss" not in row)
    assert not host.model.net[0].gct._forward_hooks, "recording has ended"


def test_evaluation_before_the_training_is_logged(tmp_path: Path) -> None:
    host = trainer(tmp_path, gated_net(), GateTuning(), eval_on_start=True)
    host.train()
    first, *others = [row for row in host.state.log_history if "eval_loss" in row]
    assert first["eval_gates/net.3.gct/mean"] == 1
    assert len(others) == EPOCHS
    assert all(row["eval_gates/net.3.gct/mean"] != 1 for row in others)


def test_each_evaluation_set_has_its_statistics(tmp_path: Path) -> None:
    host = trainer(tmp_path, gated_net(), GateTuning())
    host.eval_dataset = {"first": EXAMPLES[:16], "second": EXAMPLES[16:]}
    host.train()
    (first,) = [row for row in host.state.log_history if "eval_first_loss" in row and row["epoch"] == EPOCHS]
    (second,) = [row for row in host.state.log_history if "eval_second_loss" in row and row["epoch"] == EPOCHS]
    expected = expected_statistics(host.model.net, list(loader())[2:])
    assert of_evaluation(second, "eval_second_gates/net.") == pytest.approx(expected, rel=1e-5)
    assert of_evaluation(first, "eval_first_gates/net.") != of_evaluation(second, "eval_second_gates/net.")


def test_work_of_a_gater_selects_the_best_model(tmp_path: Path) -> None:
    metric = "eval_gates/net/open_fraction"
    host = trainer(tmp_path, budget_net(), GateTuning(0), metric_for_best_model=metric, greater_is_better=False)
    host.train()
    with torch.no_grad():
        gates = torch.cat([host.model.net.eval().forward_with_gates(images)[1] for images, _ in loader(16)])
    last = [row for row in host.state.log_history if "eval_loss" in row][-1]
    assert last[metric] == pytest.approx(float(host.model.net.open_fraction(gates).mean()), rel=1e-5)
    assert last["eval_gates/net/executed_macs"] == pytest.approx(float(host.model.net.executed_macs(gates).mean()))
    assert host.state.best_metric == min(row[metric] for row in host.state.log_history if metric in row)


def test_log_can_be_turned_off(tmp_path: Path) -> None:
    host = trainer(tmp_path, gated_net(), GateTuning(log_statistics=False))
    host.train()
    assert not [name for row in host.state.log_history for name in row if "gates/" in name]


def test_gates_inserted_after_the_optimizer_raise(tmp_path: Path) -> None:
    host = trainer(tmp_path, gated_net(), GateTuning(0))
    gw.insert_gates(host.model.net, "se", after=nn.Conv2d)
    with pytest.raises(gw.errors.InvalidValueError, match=r"lacks \d+ trainable parameters .*\.se\."):
        host.train()


def gated_resnet() -> Any:
    """Return a network of transformers that inserts its gates in `__init__`, so that from_pretrained knows them."""

    class GatedResNet(transformers.ResNetForImageClassification):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            gw.insert_gates(self, "gct", place="before_conv")

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
    return GatedResNet(transformers.ResNetConfig(**sizes))


@pytest.mark.situation("Gates of a pretrained network come back from the trainer's checkpoint.")
def test_from_pretrained_reads_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gated_resnet()
    before = snapshot(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=BATCH, use_cpu=True,
        learning_rate=0.1, optim="sgd", save_strategy="epoch", disable_tqdm=True,
    )  # fmt: skip
    loss = gw.GateLoss(criterion, model)
    host = transformers.Trainer(
        model=model, args=arguments, train_dataset=EXAMPLES, compute_loss_func=loss, callbacks=[GateTuning(1)]
    )
    host.train()
    assert changed(before, snapshot(model)) >= of_gates(before) != set()
    read = type(model).from_pretrained(tmp_path / "checkpoint-8")
    assert changed(snapshot(model), snapshot(read)) == set()
    with torch.no_grad():
        assert torch.equal(read.eval()(IMAGES).logits, model.eval()(IMAGES).logits)


IN_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import gatewise as gw
from transformers import Trainer, TrainingArguments
from gatewise.integrations.transformers import GateTuning
from support.trained_elsewhere import EXAMPLES, gated_net

arguments = TrainingArguments({folder!r}, num_train_epochs=1, use_cpu=True, disable_tqdm=True)
try:
    Trainer(model=gated_net(), args=arguments, train_dataset=EXAMPLES, callbacks=[GateTuning(1)]).train()
except gw.GatewiseError as error:
    print(error)
"""


def test_several_processes_raise(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(IN_PROCESSES.format(tests=str(SUPPORT.parent), folder=str(tmp_path)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*LAUNCHER, str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gate_epochs=1 needs a training in one process") == 2
