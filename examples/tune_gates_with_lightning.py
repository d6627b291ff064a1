"""Insert gates into a trained network, and fine-tune them with Lightning.

    python examples/tune_gates_with_lightning.py [--smoke]

The script trains a small ResNet on handwritten digits and inserts gct, which does not change the output. Then it trains
the gates alone for one epoch, and everything for another epoch; the callback `GateTuning` freezes, thaws, and logs how
far the gates are from the identity. This takes about half a minute on two cores. --smoke only checks that the script
runs: it takes seconds and learns little. It needs the package lightning.
"""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gatewise as gw
from gatewise.data import load_dataset
from gatewise.integrations.lightning import GateTuning

IMAGES = 128 if "--smoke" in sys.argv else 1_000_000

dataset = load_dataset("digits")
mean, std = dataset.statistics()


def loader(images: Any, shuffle: bool) -> DataLoader[Any]:
    """Return batches of normalised images and their labels."""
    pixels = (images.pixels[:IMAGES].float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return DataLoader(TensorDataset(pixels, images.labels[:IMAGES]), batch_size=64, shuffle=shuffle)


class Classifier(pl.LightningModule):
    """A network with its loss, which contains that of the gates."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.criterion = gw.GateLoss(nn.CrossEntropyLoss(), net)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        return self.criterion(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(gw.parameter_groups(self, weight_decay=5e-4), lr=self.lr, momentum=0.9)


def fit(net: nn.Module, epochs: int, lr: float, *callbacks: Any) -> dict[str, Tensor]:
    """Train the network and return what the last validation logged."""
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(net, lr), loader(dataset.train, shuffle=True), loader(dataset.validation, shuffle=False))
    return trainer.logged_metrics


net = gw.make_model("resnet20", num_classes=10, in_chans=1, seed=0)
print(f"trained:           {fit(net, 4, 0.05)['accuracy']:.4f}")

gw.insert_gates(net, "gct")
logged = fit(net, 2, 0.01, GateTuning(gate_epochs=1))
shares = [float(value) for name, value in logged.items() if name.endswith("/near_identity")]
print(f"everything tuned:  {logged['accuracy']:.4f}")
print(f"mean of {len(shares)} gates: {100 * sum(shares) / len(shares):.1f}% near the identity")
