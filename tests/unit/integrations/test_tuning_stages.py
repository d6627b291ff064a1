"""The stages of fine-tuning, without a trainer."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.insertion.tuning import set_total_steps, trainable_parameters
from gatewise.integrations.fine_tuning import FineTuning
from support.trained_elsewhere import budget_net, gated_net, of_gates, plain_net, sgd


def start(net: nn.Module, gate_epochs: int, *optimizers: torch.optim.Optimizer, **options: Any) -> FineTuning:
    tuning = FineTuning(gate_epochs)
    options = {"epochs": 3, "steps": 12, "resumed": False, "distributed": False, **options}
    tuning.start(net, optimizers or [sgd(net)], **options)
    return tuning


def trained(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def test_epochs_begin_their_stages() -> None:
    net = gated_net()
    everything = trained(net)
    tuning = start(net, 2)
    found = []
    for epoch in range(3):
        tuning.begin_epoch(net, epoch)
        found.append(trained(net))
    assert found == [of_gates(everything), of_gates(everything), everything]


def test_resumed_epoch_begins_its_stage() -> None:
    net = gated_net()
    everything = trained(net)
    start(net, 1).begin_epoch(net, 2)
    assert trained(net) == everything
    start(net, 2).begin_epoch(net, 1)
    assert trained(net) == of_gates(everything)


def test_a_stage_begins_once() -> None:
    """What is frozen or thawed by other code within a stage is not undone at its next epoch."""
    net = gated_net()
    tuning = start(net, 2)
    tuning.begin_epoch(net, 0)
    next(net.parameters()).requires_grad_(True)
    tuning.begin_epoch(net, 1)
    assert next(net.parameters()).requires_grad


def test_without_gate_epochs_nothing_is_thawed() -> None:
    net = gated_net()
    gw.train_only_gates(net)
    start(net, 0, distributed=True).begin_epoch(net, 0)
    assert trained(net) == of_gates(dict(net.named_parameters()))


def test_second_training_starts_anew() -> None:
    net = gated_net()
    everything, tuning = trained(net), FineTuning(1)
    for _ in range(2):
        tuning.start(net, [sgd(net)], epochs=2, steps=None, resumed=False, distributed=False)
        tuning.begin_epoch(net, 0)
        assert trained(net) == of_gates(everything)
        tuning.begin_epoch(net, 1)
        assert trained(net) == everything


@pytest.mark.parametrize(("resumed", "step"), [(False, 0), (True, 3)])
def test_schedule_continues_after_a_resume(resumed: bool, step: int) -> None:
    net = budget_net()
    price: Any = net.price
    net.schedule(100)
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8))
    before = price.state.clone()
    start(net, 0, resumed=resumed)
    assert price.ramp == 6
    assert int(price.state[0]) == step
    assert torch.equal(price.state, before) is resumed


def test_unknown_length_leaves_the_schedule() -> None:
    net = budget_net()
    with pytest.warns(UserWarning, match="does not know how long it trains"):
        start(net, 0, steps=None)
    assert net.price.ramp == 1000
    start(gated_net(), 0, steps=None)  # has no schedule


def test_several_processes_raise() -> None:
    net = gated_net()
    with pytest.raises(gw.errors.InvalidValueError, match="gate_epochs=1 needs a training in one process without DDP"):
        start(net, 1, distributed=True)
    assert trained(net) == set(dict(net.named_parameters())), "before anything is frozen"


@pytest.mark.parametrize("make", [plain_net, budget_net])
def test_network_without_gates_raises(make: Any) -> None:
    with pytest.raises(gw.errors.InvalidValueError, match=r"needs gates with parameters.* or set gate_epochs=0"):
        start(make(), 1)
    start(make(), 0)


def test_more_gate_epochs_than_epochs_raise() -> None:
    with pytest.raises(gw.errors.InvalidValueError, match="must not exceed epochs"):
        start(gated_net(), 4)


def test_negative_gate_epochs_raise() -> None:
    with pytest.raises(gw.errors.InvalidValueError, match="gate_epochs"):
        FineTuning(-1)


def test_optimizer_of_a_frozen_network_raises() -> None:
    """It lacks what a later stage thaws, not what was frozen before."""
    net = gated_net()
    net[1].requires_grad_(False)  # type: ignore[index]
    gw.train_only_gates(net)
    optimizer = sgd(net)
    message = r"lacks 8 trainable parameters of the network \(0\.weight, 0\.bias, 3\.weight, \.\.\.\)"
    with pytest.raises(gw.errors.InvalidValueError, match=message):
        start(net, 1, optimizer)
    start(net, 3, optimizer)  # nothing is thawed
    start(net, 0, optimizer)


def test_several_optimizers_may_share_the_parameters() -> None:
    net = gated_net()
    halves = [torch.optim.SGD(list(net.parameters())[half::2], lr=0.1) for half in (0, 1)]
    start(net, 1, *halves)
    with pytest.raises(gw.errors.InvalidValueError, match="lacks"):
        start(net, 1, halves[0])


@pytest.mark.parametrize("make", [gated_net, budget_net])
def test_optimizer_without_gates_raises(make: Any) -> None:
    """As one that was built before the gates were inserted."""
    net = make()
    own = of_gates(dict(net.named_parameters())) or {name for name, _ in net.named_parameters() if "gater." in name}
    others = [parameter for name, parameter in net.named_parameters() if name not in own]
    with pytest.raises(gw.errors.InvalidValueError, match=rf"lacks {len(own)} trainable parameters"):
        start(net, 0, torch.optim.SGD(others, lr=0.1))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in own)
    start(net, 0, torch.optim.SGD(others, lr=0.1))


def test_optimizer_of_copies_is_accepted() -> None:
    """As in a sharded training, where the optimizer holds no parameter of the network itself."""
    net = gated_net()
    start(net, 0, torch.optim.SGD([parameter.detach().clone() for parameter in net.parameters()], lr=0.1))


def test_trainable_parameters_have_their_names() -> None:
    net = gated_net()
    expected = dict(net.named_parameters())
    gw.train_only_gates(net)
    found = trainable_parameters(net)
    assert found.keys() == expected.keys()
    assert all(found[name] is parameter for name, parameter in expected.items())


def test_steps_are_those_of_every_schedule() -> None:
    nets = nn.ModuleList([budget_net(), budget_net()])
    set_total_steps(nets, 7)
    assert [net.price.ramp for net in nets] == [math.floor(7 / 2)] * 2  # type: ignore[union-attr]
