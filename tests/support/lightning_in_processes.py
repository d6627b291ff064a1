"""Trainings by the processes that torchrun starts: lightning_in_processes.py FOLDER. Each writes RANK.json there."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.integrations.lightning import GateTuning
from support.trained_elsewhere import EPOCHS, budget_net, changed, gated_net, loader, sgd, snapshot

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


class Module(pl.LightningModule):
    """A network with its loss, which notes the images of this process."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = gw.GateLoss(nn.CrossEntropyLoss(), net)
        self.images: list[float] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, labels = batch
        self.images.append(float(images.sum()))
        return self.criterion(self.net(images), labels)

    def validation_step(self, batch: Any, _: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)


def fit(net: nn.Module, gate_epochs: int) -> tuple[Module, pl.Trainer]:
    """Train by both processes."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    here = {"accelerator": "cpu", "devices": PROCESSES, "strategy": "ddp"}
    trainer = pl.Trainer(max_epochs=EPOCHS, callbacks=[GateTuning(gate_epochs)], **here, **quiet)
    module = Module(net)
    trainer.fit(module, loader(), loader())
    return module, trainer


def in_two_processes() -> dict[str, Any]:
    """Train a GaterNet, and gates alone."""
    module, trainer = fit(budget_net(), 0)
    net: Any = module.net
    found: dict[str, Any] = {
        "weights": {name: parameter.tolist() for name, parameter in net.named_parameters()},
        "images": module.images,
        "state": net.price.state.tolist(),
        "ramp": net.price.ramp,
        "logged": {name: float(value) for name, value in trainer.logged_metrics.items()},
    }
    with torch.no_grad():
        gates = torch.cat([net.eval().forward_with_gates(images)[1] for images, _ in loader()])
    opened = net.open_fraction(gates).reshape(-1, PROCESSES)  # Lightning gives the images to the processes in turn
    found["open"] = float(opened[:, trainer.global_rank].mean())
    alone = gated_net()
    before = snapshot(alone)
    gw.train_only_gates(alone)
    fit(alone, 0)
    return found | {"gates_alone": sorted(changed(before, snapshot(alone)))}


def main(folder: Path) -> None:
    """Train what works with this number of processes, and what must raise an error."""
    warnings.simplefilter("ignore")
    found = in_two_processes() if PROCESSES > 1 else {}
    try:
        fit(gated_net(), 1)
    except gw.GatewiseError as error:
        found["error"] = str(error)
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
