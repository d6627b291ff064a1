"""Checks of tools that read, count or rewrite a network. Each check fails, or returns a remark, which is usually ''."""

import copy
import importlib
import logging
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gatewise as gw
from gatewise.inference import SkippingNet
from support.compatible_networks import batch, made
from support.tool_checks import close

TWICE = "**wrong**: parameters of gates before a layer count twice, multiply-adds of that layer are missing"
DECIDERS = "**wrong**: parameters of layers that decide their own gates count twice; multiply-adds are right"
OTHERS = "**wrong**: multiply-adds of other filters than those that run"
MISSING = "**wrong**: multiply-adds of some layers with gates are missing; parameters are right"


def optional(name: str) -> Any:
    """Import a package, or skip the test that needs it."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def features(kind: str) -> str:
    """Check that the map at a node in the middle, and the output, are those of the network with its gates."""
    from torchvision.models.feature_extraction import create_feature_extractor

    net = made(kind).eval()
    middle: dict[str, torch.Tensor] = {}
    children = list(net.named_children())
    (name, block), (last, _) = children[len(children) // 2], children[-1]
    with torch.no_grad():
        hook = block.register_forward_hook(lambda _, __, output: middle.update(output=output.clone()))
        expected = net(batch())
        hook.remove()
        found = create_feature_extractor(net, {name: "middle", last: "output"})(batch())
    close(found["middle"], middle["output"])
    close(found["output"], expected)
    return ""


def fuses_by_fx(kind: str) -> str:
    """Check that the network fused by `torch.fx.experimental.optimization.fuse` has the same output."""
    from torch.fx.experimental.optimization import fuse

    return _rewritten(kind, fuse)


def prepares_quantisation(kind: str) -> str:
    """Check that the network fused and observed by `prepare_fx` has the same output."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    return _rewritten(kind, lambda net: prepare_fx(net, get_default_qconfig_mapping("fbgemm"), (batch(),)))


def _rewritten(kind: str, rewrite: Any) -> str:
    net = made(kind).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.ao says that it moves
        other = rewrite(copy.deepcopy(net))
        expected, found = net(batch()), other(batch())
    assert list(gw.gates_in(other)) == list(gw.gates_in(net))
    close(found, expected)
    return ""


def traces_by_jit(kind: str) -> str:
    """Check that the traced network has the same output for other images of the same shape."""
    net = made(kind).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of values that the trace keeps, such as shapes
        traced = torch.jit.trace(net, batch(), check_trace=False)
        close(traced(batch(seed=2)), net(batch(seed=2)))
    return ""


def scripts(kind: str) -> str:
    """Check that the compiled network has the same output."""
    net = made(kind).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script is deprecated
        close(torch.jit.script(net)(batch()), net(batch()))
    return ""


def counted_by_loop(net: nn.Module) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image, counted as the layers are called."""
    total = 0

    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        filters = layer.weight.shape[0]
        total += output[0].numel() // filters * math.prod(layer.weight.shape)

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    hooks = [layer.register_forward_hook(count) for layer in net.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        net(batch(1))
    for hook in hooks:
        hook.remove()
    return total


def expected_macs(net: Any) -> float:
    """Return the multiply-adds for one image, of a skipping network those that it executes."""
    if not isinstance(net, SkippingNet):
        return counted_by_loop(net)
    with torch.no_grad():
        return float(net.net.executed_macs(net.forward_with_gates(batch(1))[1]))


def _is_complete(counted: float, net: Any) -> bool:
    """Return whether all multiply-adds of convolutions and linear layers are counted, and not twice."""
    assert counted < 1.5 * expected_macs(net), "something is counted twice"
    return counted >= 0.99 * expected_macs(net)


def is_summarised(kind: str) -> str:
    """Check the number of parameters, and that every convolution and linear layer is in the multiply-adds."""
    torchinfo = optional("torchinfo")
    net = made(kind).eval()
    found = torchinfo.summary(net, input_data=batch(1), verbose=0)
    if isinstance(net, SkippingNet) and found.total_mult_adds > 1.5 * expected_macs(net):
        return OTHERS
    complete, parameters = _is_complete(found.total_mult_adds, net), sum(p.numel() for p in net.parameters())
    if found.total_params != parameters:
        assert found.total_params > parameters
        return DECIDERS if complete else TWICE
    return "" if complete else MISSING


def is_counted_by_fvcore(kind: str) -> str:
    """Check the number of parameters, and that every convolution and linear layer is in the multiply-adds."""
    net = made(kind).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it uses torch.jit
        optional("fvcore")
        counting: Any = importlib.import_module("fvcore.nn")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        total = counting.FlopCountAnalysis(net, batch(1)).total()
    assert counting.parameter_count(net)[""] == sum(parameter.numel() for parameter in net.parameters())
    assert _is_complete(total, net)
    return ""


def is_counted_by_torch(kind: str) -> str:
    """Check that every convolution and linear layer is counted; gates have few of these."""
    net = made(kind).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(batch(1))
    assert _is_complete(counter.get_total_flops() / 2, net)
    return ""
