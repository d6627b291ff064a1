"""The networks that the tools of others are tried on: each gate in a small network, and those that choose filters."""

import copy
import functools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import gatewise as gw
from support.gate_cases import perturbed
from support.random_networks import SIZE, network

BLOCKS = ["basic", "bottleneck"]
CLASSES = 5


def plain() -> nn.Module:
    """Return a residual network of six convolutions, with random statistics; its last layer is linear."""
    torch.manual_seed(0)
    return network(BLOCKS, 8)


def with_gates(name: str) -> nn.Module:
    """Return a network with trained-looking gates at the place of their paper."""
    net = plain()
    gw.insert_gates(net, name, example=torch.zeros(2, 3, SIZE, SIZE))
    for gate in gw.gates_in(net).values():
        perturbed(gate)
    return net.double()


def gater_net(gater: str) -> gw.GaterNet:
    """Return a GaterNet with a budget whose gates depend on the image, without noise in training."""
    net = gw.GaterNet(
        plain(), gater=gater, budget=0.5, gate_bias=0.0, estimator="straight_through", image_size=(SIZE, SIZE)
    )
    with torch.no_grad():
        for name, parameter in net.gater.named_parameters():
            if "head" in name:
                parameter.add_(torch.randn_like(parameter))
    return net.double()


def compacted() -> nn.Module:
    """Return a GaterNet of which `compact` took always-closed filters and always-open gates."""
    net = gater_net("light").float()
    with torch.no_grad():
        net.gater.head.fc2.bias[::3] = -100.0  # type: ignore[index, union-attr]
        net.gater.head.fc2.bias[1::3] = 100.0  # type: ignore[index, union-attr]
    return gw.compact(net.eval(), [batch().float()]).double()


def skipping() -> nn.Module:
    """Return a network that computes the open filters alone."""
    return gw.skip_closed_filters(gater_net("light").eval(), mode="skip")  # type: ignore[arg-type]


def batch(count: int = 6, seed: int = 1) -> Tensor:
    """Return images in float64."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) % CLASSES


# Each kind of network by the name that the page gives it.
KINDS: dict[str, Callable[[], nn.Module]] = {
    **{f"`{name}`": partial(with_gates, name) for name in gw.gate_names()},
    "GaterNet": partial(gater_net, "light"),
    "local": partial(gater_net, "local"),
    "compacted": compacted,
    "skipping": skipping,
}
_first = functools.cache(lambda kind: KINDS[kind]())


def made(kind: str) -> nn.Module:
    """Return a new network of this kind, always with the same weights."""
    return copy.deepcopy(_first(kind))


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return what training minimises."""
    return nn.functional.cross_entropy(net(x), y) + gw.gate_loss(net)


def train(net: nn.Module) -> nn.Module:
    """Set a network to training, with statistics that stay: images then do not mix."""
    net.train()
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    return net
