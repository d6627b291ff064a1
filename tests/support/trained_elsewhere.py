"""Small networks, images and own loops, to compare with trainings by other trainers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gatewise as gw

BATCH, BATCHES, EPOCHS, LR = 8, 4, 2, 0.1
generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(BATCH * BATCHES, 3, 8, 8, generator=generator) + 1
LABELS = torch.randint(0, 3, (BATCH * BATCHES,), generator=generator)
EXAMPLES = [{"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]


def plain_net() -> nn.Module:
    """Return a network with normalisation and a dropout, so that statistics and random numbers count."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def gated_net() -> nn.Module:
    """Return the network with gct."""
    net = plain_net()
    gw.insert_gates(net, "gct", place="before_conv")
    return net


def budget_net() -> gw.GaterNet:
    """Return the network with a gater and a budget; some of its gates are open at the start."""
    return gw.GaterNet(plain_net(), image_size=(8, 8), budget=0.5, gate_bias=0.0)


def loader(images: int = len(IMAGES)) -> DataLoader[Any]:
    """Return batches of images and labels, always in the same order."""
    return DataLoader(TensorDataset(IMAGES[:images], LABELS[:images]), batch_size=BATCH)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer with momentum and weight decay, which would change frozen parameters that it updates."""
    return torch.optim.SGD(gw.parameter_groups(net, weight_decay=0.1), lr=LR, momentum=0.9)


def own_loop(net: nn.Module, gate_epochs: int, accumulate: int = 1) -> list[float]:
    """Train as the guides do, with one optimizer for all stages, and return the losses.

    The random numbers of a batch depend on its index.
    """
    optimizer = sgd(net)
    losses: list[float] = []
    extra: list[float] = []
    if isinstance(net, gw.GaterNet):
        net.schedule(EPOCHS * BATCHES)
    for epoch in range(EPOCHS):
        net.train()
        if gate_epochs:
            (gw.train_only_gates if epoch < gate_epochs else gw.train_everything)(net)
        for images, labels in loader():
            torch.manual_seed(len(losses))
            criterion = F.cross_entropy(net(images), labels)
            loss = criterion + gw.gate_loss(net)
            (loss / accumulate).backward()
            losses.append(loss.item())
            extra.append(loss.item() - criterion.item())
            if len(losses) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert any(extra) is isinstance(net, gw.GaterNet), "the loss of the gates counts"
    return losses


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors of a network, by name."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def of_gates(names: Iterable[str]) -> set[str]:
    """Return the names that belong to gct."""
    return {name for name in names if ".gct." in name}


def expected_statistics(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return what `gatewise.analysis` finds for the gates of a network in eval mode."""
    stats, seen = gw.analysis.GateStats(net), list(batches)
    with gw.analysis.GateRecorder(net) as recorder, torch.no_grad():
        for images, _ in seen:
            net(images)
            stats.update(recorder.take())
    return {name: float(value) for name, value in stats.compute().items()}
