"""GateLoss: the formula, where the network is kept, and the warning about a loss that is missing."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw

IMAGES, LABELS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def gater_net(sparsity: float = 3.0) -> gw.GaterNet:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return gw.GaterNet(nn.Sequential(*layers), image_size=(8, 8), sparsity=sparsity)


def open_mean(net: gw.GaterNet, images: Tensor = IMAGES) -> tuple[Tensor, Tensor]:
    """Return the logits and the mean gate of a forward in training mode."""
    torch.manual_seed(1)
    logits, gates = net.forward_with_gates(images)
    return logits, gates.mean()


def test_formula() -> None:
    net = gater_net()
    logits, mean = open_mean(net)
    loss = gw.GateLoss(nn.CrossEntropyLoss(), net)(logits, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS) + 3.0 * mean)
    assert mean > 0


def test_losses_of_several_networks_add_up() -> None:
    nets = nn.ModuleList([gater_net(1.0), gater_net(2.0)])
    (logits, first), (_, second) = (open_mean(net) for net in nets)  # type: ignore[arg-type]
    loss = gw.GateLoss(F.cross_entropy, nets)(logits, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS) + first + 2.0 * second)


def test_gradients_are_those_of_the_line_in_an_own_loop() -> None:
    nets = gater_net(), gater_net()
    for net, way in zip(nets, ("line", "module"), strict=True):
        logits, _ = open_mean(net)
        line = F.cross_entropy(logits, LABELS) + gw.gate_loss(net) if way == "line" else None
        (gw.GateLoss(F.cross_entropy, net)(logits, LABELS) if line is None else line).backward()
    grads = [[parameter.grad for parameter in net.parameters()] for net in nets]
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))  # type: ignore[arg-type]
    assert any(bool(grad.any()) for grad in grads[0])  # type: ignore[union-attr]


def test_criterion_gets_all_arguments() -> None:
    loss = gw.GateLoss(F.cross_entropy, nn.Conv2d(3, 2, 1))
    logits = torch.randn(8, 2)
    assert torch.equal(loss(logits, LABELS, reduction="sum"), F.cross_entropy(logits, LABELS, reduction="sum"))


def test_evaluation_has_the_criterion_alone() -> None:
    net = gater_net()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        logits = net.eval()(IMAGES)
        assert gw.GateLoss(F.cross_entropy, net)(logits, LABELS) == F.cross_entropy(logits, LABELS)


def test_network_is_no_submodule() -> None:
    net, criterion = gater_net(), nn.CrossEntropyLoss(weight=torch.ones(2))
    loss = gw.GateLoss(criterion, net)
    assert list(loss.state_dict()) == ["criterion.weight"]
    assert list(loss.parameters()) == []
    assert loss.train(False).model.training, "the mode of the network is its trainer's"
    both = nn.ModuleDict({"net": net, "loss": loss})
    assert len(list(both.parameters())) == len(list(net.parameters()))


def copied(thing: Any, way: str) -> Any:
    if way == "deepcopy":
        return copy.deepcopy(thing)
    if way == "pickle":
        return pickle.loads(pickle.dumps(thing))
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("first", ["net", "loss"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copy_of_both_refers_to_the_copied_network(way: str, first: str) -> None:
    net = gater_net()
    parts = {"net": net, "loss": gw.GateLoss(nn.CrossEntropyLoss(), net)}
    second = copied(nn.ModuleDict(dict(sorted(parts.items(), reverse=first == "net"))), way)
    assert second["loss"].model is second["net"]
    logits, mean = open_mean(second["net"])
    torch.testing.assert_close(second["loss"](logits, LABELS), F.cross_entropy(logits, LABELS) + 3.0 * mean)


def test_copied_loss_of_another_network_warns() -> None:
    net = gater_net()
    loss = copy.deepcopy(gw.GateLoss(nn.CrossEntropyLoss(), net))
    logits, _ = open_mean(net)
    with pytest.warns(UserWarning, match="GaterNet has computed none since it was last added"):
        assert loss(logits, LABELS) == F.cross_entropy(logits, LABELS)


def test_second_call_for_one_forward_warns() -> None:
    """As in mixup, where 0.3 loss(y, a) + 0.7 loss(y, b) would have 0.3 of the gates' loss."""
    net = gater_net()
    loss = gw.GateLoss(nn.CrossEntropyLoss(), net)
    logits, _ = open_mean(net)
    loss(logits, LABELS)
    with pytest.warns(UserWarning, match="call it once per forward"):
        loss(logits, LABELS)


def test_networks_without_such_a_loss_do_not_warn() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    gw.insert_gates(net, "gct", place="before_conv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = net(IMAGES).mean((2, 3))
        assert torch.equal(gw.GateLoss(F.cross_entropy, net)(logits, LABELS), F.cross_entropy(logits, LABELS))


def per_item(output: Tensor, target: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """Return the loss as transformers' Trainer expects it: its sum over accumulated batches is a mean."""
    total = F.cross_entropy(output, target, reduction="sum")
    return total / (target.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3)])
def test_accumulated_batches_add_up_to_the_mean(sizes: tuple[int, int]) -> None:
    net = gater_net()
    loss, total, expected = gw.GateLoss(per_item, net), torch.zeros(()), torch.zeros(())
    for images, labels in zip(IMAGES.split(sizes), LABELS.split(sizes), strict=True):
        logits, mean = open_mean(net, images)
        total = total + loss(logits, labels, num_items_in_batch=torch.tensor(len(LABELS)))
        expected = expected + F.cross_entropy(logits, labels, reduction="sum") / 8 + 3.0 * mean * len(labels) / 8
    torch.testing.assert_close(total, expected)


def test_ignored_targets_are_no_items() -> None:
    net, labels = gater_net(), torch.tensor([0, 1, 1, -100, 0, -100, 1, -100])
    logits, mean = open_mean(net)
    loss = gw.GateLoss(per_item, net)(logits, labels, num_items_in_batch=torch.tensor(16))
    torch.testing.assert_close(loss, per_item(logits, labels, torch.tensor(16)) + 3.0 * mean * 5 / 16)


def test_what_is_no_criterion_raises() -> None:
    with pytest.raises(gw.errors.InvalidTypeError, match="criterion must be a module or a function, got 'l1'"):
        gw.GateLoss("l1", nn.Conv2d(3, 2, 1))  # type: ignore[arg-type]
    with pytest.raises(gw.errors.InvalidTypeError, match="criterion must return a tensor, got dict"):
        gw.GateLoss(lambda *_: {"loss": 1}, nn.Conv2d(3, 2, 1))(1, 2)  # type: ignore[arg-type, return-value]
    with pytest.raises(gw.errors.InvalidTypeError, match="GateLoss"):
        gw.GateLoss(F.cross_entropy, lambda x: x)  # type: ignore[arg-type]
