"""Checks of third-party pruning and quantisation on a network, as in `tool_checks`."""

import torch
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw
from support.compatible_networks import CLASSES, batch, labels, loss_of, made

LEFT = "pruned, except the maps that its gates apply to: these keep their channels"
UNREAD = "nothing is pruned: without gradients Torch-Pruning finds no channels; prune before you build the GaterNet"


def images() -> Tensor:
    return batch().float()


def run(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(images())


# ---- torch-pruning -------------------------------------------------------------------------------------------------


def prunes(kind: str) -> str:
    """Check that the network runs and trains with half of its channels; gates keep the parameters of these."""
    net, before = made(kind).float().eval(), made(kind).float()
    net.requires_grad_(True)
    prune(net)
    output = run(net)
    assert output.shape == (6, CLASSES)
    assert output.isfinite().all()
    widths = {name: layer.out_channels for name, layer in convolutions(before).items()}
    cut = {name for name, layer in convolutions(net).items() if layer.out_channels <= widths[name] // 2}
    if not cut:
        return UNREAD
    loss_of(net.train(), images(), labels()).backward()
    parameters_went_with_their_channels(before, net)
    return "" if len(cut) == len(widths) else LEFT


def prune(net: nn.Module) -> None:
    """Prune half of all channels, but not the classes."""
    import torch_pruning

    torch_pruning.pruner.BasePruner(
        net,
        images(),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES],
        customized_pruners=gw.gate_pruners(net),
    ).step()


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the network's own convolutions, without those of gates and gaters."""
    inside = {id(m) for gate in gw.gates_in(net).values() for m in gate.modules()}
    found = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and id(m) not in inside}
    return {name: m for name, m in found.items() if not name.startswith("gater.")}


def parameters_went_with_their_channels(before: nn.Module, after: nn.Module) -> None:
    """Identify the remaining channels by the weights of the next convolution, and compare the gates' parameters."""
    for path, gate in gw.gates_in(after).items():
        old, new = (net.get_submodule(path.rpartition(".")[0]) for net in (before, after))
        for name, parameter in gate.named_parameters(recurse=False):
            assert isinstance(old, nn.Conv2d), "the gate is before it"
            whole = old.weight[:, :, 0, 0].tolist()
            left = [
                next(c for c in range(old.in_channels) if any(row[c] == value for row in whole))
                for value in new.weight[0, :, 0, 0].tolist()
            ]
            expected = before.get_submodule(path).get_parameter(name)[:, left]
            assert torch.equal(parameter, expected)


# ---- torchao -------------------------------------------------------------------------------------------------------


def quantized(kind: str, *, dynamic: bool) -> tuple[nn.Module, nn.Module]:
    """Return the network with int8 weights in linear layers, and one with the dequantised weights."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    net, twin = made(kind).float().eval(), made(kind).float().eval()
    quantize_(net, Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig())
    assert all(type(layer.weight) is nn.Parameter for layer in net.modules() if isinstance(layer, nn.Conv2d))
    for name, layer in twin.named_modules():
        if isinstance(layer, nn.Linear):
            stored = net.get_submodule(name).weight
            assert type(stored).__name__ == "Int8Tensor"
            step = layer.weight.abs().amax(1, keepdim=True) / 127
            assert ((stored.dequantize() - layer.weight).abs() <= 0.51 * step).all(), "nearest of 255 numbers"
            layer.weight.data = stored.dequantize()
    return net, twin


def quantizes_weights(kind: str) -> str:
    """Check that linear layers store int8, also in a gater (`Int8WeightOnlyConfig`), with matching outputs."""
    net, twin = quantized(kind, dynamic=False)
    assert_close(run(net), run(twin), rtol=1e-4, atol=1e-5)
    return ""


def quantizes_activations(kind: str) -> str:
    """Check the same within 2 % of the largest output (`Int8DynamicActivationInt8WeightConfig`)."""
    net, twin = quantized(kind, dynamic=True)
    expected = run(twin)
    assert_close(run(net), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    return ""
