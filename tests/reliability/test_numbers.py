"""Nonfinite numbers: found at the step where they arise, named, and never written into a checkpoint."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gatewise as gw
from gatewise.cli import run as command
from gatewise.data import Batches
from gatewise.errors import DataError, InvalidValueError, TrainingError
from gatewise.gates import registry
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import details_in, not_finite, save_model
from gatewise.training import Progress, learner, train
from gatewise.training.finite_checks import first_layer, hopeless_scale
from gatewise.training.options import Schedule
from support.small_runs import DATASET, RECIPE, content_of, equal, log, look_rarely, trained, weights

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("numbers") / "run"
    trained(out)
    return out


class At(Progress):
    """Changes the network after a number of steps, counted from 1."""

    learners: list[Any]

    def __init__(self, step: int, what: Callable[[learner.Learner], None], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(quiet=True)
        self.left, self.what = step, what
        self.said: list[str] = []
        found: list[learner.Learner] = []
        begin = learner.Learner.begin
        monkeypatch.setattr(learner.Learner, "begin", lambda own, stage: (found.append(own), begin(own, stage))[1])
        self.found = found

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.what(self.found[-1])

    def say(self, line: str) -> None:
        self.said.append(line)


def fill(name: str, value: float) -> Callable[[learner.Learner], None]:
    """Return what puts a value into one entry of a parameter or buffer."""

    def ruin(trained: learner.Learner) -> None:
        model = trained.plain_model
        with torch.no_grad():
            tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
            tensor[(-1,) * tensor.dim()] = value

    return ruin


# Images, weights, gates, loss


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nonfinite_images_are_named(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    training = Batches.training

    def poisoned(self: Batches, epoch: int, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (images, labels) in enumerate(training(self, epoch, **options), 1):
            if (epoch, step) == (1, 2):
                images[3, 0, 4, 4] = value
            yield images, labels

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "training", poisoned)
        with pytest.raises(
            TrainingError,
            match=r"at step 2 of epoch 2\. Its images are not finite: 1 of 16 in the batch, the first at index 3\.",
        ):
            trained(tmp_path / "run")
    assert equal(trained(tmp_path / "run", resume=True), weights(uninterrupted))


@pytest.mark.parametrize("name", ["stages.1.0.conv2.weight", "fc.bias"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_nonfinite_weights_are_named_with_step_and_checkpoint(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
        trained(out, progress=At(4, fill(name, value), patch))
    message = str(caught.value)
    assert f"at step 2 of epoch 2. It begins in the weights: {name} has values that are not finite." in message
    assert message.endswith(f"The last good checkpoint is {out / 'checkpoints/step_000000003'}.")
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["step_000000003"]
    assert not_finite_in(out) == []
    assert equal(trained(out, resume=True), weights(uninterrupted))
    assert log(out, "seconds", "images_per_second") == log(uninterrupted, "seconds", "images_per_second")


def not_finite_in(out: Path) -> list[str]:
    """Return which tensors of all checkpoints are not finite."""
    files = {path: load_file(path) for path in out.glob("checkpoints/*/state.safetensors")}
    return [f"{path}: {name}" for path, found in files.items() for name, t in found.items() if not t.isfinite().all()]


def test_error_before_first_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"at step 2 of epoch 1\. .*No checkpoint had been written\.$"):
        trained(tmp_path / "run", progress=At(1, fill("conv1.weight", NAN), monkeypatch))


def gate_that(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], own_loss: float = 0.0) -> None:
    """Register the gate "odd", which applies a function to its map."""

    class Odd(registry.Gate):
        def __init__(self, channels: int, *, device: Any = None, dtype: Any = None) -> None:
            super().__init__(channels)
            self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return change(x) if self.training else x

        def extra_loss(self) -> Tensor | None:
            return self.scale.sum() * own_loss if own_loss else None

    facts = {"function": lambda x: x, "title": "Odd", "paper": "none", "place": "stage_end"}
    monkeypatch.setitem(registry._registry, "odd", registry.GateSpec(name="odd", gate=Odd, **facts))


@pytest.mark.parametrize(
    "change",
    [lambda x: x * INF, lambda x: (x - x) / (x - x), lambda x: (x.half() * 60_000).float(), lambda x: x * 3e38 * 9],
    ids=["infinity", "nan", "overflow of float16", "overflow of float32"],
)
def test_gate_with_nonfinite_output_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]
) -> None:
    gate_that(monkeypatch, change)
    with pytest.raises(
        TrainingError, match=r"at step 1 of epoch 1\. It begins in stages\.0\.2\.act2\.odd \(Odd\): its output"
    ):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, gate="odd"))


def test_gate_with_nonfinite_loss_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_that(monkeypatch, lambda x: x, own_loss=INF)
    with pytest.raises(TrainingError, match=r"It begins in the extra loss of stages\.0\.2\.act2\.odd \(Odd\)\."):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, gate="odd"))


def test_nonfinite_part_of_loss_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "gate_loss", lambda _: torch.tensor(INF))
    with pytest.raises(
        TrainingError, match=r"the loss is inf .* The outputs of all layers are finite\. Not finite: the gates'"
    ):
        trained(tmp_path / "run")


def test_nonfinite_gradient_is_named_before_it_reaches_weights(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]

    def harmless_until_its_gradient(model: nn.Module) -> Tensor:
        calls[0] += 1
        anchor = dict(model.named_parameters())["stages.0.0.conv1.weight"].flatten()[0]
        return (0 * anchor).sqrt() if calls[0] == 5 else torch.zeros(())  # 0, with the gradient 0 * inf

    with monkeypatch.context() as patch:
        patch.setattr(learner, "gate_loss", harmless_until_its_gradient)
        with pytest.raises(
            TrainingError,
            match=r"the gradient of stages\.0\.0\.conv1\.weight is not finite at step 2 of epoch 2\. The loss and all",
        ):
            trained(tmp_path / "run")
    assert equal(trained(tmp_path / "run", resume=True), weights(uninterrupted))


def test_first_layer_with_nonfinite_output_is_named() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + x)  # the block is named, not the layer that only passes the values on

    block = nn.Sequential(nn.Identity(), Block(), nn.ReLU())
    assert first_layer(block, lambda: block(torch.full((1, 1, 2, 2), 3e38))) == "1 (Block)"
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.Identity(), Doubling()), nn.ReLU())
    nn.init.constant_(net[0].weight, 1.0)
    assert first_layer(net, lambda: net(torch.full((1, 1, 2, 2), 3e38))) == "1.1 (Doubling)"
    assert first_layer(net, lambda: net(torch.ones(1, 1, 2, 2))) is None
    assert all(not module._forward_hooks for module in net.modules())


# Values that do not affect the loss


def test_nonfinite_statistic_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"stages\.2\.0\.bn1\.running_var has values .* after epoch 2\. .*step_000000003"
    ):
        trained(out, progress=At(5, fill("stages.2.0.bn1.running_var", INF), monkeypatch))
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["step_000000003"]
    assert not (out / "metrics.json").exists()


def test_overflowed_optimizer_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(trained: learner.Learner) -> None:
        optimizer: Any = trained.optimizer.optimizer
        optimizer.state[trained.plain_model.conv1.weight]["exp_avg_sq"].fill_(INF)  # it will never move again

    recipe = dataclasses.replace(RECIPE, optimizer="adamw", lr=0.002)
    with pytest.raises(
        TrainingError, match=r"exp_avg_sq of conv1\.weight in the optimizer has values .* after epoch 2"
    ):
        trained(tmp_path / "run", recipe, progress=At(5, overflow, monkeypatch))


def test_nonfinite_moving_average_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruin(trained: learner.Learner) -> None:
        trained.average.module.bn1.running_var.fill_(INF)

    look_rarely(monkeypatch)
    recipe = dataclasses.replace(RECIPE, ema=0.9)
    with pytest.raises(TrainingError, match=r"bn1\.running_var of the moving average has values .* after epoch 1"):
        trained(tmp_path / "run", recipe, progress=At(3, ruin, monkeypatch))


def test_buffer_may_mask_with_minus_infinity_only() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -INF]))
    assert not_finite(net) is None
    net.mask[0] = INF
    assert not_finite(net) == "mask"
    net.weight.data[0, 0] = -INF
    assert not_finite(net) == "weight"


# float16


class Scaler:
    """The attributes of a GradScaler; it leaves losses as they are."""

    def __init__(self, value: float) -> None:
        self.value = value

    def get_scale(self) -> float:
        return self.value

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.value}


def test_loss_scale_of_zero_is_reported() -> None:
    assert hopeless_scale(None) is None
    assert hopeless_scale(Scaler(2.0**-14)) is None
    assert hopeless_scale(Scaler(2.0**-15)) == (
        "the loss scale has fallen to 3.1e-05: gradients overflow float16 at every scale"
    )


def test_training_that_skips_all_steps_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_scale(trained: learner.Learner) -> None:
        trained.accelerator.scaler = Scaler(2.0**-20)

    with pytest.raises(TrainingError, match=r"fallen to 9\.5e-07: .* after step 3 of epoch 2\. .*step_000000003\.$"):
        trained(tmp_path / "run", progress=At(5, lose_scale, monkeypatch))


# Learning rates, initial weights


def test_learning_rate_of_a_billion_rejected_with_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["train", "--data", "digits", "--lr", "1e9", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "gatewise: lr must be between 1e-08 and 1000, got 1000000000.0.\n"
    with pytest.raises(InvalidValueError, match="lr must be between"):
        dataclasses.replace(RECIPE, lr=1e9)


def test_diverged_training_ends_with_code_1_and_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = Schedule.rate
    higher = lambda self, step, steps: 1e9 if step >= 13 else rate(self, step, steps)  # noqa: E731
    monkeypatch.setattr(Schedule, "rate", higher)
    flags = ["--model", "resnet20", "--gate", "gct", "--epochs", "3", "--precision", "fp32", "--workers", "0"]
    assert command(["train", "--data", "digits", *flags, "--out", str(tmp_path / "run")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gatewise: ")]
    assert " of epoch 2" in line
    assert "Try a lower lr than 0.1" in line
    assert line.endswith(f"The last good checkpoint is {tmp_path / 'run/checkpoints/step_000000011'}.")
    assert not_finite_in(tmp_path / "run") == []
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize("value", [NAN, INF])
def test_nonfinite_initial_weights_rejected_first(uninterrupted: Path, tmp_path: Path, value: float) -> None:
    nonfinite = weights(uninterrupted)
    nonfinite["stages.0.1.conv2.weight"][0, 0, 0, 0] = value
    save_file(nonfinite, tmp_path / "nonfinite.safetensors")
    recipe = dataclasses.replace(RECIPE, init=str(tmp_path / "nonfinite.safetensors"))
    before = content_of(tmp_path)
    with pytest.raises(
        DataError, match=r"nonfinite\.safetensors: stages\.0\.1\.conv2\.weight holds values .* other weights"
    ):
        trained(tmp_path / "run", recipe)
    assert content_of(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mean", "std"), [([NAN], [1.0]), ([0.5], [0.0]), ([0.5], [INF]), ([0.5], [-1.0])])
def test_nonfinite_mean_or_zero_std_rejected(
    uninterrupted: Path, tmp_path: Path, mean: list[float], std: list[float]
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "initial")
    config = (tmp_path / "initial" / "config.json").read_text()
    values = json.loads(config) | {"mean": mean, "std": std}
    (tmp_path / "initial" / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"config\.json: (mean|std)\[0\] must be a number [<>]= "):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, init=str(tmp_path / "initial")))


def test_predictions_of_nonfinite_weights_rejected(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = gw.load_model(uninterrupted)
    nn.init.constant_(model.fc.bias, NAN)
    save_model(tmp_path / "run", model, ModelSpec.from_dict(config["spec"]), details_in(config))
    (tmp_path / "a.png").write_bytes(b"")
    assert command(["predict", str(tmp_path / "run"), str(tmp_path / "a.png")]) == 2
    assert "model.safetensors: fc.bias holds values that are not finite" in capsys.readouterr().err


# All gates of a layer closed


def test_layer_with_all_gates_closed_is_named_and_stays_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(trained: learner.Learner) -> None:
        net: Any = trained.plain_model
        last = [module for module in net.gater.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.bias[: net.sites[0].gates].fill_(-1e4)

    recipe = dataclasses.replace(RECIPE, gate="gaternet", epochs=1)
    progress = At(3, close, monkeypatch)
    metrics = train(recipe, tmp_path / "run", dataset=DATASET, progress=progress)
    (warning, *_) = [line for line in progress.said if line.startswith("warning: all")]
    assert "are closed for every image: its output is zero" in warning
    assert 0 < metrics["open_fraction"] < 1
    model, _ = gw.load_model(tmp_path / "run")
    with torch.no_grad():
        assert bool(model(torch.randn(2, 1, 8, 8)).isfinite().all())


def test_numeric_checks_change_nothing(uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_rarely(monkeypatch)
    assert equal(trained(tmp_path / "run"), weights(uninterrupted))
