"""Statistics of gates as scalars for a trainer's log."""

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.integrations.gate_log import GateLog
from support.trained_elsewhere import IMAGES, budget_net, expected_statistics, gated_net, loader, plain_net


def logged(net: nn.Module, module: nn.Module | None = None) -> dict[str, float]:
    """Return the log of an evaluation of `module`, which contains the network."""
    log = GateLog(module or net)
    for images, _ in loader():
        net(images)
        log.take()
    log.close()
    assert log.batches == len(loader())
    return log.compute()


@torch.no_grad()
def test_statistics_are_those_of_gate_stats() -> None:
    net = gated_net().eval()
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    found = logged(net)
    assert found == {f"gates/{name}": value for name, value in expected_statistics(net, loader()).items()}
    assert found["gates/3.gct/mean"] != 1


@pytest.mark.parametrize("prefix", ["", "net/"])
@torch.no_grad()
def test_work_of_a_gater(prefix: str) -> None:
    net = budget_net().eval()
    module = nn.ModuleDict({"net": net}) if prefix else None
    gates = net.forward_with_gates(IMAGES)[1]
    assert 0 < gates.mean() < 1
    expected = {"open_fraction": net.open_fraction(gates).mean(), "executed_macs": net.executed_macs(gates).mean()}
    found = logged(net, module)
    assert found == {f"gates/{prefix}{name}": pytest.approx(float(value)) for name, value in expected.items()}


def test_recording_ends() -> None:
    net = nn.ModuleList([gated_net(), budget_net()])
    hooks = sum(len(module._forward_hooks) for module in net.modules())
    log = GateLog(net)
    assert sum(len(module._forward_hooks) for module in net.modules()) > hooks
    log.close()
    assert sum(len(module._forward_hooks) for module in net.modules()) == hooks
    assert "forward_with_gates" not in vars(net[1])


def test_modes_stay_as_the_evaluation_set_them() -> None:
    """A dropout that is kept active in the evaluation stays active."""
    net = gated_net().eval()
    net[6].train()  # type: ignore[index]
    log = GateLog(net)
    modes = [module.training for module in net.modules()]
    log.close()
    assert modes == [module.training for module in net.modules()]
    assert sum(modes) == 1


def test_images_before_a_reset_do_not_count() -> None:
    net = gated_net().eval()
    log = GateLog(net)
    net(IMAGES)
    log.take()
    log.reset()
    assert log.batches == 0
    for images, _ in loader(16):
        net(images)
        log.take()
    log.close()
    expected = expected_statistics(net, loader(16))
    assert log.compute() == {f"gates/{name}": value for name, value in expected.items()}


def test_network_without_gates_has_an_empty_log() -> None:
    assert logged(plain_net().eval()) == {}


def test_hidden_gates_warn() -> None:
    net = gated_net().eval()
    log = GateLog(net)
    log.take()
    log.close()
    with pytest.warns(UserWarning, match="no gate has run in the evaluation"):
        assert log.compute() == {}


def test_mode_is_kept_on_request_only() -> None:
    net = gated_net()
    with gw.analysis.GateRecorder(net):
        assert not net.training
    with gw.analysis.GateRecorder(net, keep_mode=True):
        assert net.training
