"""Removing and exchanging gates: the counts match those by hand."""

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.analysis.gate_stats import gate_statistics
from gatewise.analysis.interventions import exchange_gates, idle_gates, removal_cost
from gatewise.analysis.patterns import record_patterns
from gatewise.errors import InvalidValueError
from support.gated_net import batches, net


def accuracy(model: nn.Module) -> float:
    ((images, labels),) = batches()
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).double().mean().item()


def test_gates_near_identity_are_idle() -> None:
    model = net("gct")
    for path in ("conv1.gct", "stages.0.1.conv2.gct"):
        gate = gw.gates_in(model)[path]
        gate.gamma.data.zero_()
        gate.beta.data.fill_(0.01)
    found = gate_statistics(model, batches(), 3).values()
    assert idle_gates(found) == ("conv1.gct", "stages.0.1.conv2.gct")
    assert idle_gates(found, 0.0) == tuple(gw.gates_in(model))


@pytest.mark.parametrize("paths", [(), ("conv1.gct",), tuple(gw.gates_in(net("gct")))])
def test_cost_is_difference_of_accuracies(paths: tuple[str, ...]) -> None:
    model = net("gct").train()
    found = removal_cost(model, paths, batches())
    assert model.training
    assert (found.paths, found.images) == (paths, 6)
    assert found.accuracy_with == pytest.approx(accuracy(model))
    for path in paths:  # a gct of zeros is the identity
        for parameter in (gw.gates_in(model)[path].gamma, gw.gates_in(model)[path].beta):
            parameter.data.zero_()
    assert found.accuracy_without == pytest.approx(accuracy(model))


def test_removing_essential_gate_changes_accuracy() -> None:
    gate = gw.make_gate("gct", 2)
    gate.beta.data.copy_(torch.tensor([-5.0, 5.0]).reshape(gate.beta.shape))  # factors of nearly 0 and 2
    model = nn.Sequential(gate, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.tensor([1.0, 0.8]).reshape(1, 2, 1, 1).expand(3, 2, 4, 4)
    found = removal_cost(model, ["0"], [(images, torch.zeros(3).long())])
    assert (found.accuracy_with, found.accuracy_without) == (0, 1)


def test_unremovable_gates_rejected() -> None:
    with pytest.raises(InvalidValueError, match=r"unknown gate 'conv1.gc'.*Did you mean 'conv1.gct'"):
        removal_cost(net("gct"), ["conv1.gc"], batches())
    with pytest.raises(InvalidValueError, match="there are no images to count"):
        removal_cost(net("gct"), [], iter(()))


class Oracle(nn.Module):
    """Knows the class of an image by its mean and opens its own gate."""

    def forward(self, x: Tensor) -> Tensor:
        return 20 * torch.nn.functional.one_hot(x.mean((1, 2, 3)).round().long(), 2).float() - 10


def test_gates_of_other_class_are_tried_on_every_class() -> None:
    # Two filters, each with a large logit for its class if it is open: only the open gate decides.
    backbone = nn.Sequential(*(
        nn.Conv2d(1, 2, 1),
        nn.ReLU(),
        nn.Conv2d(2, 2, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ))
    backbone[0].weight.data.zero_()
    backbone[0].bias.data.fill_(1.0)
    backbone[2].weight.data.copy_(torch.eye(2).reshape(2, 2, 1, 1))
    model = gw.GaterNet(backbone, gater=Oracle(), image_size=(4, 4))
    images = torch.tensor([0.0, 1.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    data = [(images, torch.tensor([0, 1, 1]))]
    patterns = record_patterns(model, data, classes=3)
    found = exchange_gates(model, patterns, data)
    assert found.classes == (0, 1), "class 2 has no images, and gates of none"
    assert torch.equal(found.accuracy, torch.eye(2, dtype=torch.float64))
    assert (found.own, found.same, found.other) == (1, 1, 0)
    first = exchange_gates(model, patterns, data, most=1)
    assert (first.classes, first.accuracy.tolist()) == ((0,), [[1.0]])
    with pytest.raises(InvalidValueError, match="most"):
        exchange_gates(model, patterns, data, most=0)
