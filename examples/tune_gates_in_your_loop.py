"""Insert gates into a trained network, and fine-tune them in your own training loop.

    python examples/tune_gates_in_your_loop.py [--smoke]

The script trains a small ResNet on handwritten digits and inserts gct, which does not change the output. It trains
the gates alone for one epoch, and then everything for another epoch. This takes about half a minute on two cores.
--smoke only checks that the script runs: it takes seconds and learns little.
"""

import sys

import torch
from torch import nn

import gatewise as gw
from gatewise.data import Augmentation, Batches, Images, load_dataset

SMOKE = "--smoke" in sys.argv

dataset = load_dataset("digits")
train_images = Images(dataset.train.pixels[:128], dataset.train.labels[:128]) if SMOKE else dataset.train
mean, std = dataset.statistics()
train_batches = Batches(train_images, 64, mean, std)
validation_batches = Batches(dataset.validation, 500, mean, std)


def fit(model: nn.Module, epochs: int, lr: float) -> None:
    """Train the model. Only the parameter groups and the gates' own loss come from gatewise."""
    optimizer = torch.optim.SGD(gw.parameter_groups(model, weight_decay=5e-4), lr=lr, momentum=0.9)
    for epoch in range(epochs):
        model.train()
        for images, labels in train_batches.training(epoch, seed=0, augmentation=Augmentation(padding=1)):
            loss = nn.functional.cross_entropy(model(images), labels) + gw.gate_loss(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def accuracy(model: nn.Module) -> float:
    """Return the share of validation images that are classified correctly."""
    model.eval()
    with torch.no_grad():
        correct = [(model(images).argmax(1) == labels).sum() for images, labels in validation_batches.evaluation()]
    return float(sum(correct)) / len(dataset.validation)


model = gw.make_model("resnet20", num_classes=10, in_chans=1, seed=0)
fit(model, epochs=4, lr=0.05)
print(f"trained:                 {accuracy(model):.4f}")

insertion = gw.insert_gates(model, "gct")
print(f"{len(insertion.gates)} gates inserted:       {accuracy(model):.4f}")

gw.train_only_gates(model)
fit(model, epochs=1, lr=0.05)
print(f"gates tuned:             {accuracy(model):.4f}")

gw.train_everything(model)
fit(model, epochs=1, lr=0.01)
print(f"everything tuned:        {accuracy(model):.4f}")
