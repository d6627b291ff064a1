"""Lightning's Trainer with gates: stages, schedules, loss, log, checkpoints, and two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from support.launched import LAUNCHER
from support.project import SUPPORT
from support.trained_elsewhere import (
    BATCHES,
    EPOCHS,
    budget_net,
    changed,
    expected_statistics,
    gated_net,
    loader,
    of_gates,
    own_loop,
    plain_net,
    sgd,
    snapshot,
)

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from gatewise.integrations.lightning import GateTuning  # noqa: E402 - needs lightning

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error:this loss has no loss of the gates")]


class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
    """A network with its loss; the random numbers of a step depend on its index."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = gw.GateLoss(nn.CrossEntropyLoss(), net)
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        images, labels = batch
        torch.manual_seed(self.trainer.current_epoch * BATCHES + index)
        loss = self.criterion(self.net(images), labels)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        images, labels = batch
        self.log("val_loss", self.criterion(self.net(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)


class Snapshots(pl.Callback):  # type: ignore[misc, name-defined]
    """Keeps the tensors of the network at the start and after each epoch."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def on_fit_start(self, _: Any, pl_module: Any) -> None:
        self.kept.append(snapshot(pl_module.net))

    def on_train_epoch_end(self, _: Any, pl_module: Any) -> None:
        self.kept.append(snapshot(pl_module.net))


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    checkpoints = pl.callbacks.ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, **options.pop("saved", {}))
    options = {"max_epochs": EPOCHS, "devices": 1, **quiet, **options}
    return pl.Trainer(default_root_dir=folder, callbacks=[*callbacks, checkpoints], **options)


def fit(folder: Path, net: nn.Module, *callbacks: Any, resume: Path | None = None, **options: Any) -> tuple[Any, Any]:
    module, host = Module(net), trainer(folder, *callbacks, **options)
    host.fit(module, loader(), loader(16), ckpt_path=resume)
    return module, host


@pytest.mark.situation("The network is trained by another trainer: the gates first, then everything.")
def test_stages(tmp_path: Path) -> None:
    snapshots = Snapshots()
    fit(tmp_path, gated_net(), GateTuning(gate_epochs=1), snapshots)
    start, gates_alone, everything = snapshots.kept
    assert changed(start, gates_alone) == of_gates(start) != set(), "running statistics are frozen too"
    assert changed(gates_alone, everything) == set(start)


@pytest.mark.parametrize(("make", "gate_epochs"), [(gated_net, 1), (gated_net, 0), (budget_net, 0)])
def test_fit_equals_own_loop(tmp_path: Path, make: Any, gate_epochs: int) -> None:
    module, _ = fit(tmp_path, make(), GateTuning(gate_epochs))
    own = make()
    losses = own_loop(own, gate_epochs)
    assert module.losses == losses, "the loss contains that of the gates"
    assert changed(snapshot(module.net), snapshot(own)) == set()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedule_of_the_budget_reaches_its_end(tmp_path: Path, accumulate: int) -> None:
    module, _ = fit(tmp_path, budget_net(), GateTuning(0), accumulate_grad_batches=accumulate)
    assert module.net.price.ramp == EPOCHS * BATCHES // 2
    assert int(module.net.price.state[0]) == EPOCHS * BATCHES


def test_schedule_of_a_training_limited_in_steps(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, budget_net(), GateTuning(0), max_epochs=-1, max_steps=6, accumulate_grad_batches=2)
    assert module.net.price.ramp == 12 // 2


@pytest.mark.situation("A training is resumed from the checkpoint of another trainer.")
@pytest.mark.parametrize(("make", "gate_epochs"), [(gated_net, 1), (budget_net, 0)])
def test_resumed_equals_uninterrupted(tmp_path: Path, make: Any, gate_epochs: int) -> None:
    whole, _ = fit(tmp_path / "whole", make(), GateTuning(gate_epochs))
    (checkpoint,) = (tmp_path / "whole").glob("epoch=0*.ckpt")
    resumed, _ = fit(tmp_path / "resumed", make(), GateTuning(gate_epochs), resume=checkpoint)
    assert changed(snapshot(whole.net), snapshot(resumed.net)) == set()
    assert resumed.losses == whole.losses[BATCHES:]


@pytest.mark.parametrize(("at", "frozen"), [(2, True), (6, False)])
def test_resumed_within_an_epoch_begins_its_stage(tmp_path: Path, at: int, frozen: bool) -> None:
    """Lightning does not skip the batches that were seen: the weights differ, the stage must not."""
    saved = {"every_n_train_steps": 2}
    fit(tmp_path / "whole", gated_net(), GateTuning(1), saved=saved)
    (checkpoint,) = (tmp_path / "whole").glob(f"*step={at}.ckpt")
    snapshots = Snapshots()
    fit(tmp_path / "resumed", gated_net(), GateTuning(1), snapshots, saved=saved, resume=checkpoint)
    start, first = snapshots.kept[:2]
    assert changed(start, first) == (of_gates(start) if frozen else set(start))


def test_checkpoint_of_other_stages_warns(tmp_path: Path) -> None:
    fit(tmp_path, gated_net(), GateTuning(1))
    (checkpoint,) = tmp_path.glob("epoch=0*.ckpt")
    with pytest.warns(UserWarning, match="written with gate_epochs=1, this training has gate_epochs=2"):
        fit(tmp_path / "resumed", gated_net(), GateTuning(2), resume=checkpoint)


def test_statistics_are_logged(tmp_path: Path) -> None:
    module, host = fit(tmp_path, gated_net(), GateTuning())
    expected = expected_statistics(module.net, loader(16))
    logged = {name.removeprefix("gates/net."): float(v) for name, v in host.logged_metrics.items() if "gates/" in name}
    assert logged == pytest.approx(expected, rel=1e-5)
    assert "3.gct/mean" in logged
    assert logged["3.gct/mean"] != 1, "the gates have been trained"
    assert not module.net[0]._forward_hooks, "recording has ended"


def test_work_of_a_gater_is_logged(tmp_path: Path) -> None:
    module, host = fit(tmp_path, budget_net(), GateTuning(0))
    with torch.no_grad():
        gates = torch.cat([module.net.eval().forward_with_gates(images)[1] for images, _ in loader(16)])
    logged = {name: float(value) for name, value in host.logged_metrics.items()}
    assert logged["gates/net/open_fraction"] == pytest.approx(float(module.net.open_fraction(gates).mean()), rel=1e-5)
    assert logged["gates/net/executed_macs"] == pytest.approx(float(module.net.executed_macs(gates).mean()), rel=1e-5)


def test_trial_run_ends_within_the_first_stage(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, gated_net(), GateTuning(gate_epochs=3), fast_dev_run=True)
    assert changed(snapshot(gated_net()), snapshot(module.net)) <= of_gates(snapshot(module.net))


def test_budget_in_16_bits_counts_all_steps(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, budget_net(), GateTuning(0), precision="bf16-true", max_epochs=70)
    assert int(module.net.price.state[0]) == 70 * BATCHES > 256


class Configured(Module):
    """Inserts its gates in `configure_model`, where large networks are built."""

    def configure_model(self) -> None:
        if not gw.gates_in(self.net):
            gw.insert_gates(self.net, "gct", place="before_conv")


@pytest.mark.situation("Gates are inserted where the trainer builds the network.")
def test_gates_inserted_in_configure_model(tmp_path: Path) -> None:
    module, snapshots = Configured(plain_net()), Snapshots()
    trainer(tmp_path, GateTuning(1), snapshots).fit(module, loader())
    start, gates_alone, everything = snapshots.kept
    assert changed(start, gates_alone) == of_gates(start) != set()
    assert changed(gates_alone, everything) == set(start)
    (checkpoint,) = tmp_path.glob("epoch=0*.ckpt")
    resumed = Configured(plain_net())
    trainer(tmp_path / "resumed", GateTuning(1)).fit(resumed, loader(), ckpt_path=checkpoint)
    assert changed(everything, snapshot(resumed.net)) == set()


def test_averaged_copies_have_a_loss_of_their_own(tmp_path: Path) -> None:
    """Weight averaging copies the module with its `GateLoss`."""
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    module, _ = fit(tmp_path, budget_net(), GateTuning(0), averaging)
    assert module.criterion.model is module.net
    assert int(module.net.price.state[0]) >= EPOCHS * BATCHES


def test_log_can_be_turned_off(tmp_path: Path) -> None:
    _, host = fit(tmp_path, gated_net(), GateTuning(log_statistics=False))
    assert list(host.logged_metrics) == ["val_loss"]


def test_validation_alone_logs_too(tmp_path: Path) -> None:
    module = Module(gated_net())
    (logged,) = trainer(tmp_path, GateTuning()).validate(module, loader(16), verbose=False)
    assert logged["gates/net.3.gct/mean"] == 1


class FrozenBefore(Module):
    """Freezes before the optimizer is built, which then holds only the gates."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        gw.train_only_gates(self)
        return super().configure_optimizers()


def test_optimizer_without_the_parameters_that_thaw_raises(tmp_path: Path) -> None:
    host = trainer(tmp_path, GateTuning(1))
    with pytest.raises(gw.errors.InvalidValueError, match=r"lacks 10 trainable parameters .*\(net\.0\.weight, "):
        host.fit(FrozenBefore(gated_net()), loader())


def test_frozen_by_hand_stays_frozen_without_stages(tmp_path: Path) -> None:
    net = gated_net()
    before = snapshot(net)
    trainer(tmp_path, GateTuning(0)).fit(FrozenBefore(net), loader())
    assert changed(before, snapshot(net)) == of_gates(before)


def launch(folder: Path, *launcher: str) -> list[dict[str, Any]]:
    """Return what each process found in the trainings of `lightning_in_processes`."""
    command = [*(launcher or (sys.executable,)), str(SUPPORT / "lightning_in_processes.py"), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def test_one_process_with_ddp_needs_a_fit_per_stage(tmp_path: Path) -> None:
    (found,) = launch(tmp_path)
    assert "needs a training in one process without DDP" in found["error"]


@pytest.mark.situation("A GaterNet is trained by two processes of another trainer.")
def test_two_processes(tmp_path: Path) -> None:
    one, two = launch(tmp_path, *LAUNCHER)
    assert one["error"] == two["error"]
    assert "needs a training in one process" in one["error"]
    assert one["weights"] == two["weights"], "gradients are synchronised"
    assert one["images"] != two["images"]
    assert one["state"] == two["state"], "the price is that of all images"
    assert one["state"][0] == EPOCHS * BATCHES // 2
    assert one["ramp"] == EPOCHS * BATCHES // 4
    assert one["logged"] == two["logged"], "statistics are those of all images"
    assert one["logged"]["gates/net/open_fraction"] == pytest.approx((one["open"] + two["open"]) / 2, rel=1e-5)
    assert one["gates_alone"] == two["gates_alone"]
    assert all(".gct." in name for name in one["gates_alone"])
    assert one["gates_alone"]


def test_trainer_of_the_other_package_name(tmp_path: Path) -> None:
    """Lightning is installed as `lightning` and as `pytorch_lightning`, with classes of their own."""
    other = pytest.importorskip("pytorch_lightning")
    net = gated_net()
    before = snapshot(net)

    class OtherModule(other.LightningModule):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(net)

    module = OtherModule()
    module.net = net
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    host = other.Trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[GateTuning(1)], **quiet)
    host.fit(module, loader(), loader(16))
    assert changed(before, snapshot(net)) == of_gates(before)
    assert "gates/net.3.gct/mean" in host.logged_metrics
