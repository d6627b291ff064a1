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
from support.compatible_networks import batch, made
from support.tool_checks import close

LOST = "**wrong**: gates after a norm that is fused are lost without a word; their layers compute as without them"
MISSING = "parameters are right; **wrong**: the multiply-adds of layers with gates are missing"
UNLISTED = "the convolutions of gated layers are missing from the multiply-adds"


def optional(name: str) -> Any:
    """Import a package, or skip the test that needs it."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def features(kind: str) -> str:
    """Check that the map at a node in the middle, and the output, are those of the network with its gates."""
    from torchvision.models.feature_extraction import create_feature_extractor

    net = made(kind).eval()
    middle: dict[str, torch.Tensor] = {}
    name, block = [(name, layer) for name, layer in net.named_children() if isinstance(layer, nn.Module)][3]
    with torch.no_grad():
        hook = block.register_forward_hook(lambda _, __, output: middle.update(output=output.clone()))
        expected = net(batch())
        hook.remove()
        last = next(reversed(dict(net.named_children())))
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
    if len(gw.gates_in(other)) < len(gw.gates_in(net)):
        assert not torch.allclose(found, expected)
        return LOST
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


def _compared(counted: float, net: nn.Module, remark: str) -> str:
    expected = counted_by_loop(net)
    if counted < 0.99 * expected:
        return remark
    assert counted < 1.5 * expected, "something is counted twice"
    return ""


def is_summarised(kind: str) -> str:
    """Check the number of parameters, and that every convolution and linear layer is in the multiply-adds."""
    torchinfo = optional("torchinfo")
    net = made(kind).eval()
    found = torchinfo.summary(net, input_data=batch(1), verbose=0)
    assert found.total_params == sum(parameter.numel() for parameter in net.parameters())
    return _compared(found.total_mult_adds, net, MISSING)


def is_counted_by_fvcore(kind: str) -> str:
    """Check the number of parameters, and that every convolution and linear layer is in the multiply-adds."""
    optional("fvcore")
    counting: Any = importlib.import_module("fvcore.nn")
    net = made(kind).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        total = counting.FlopCountAnalysis(net, batch(1)).total()
    assert counting.parameter_count(net)[""] == sum(parameter.numel() for parameter in net.parameters())
    return _compared(total, net, UNLISTED)


def is_counted_by_torch(kind: str) -> str:
    """Check that every convolution and linear layer is counted, in the network and in its modules."""
    net = made(kind).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(batch(1))
    return _compared(counter.get_total_flops() / 2, net, UNLISTED)
