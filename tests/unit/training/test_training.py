"""Training: reproducible, resumable after any epoch, every recipe option used, correct metrics."""

import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import gatewise as gw
from gatewise.data import Batches, Dataset
from gatewise.errors import DataError, InvalidValueError, TrainingError
from gatewise.gates import registry
from gatewise.models.serialization import load_model
from gatewise.training import Progress, Recipe, from_recipe, learner, loop, results, train
from gatewise.training.options import Schedule
from support.small_runs import (
    DATASET,
    RECIPE,
    SHIFT,
    TIMES,
    Interrupting,
    Stop,
    content_of,
    dataset_in_memory,
    equal,
    log,
    look_rarely,
    trained,
    trained_without_results,
    weights,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; tests only read it."""
    out = tmp_path_factory.mktemp("training") / "run"
    trained(out)
    return out


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was killed before its results; tests only read it."""
    return trained_without_results(tmp_path_factory.mktemp("training") / "unfinished")


# Reproducibility


def test_same_seed_gives_same_weights_bitwise_and_same_log(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    assert equal(trained(tmp_path / "again"), weights(run))
    assert log(tmp_path / "again", *TIMES) == log(run, *TIMES)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"epochs": 2},
        {"batch_size": 24},
        {"lr": 0.06},
        {"warmup": 0.5},
        {"momentum": 0.8},
        {"weight_decay": 0.1},
        {"optimizer": "momentum"},
        {"optimizer": "adamw", "lr": 0.001},
        {"label_smoothing": 0.1},
        {"augmentation": "none"},
        {"augmentation": "shift+flip"},
        {"precision": "bf16"},
        {"gate": "se"},
        {"model": "resnet32"},
    ],
    ids=",".join,
)
def test_every_recipe_option_changes_outcome(run: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert not equal(trained(tmp_path / "run", dataclasses.replace(RECIPE, **changes)), weights(run))


@pytest.mark.parametrize(("flip", "chosen"), [(False, "shift"), (True, "shift+flip")])
def test_auto_augmentation_flips_only_where_data_set_allows(tmp_path: Path, flip: bool, chosen: str) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    dataset = dataset_in_memory(flip)
    for name in ("auto", chosen):
        train(dataclasses.replace(recipe, augmentation=name), tmp_path / name, dataset=dataset)
    assert equal(weights(tmp_path / "auto"), weights(tmp_path / chosen))


def test_run_does_not_reuse_precision_of_previous_run(run: Path, tmp_path: Path) -> None:
    bf16 = train(dataclasses.replace(RECIPE, precision="bf16", epochs=1), tmp_path / "bf16", dataset=DATASET)
    assert bf16["precision"] == "bf16"
    assert equal(trained(tmp_path / "fp32"), weights(run))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_evaluation_is_in_float32_whatever_precision_trains(tmp_path: Path, ema: float) -> None:
    train(dataclasses.replace(RECIPE, precision="bf16", ema=ema, epochs=2), tmp_path, dataset=DATASET)
    model, _ = load_model(tmp_path)
    images = torch.cat([batch for batch, _ in Batches(DATASET.validation, 64, *DATASET.statistics()).evaluation()])
    with torch.no_grad():
        expected = model(images).softmax(1).amax(1)
    torch.testing.assert_close(load_file(tmp_path / "predictions.safetensors")["confidences"], expected)


def test_training_stays_in_its_precision_after_an_evaluation(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, precision="bf16", epochs=2)
    train(recipe, tmp_path / "whole", dataset=DATASET)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "halves", dataset=DATASET, progress=Interrupting(2))
    train(recipe, tmp_path / "halves", dataset=DATASET, resume=True)
    assert equal(weights(tmp_path / "halves"), weights(tmp_path / "whole"))


def by_hand(recipe: Recipe, make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> nn.Module:
    """Train in a plain loop."""
    model = gw.make_model(f"{recipe.model}+{recipe.gate}", num_classes=3, in_chans=1, seed=recipe.seed)
    model = model.to(memory_format=torch.channels_last).train()
    kept = [p for name, p in model.named_parameters() if name.endswith("gct.beta")]
    others = [p for name, p in model.named_parameters() if not name.endswith("gct.beta")]
    groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = make_optimizer(groups)
    batches = Batches(DATASET.train, recipe.batch_size, *DATASET.statistics())
    for epoch in range(recipe.epochs):
        for step, (images, labels) in enumerate(batches.training(epoch, seed=recipe.seed, augmentation=SHIFT)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.schedule.rate(epoch * batches.steps + step, recipe.epochs * batches.steps)
            logs = model(images).log_softmax(1)
            hit = logs[torch.arange(len(labels)), labels].mean()
            loss = -(1 - recipe.label_smoothing) * hit - recipe.label_smoothing * logs.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.mark.parametrize(
    ("optimizer", "lr", "make_optimizer"),
    [
        ("sgd", 0.05, lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.7, nesterov=True)),
        ("adamw", 0.002, lambda groups: torch.optim.AdamW(groups, lr=1)),
    ],
)
def test_training_equals_plain_loop(
    tmp_path: Path, optimizer: str, lr: float, make_optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    choice = {"gate": "gct", "weight_decay": 0.3, "momentum": 0.7, "label_smoothing": 0.2, "warmup": 0.4, "seed": 3}
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, lr=lr, epochs=2, **choice)
    found = trained(tmp_path / "run", recipe)
    for name, expected in by_hand(recipe, make_optimizer).state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_digits_are_learned_within_20_epochs(tmp_path: Path) -> None:
    metrics = train(Recipe(data="digits", gate="gct", epochs=10, precision="fp32"), tmp_path / "run")
    assert metrics["accuracy"] > 0.95


# Interrupted and resumed


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_interrupted_training_ends_as_uninterrupted(run: Path, tmp_path: Path, epoch: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stop):
        trained(out, progress=Interrupting(epoch))
    assert not (out / "metrics.json").exists()
    assert equal(trained(out, resume=True), weights(run))
    assert log(out, *TIMES) == log(run, *TIMES)


def test_interrupted_training_with_gates_and_adamw_is_identical(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, gate="gct", optimizer="adamw", lr=0.002)
    with pytest.raises(Stop):
        trained(tmp_path / "resumed", recipe, progress=Interrupting(2))
    assert equal(trained(tmp_path / "resumed", recipe, resume=True), trained(tmp_path / "uninterrupted", recipe))


def test_dropout_is_same_after_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        from_recipe, "make_model", lambda *a, **k: nn.Sequential(nn.Dropout(0.3), gw.make_model(*a, **k))
    )
    with pytest.raises(Stop):
        trained(tmp_path / "resumed", progress=Interrupting(2))
    torch.manual_seed(123)
    resumed = trained(tmp_path / "resumed", resume=True)
    assert equal(resumed, trained(tmp_path / "uninterrupted"))
    monkeypatch.setattr(from_recipe, "make_model", lambda *a, **k: nn.Sequential(nn.Identity(), gw.make_model(*a, **k)))
    assert not equal(resumed, trained(tmp_path / "without"))


@pytest.mark.parametrize("part", ["save_model", "save_tensors"])
def test_run_is_complete_only_with_all_results(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(results, part, stop)
        with pytest.raises(Stop):
            trained(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert equal(trained(tmp_path / "run", resume=True), weights(run))
    assert (tmp_path / "run" / "metrics.json").exists()


def test_only_missing_epochs_are_trained(tmp_path: Path) -> None:
    class Counting(Progress):
        epochs: ClassVar[list[int]] = []
        lines: ClassVar[list[str]] = []

        def epoch(self, row: Mapping[str, Any]) -> None:
            self.epochs.append(row["epoch"])

        def say(self, line: str) -> None:
            self.lines.append(line)

    with pytest.raises(Stop):
        trained(tmp_path / "run", progress=Interrupting(3))
    steps = len(DATASET.train) // RECIPE.batch_size
    for expected in (
        f"{tmp_path / 'run'} continues after step {2 * steps} of {3 * steps}",
        f"{tmp_path / 'run'} has finished already and is not trained again",
    ):
        Counting.lines.clear()
        trained(tmp_path / "run", resume=True, progress=Counting(quiet=True))
        assert expected in Counting.lines
        assert len([line for line in Counting.lines if str(tmp_path) in line]) == 1
    assert Counting.epochs == [3]


@pytest.mark.parametrize("leftovers", [False, True], ids=["nothing", "recipe only"])
def test_resume_without_checkpoint_starts_from_scratch(run: Path, tmp_path: Path, leftovers: bool) -> None:
    if leftovers:
        RECIPE.save(tmp_path / "run" / "recipe.yaml")
    assert equal(trained(tmp_path / "run", resume=True), weights(run))


def test_resume_of_finished_run_returns_metrics_and_writes_nothing(run: Path) -> None:
    before = content_of(run)
    assert train(RECIPE, run, resume=True) == json.loads((run / "metrics.json").read_text())
    assert content_of(run) == before


def test_folder_with_run_rejected_without_resume(run: Path) -> None:
    before = content_of(run)
    with pytest.raises(InvalidValueError, match=r"run already contains a run\. .*--resume"):
        train(RECIPE, run, dataset=DATASET)
    assert content_of(run) == before


def test_run_of_other_recipe_rejected_with_fields_and_values(run: Path) -> None:
    before = content_of(run)
    other = dataclasses.replace(RECIPE, lr=0.07, seed=5)
    with pytest.raises(InvalidValueError, match=r"another recipe: seed 0 there, 5 now; lr 0\.02 there, 0\.07 now"):
        train(other, run, resume=True, dataset=DATASET)
    assert content_of(run) == before


# Failures


def loss_that_fails_at(step: int, value: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], Tensor]:
    """Return a stand-in for the gates' loss: zero, but `value` at one step, counted from 1."""
    calls = [0]

    def loss(model: nn.Module) -> Tensor:
        calls[0] += 1
        return value(model) if calls[0] == step else torch.zeros(())

    return loss


@pytest.mark.parametrize("rarely", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_loss_stops_training_with_step_and_epoch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, rarely: bool
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if rarely:
            look_rarely(patch)
        patch.setattr(learner, "gate_loss", loss_that_fails_at(5, lambda _: torch.tensor(value)))
        with pytest.raises(TrainingError, match=rf"the loss is {value} at step 2 of epoch 2\. .*0\.02"):
            trained(out)
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["step_000000003"]
    assert [row["epoch"] for row in log(out)] == [1]
    assert not (out / "metrics.json").exists()
    assert equal(trained(out, resume=True), weights(run))


def test_step_is_named_between_two_loss_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_rarely(monkeypatch)
    monkeypatch.setattr(loop, "_CHECK_EVERY", 2)
    monkeypatch.setattr(learner, "gate_loss", loss_that_fails_at(9, lambda _: torch.tensor(float("nan"))))
    with pytest.raises(TrainingError, match="at step 3 of epoch 2"):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, batch_size=8))


def test_weights_nonfinite_after_last_step_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless_until_its_gradient(model: nn.Module) -> Tensor:
        return (0 * next(model.parameters()).flatten()[0]).sqrt()  # 0, with the gradient 0 * inf

    monkeypatch.setattr(learner, "gate_loss", loss_that_fails_at(6, harmless_until_its_gradient))
    look_rarely(monkeypatch)
    with pytest.raises(TrainingError, match=r"loss is nan after epoch 2\. conv1\.weight has values that are not"):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, epochs=2))
    assert [folder.name for folder in (tmp_path / "run/checkpoints").iterdir()] == ["step_000000003"]
    assert [row["epoch"] for row in log(tmp_path / "run")] == [1]


def test_unknown_optimizer_rejected_and_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown optimizer 'sdg'.* Did you mean 'sgd'\?"):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, optimizer="sdg"))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_optimizer_with_missing_requirement_rejected_and_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"optimizer 'fusedadam' cannot be used here: CUDA required"):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, optimizer="fusedadam"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"augmentation": "rand-z9"}, "timm cannot parse the policy"), ({"precision": "fp16"}, "fp16 needs a GPU")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_untrainable_input_rejected_first(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, **changes))
    assert not (tmp_path / "run").exists()


# The run folder


def test_folder_has_all_files_of_run(run: Path) -> None:
    names = {file.name for file in run.iterdir()}
    files = {"recipe.yaml", "log.jsonl", "metrics.json", "model.safetensors", "config.json", "predictions.safetensors"}
    assert names == files | {"tensorboard"}
    assert Recipe.load(run / "recipe.yaml") == RECIPE


def checkpoints(run: Path) -> list[str]:
    return sorted(folder.name for folder in run.glob("checkpoints/*"))


def test_last_two_checkpoints_are_kept_until_there_are_results(unfinished: Path) -> None:
    assert checkpoints(unfinished) == ["step_000000006", "step_000000009"]


def test_last_checkpoint_is_kept_on_request(tmp_path: Path) -> None:
    keeping, out = dataclasses.replace(RECIPE, keep_checkpoint=True), tmp_path / "run"
    trained(out, keeping)
    assert checkpoints(out) == ["step_000000009"]
    trained(out, resume=True)  # without the flag: as it was asked for once
    assert checkpoints(out) == ["step_000000009"]


def test_request_to_keep_checkpoint_may_come_with_resume(unfinished: Path, run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unfinished, tmp_path / "run")
    assert equal(trained(out, dataclasses.replace(RECIPE, keep_checkpoint=True), resume=True), weights(run))
    assert checkpoints(out) == ["step_000000009"]


def test_kill_before_checkpoints_are_cleared_loses_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(from_recipe, "clear_checkpoints", Mock(side_effect=Stop))
        with pytest.raises(Stop):
            trained(out)
    assert checkpoints(out) == ["step_000000006", "step_000000009"]
    monkeypatch.setattr(learner.Learner, "step", lambda *_: pytest.fail("trained again"))
    assert equal(trained(out, resume=True), weights(run))
    assert checkpoints(out) == []


def test_weights_without_metrics_are_not_overwritten_without_resume(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    (out / "metrics.json").unlink()
    with pytest.raises(InvalidValueError, match=r"already contains a run\. .*--resume"):
        trained(out)
    assert equal(trained(out, resume=True), weights(run))


def test_log_has_one_row_per_epoch(run: Path) -> None:
    rows = log(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [3, 6, 9]
    assert [row["lr"] for row in rows] == pytest.approx([RECIPE.schedule.rate(step, 9) for step in (2, 5, 8)])
    for row in rows:
        assert set(row) == {
            *("epoch", "step", "loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr"),
            *("validation_balanced_accuracy", "validation_macro_f1", "validation_ece"),
            *TIMES,
        }
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(48 / row["seconds"])
        assert row["train_accuracy"] * 48 == pytest.approx(round(row["train_accuracy"] * 48))


def test_log_has_mean_loss_and_accuracy_of_training_batches(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, lr=1e-8, label_smoothing=0.1)  # a rate that moves nothing
    trained(tmp_path / "run", recipe)
    model = gw.make_model("resnet20", num_classes=3, in_chans=1, seed=0).train()
    losses, right = [], 0
    for images, labels in Batches(DATASET.train, 16, *DATASET.statistics()).training(0, seed=0, augmentation=SHIFT):
        logits = model(images).detach()
        losses.append(float(nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)))
        right += int((logits.argmax(1) == labels).sum())
    (row,) = log(tmp_path / "run")
    assert row["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert row["train_accuracy"] == pytest.approx(right / 48)


def test_metrics_can_be_recomputed_from_folder(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    model, config = load_model(run)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    with torch.no_grad():
        logits = model((DATASET.validation.pixels - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1))
    labels = DATASET.validation.labels
    saved = load_file(run / "predictions.safetensors")
    assert torch.equal(saved["labels"], labels)
    assert (saved["predictions"] != logits.argmax(1)).sum() <= 1
    assert metrics["accuracy"] == pytest.approx(float((saved["predictions"] == labels).double().mean()))
    assert metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-3)
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert metrics["train_accuracy"] == log(run)[-1]["train_accuracy"]
    assert metrics["images_per_second"] == sorted(row["images_per_second"] for row in log(run))[1]
    assert (metrics["epochs"], metrics["precision"], metrics["environment"]["device"]) == (3, "fp32", "cpu")


def test_config_describes_inputs_of_model(run: Path) -> None:
    _, config = load_model(run)
    mean, std = DATASET.statistics()
    assert (config["mean"], config["std"]) == (mean.tolist(), std.tolist())
    assert (config["image_size"], config["classes"]) == ([8, 8], ["a", "b", "c"])
    assert (config["num_classes"], config["in_chans"]) == (3, 1)


def test_result_is_that_of_last_epoch_not_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Schedule.rate
    rates = lambda self, step, steps: 0.2 if step >= steps - 3 else rate(self, step, steps)  # noqa: E731
    monkeypatch.setattr(Schedule, "rate", rates)  # the last epoch destroys what the others learned
    metrics = train(dataclasses.replace(RECIPE, epochs=8), tmp_path / "run", dataset=DATASET)
    accuracies = [row["validation_accuracy"] for row in log(tmp_path / "run")]
    saved = load_file(tmp_path / "run" / "predictions.safetensors")
    assert accuracies[-1] < max(accuracies) - 0.2
    assert metrics["accuracy"] == accuracies[-1]
    assert metrics["accuracy"] == pytest.approx(float((saved["predictions"] == saved["labels"]).double().mean()))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics


def test_tensorboard_has_every_logged_number(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stop):
        trained(out, progress=Interrupting(2))
    trained(out, resume=True)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(log(out, "epoch", "step")[0])
    for name in ("loss", "validation_accuracy", "lr"):
        shown = events.Scalars(name)
        assert [event.step for event in shown] == [1, 2, 3]
        assert [event.value for event in shown] == pytest.approx([row[name] for row in log(out)], rel=1e-6)


# Gates


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register an identity gate whose extra loss pulls `level` to 3, and that has one decaying parameter."""

    class Pulled(registry.Gate):
        no_weight_decay: ClassVar[tuple[str, ...]] = ("kept", "level")

        def __init__(self, channels: int, *, pull: float = 0.0, device: Any = None, dtype: Any = None) -> None:
            super().__init__(channels)
            self.pull = pull
            for name in ("level", "kept", "decayed"):
                setattr(self, name, nn.Parameter(torch.ones(1, device=device, dtype=dtype)))

        def forward(self, x: Tensor) -> Tensor:
            return x + 0 * (self.level + self.kept + self.decayed)

        def extra_loss(self) -> Tensor | None:
            return self.pull * (self.level - 3).square().sum() if self.pull else None

    facts = {"function": lambda x: x, "title": "Pulled", "paper": "none", "place": "stage_end"}
    spec = registry.GateSpec(name="pulled", gate=Pulled, **facts)
    monkeypatch.setitem(registry._registry, "pulled", spec)


def parameter(state: Mapping[str, Tensor], name: str) -> list[float]:
    return [float(value) for key, value in state.items() if key.endswith(f"pulled.{name}")]


def test_extra_loss_of_gates_is_trained(tmp_path: Path, pulled: None) -> None:
    without = trained(tmp_path / "without", dataclasses.replace(RECIPE, gate="pulled"))
    pulling = trained(tmp_path / "with", dataclasses.replace(RECIPE, gate="pulled:pull=1"))
    assert parameter(without, "level") == [1.0, 1.0, 1.0]
    assert all(1.5 < level < 4 for level in parameter(pulling, "level"))
    assert log(tmp_path / "with")[0]["gate_loss"] > 3
    assert "gate_loss" not in log(tmp_path / "without")[0]


@pytest.mark.slow
def test_compiled_training_gives_an_ordinary_run(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, model="resnet20_wider:parameters=3000", gate="gct", epochs=1)
    plain = trained(tmp_path / "plain", recipe)
    compiled = trained(tmp_path / "compiled", dataclasses.replace(recipe, compile=True))
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-3)
    assert log(tmp_path / "compiled")[0]["loss"] == pytest.approx(log(tmp_path / "plain")[0]["loss"], rel=1e-3)


def test_compiled_network_is_that_which_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled: list[type] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(type(model)) or model)
    trained(tmp_path / "run", dataclasses.replace(RECIPE, compile=True, epochs=1))
    trained(tmp_path / "plain", dataclasses.replace(RECIPE, epochs=1))
    assert [kind.__name__ for kind in compiled] == ["CifarResNet"]


def test_weight_decay_skips_parameters_declared_by_gate(tmp_path: Path, pulled: None) -> None:
    found = trained(tmp_path / "run", dataclasses.replace(RECIPE, gate="pulled", weight_decay=0.5))
    assert parameter(found, "kept") == [1.0, 1.0, 1.0]
    assert all(value < 0.95 for value in parameter(found, "decayed"))


# Progress

ROW = {"epoch": 2, "loss": 0.5, "validation_accuracy": 0.875, "images_per_second": 1234.5}


def test_progress_is_one_line_per_epoch_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", dataclasses.replace(RECIPE, epochs=2, gate="se", seed=4), progress=Progress())
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["se seed 4: epoch 1/2", "se seed 4: epoch 2/2"]
    for line, row in zip(lines, log(tmp_path / "run"), strict=True):
        assert f"loss {row['loss']:.4f}, accuracy {100 * row['validation_accuracy']:.2f} %" in line
        assert "\x1b" not in line


@pytest.mark.parametrize("options", [{}, {"progress": Progress(quiet=True)}], ids=["default", "quiet"])
def test_quiet_training_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    trained(tmp_path / "run", dataclasses.replace(RECIPE, epochs=1), **options)
    assert tuple(capfd.readouterr()) == ("", "")


def test_progress_bar_always_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []
    monkeypatch.setattr(Progress, "stop", lambda self: stopped.append(type(self)))
    with pytest.raises(Stop):
        trained(tmp_path / "run", progress=Interrupting(1))
    assert stopped == [Interrupting]


def test_quiet_progress_prints_nothing_and_logs_its_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "gatewise"):
        Progress(quiet=True).say("something")
        Progress(quiet=True).epoch(ROW)
    assert capsys.readouterr().err == ""
    assert {record.name for record in caplog.records} == {"gatewise.training.progress"}
    said, row = caplog.messages
    assert said == "something"
    assert "epoch 2/0, loss 0.5000" in row
    Progress().say("something")
    assert capsys.readouterr().err == "something\n"


def test_terminal_has_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    progress = Progress()
    progress.start("gct seed 0", epochs=4, steps=10, done=1)
    progress.step()
    progress.epoch(ROW)
    progress.stop()
    progress.stop()
    assert "epoch 2/4, loss 0.5000, accuracy 87.50 %, 1234 images/s" in terminal.getvalue()
    assert "11/40" in terminal.getvalue()


def test_data_of_recipe_is_loaded_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(source: str, image_size: int | None, loading: str, *_: object) -> Dataset:
        asked.append((source, image_size, loading))
        return DATASET

    monkeypatch.setattr("gatewise.data.load.load_dataset", load)
    train(dataclasses.replace(RECIPE, epochs=1, data="some/folder", image_size=24, loading="stream"), tmp_path / "run")
    assert asked == [("some/folder", 24, "stream")]


# Folders


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "inception_v3"])
def test_network_of_other_images_rejected_first(tmp_path: Path, model: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{model} fails on the data's images of 1 x 8 x 8: .* set image_size"):
        train(dataclasses.replace(RECIPE, model=model), tmp_path / "run", dataset=DATASET)
    assert not (tmp_path / "run").exists()


def test_folder_with_only_recipe_is_free(tmp_path: Path, run: Path) -> None:
    dataclasses.replace(RECIPE, lr=1.0).save(tmp_path / "recipe.yaml")
    train(RECIPE, tmp_path, dataset=DATASET)
    assert equal(weights(tmp_path), weights(run))


def test_results_without_recipe_are_not_reused(unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").unlink()
    for resume in (False, True):
        with pytest.raises(DataError, match=r"contains checkpoints or results but no recipe\.yaml"):
            train(dataclasses.replace(RECIPE, lr=0.5), tmp_path / "run", dataset=DATASET, resume=resume)


def _cut_log(run: Path) -> None:
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text()[:-40])


def _damage(run: Path, file: str, content: bytes) -> None:
    (sorted((run / "checkpoints").iterdir())[-1] / file).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "log.jsonl").unlink(), r"log\.jsonl: expected 3 epochs, found 0"),
        (_cut_log, r"log\.jsonl, line 3: not valid JSON"),
        (
            lambda run: _damage(run, "state.json", b"{}"),
            r"state\.json: the content has no 'progress'.* continues from step_000000006",
        ),
        (lambda run: _damage(run, "state.safetensors", b"x"), r"is damaged: .* continues from step_000000006"),
    ],
)
def test_damaged_files_are_named_with_remaining_checkpoint(
    unfinished: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(unfinished, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        train(RECIPE, tmp_path / "run", dataset=DATASET, resume=True)


def test_folder_of_comparison_rejected(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InvalidValueError, match="contains a comparison"):
        train(RECIPE, tmp_path, dataset=DATASET)
