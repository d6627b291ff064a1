"""Routes that are given: by patterns, and by the gates of a net that was trained without routes."""

from typing import Any

import pytest
import torch
from torch import Tensor

import gatewise as gw
from gatewise.errors import InvalidValueError
from gatewise.gaternet.given_routes import follow_gates, routes_from_gates
from support.routed_nets import backbone, images, routed

PATTERNS = torch.zeros(3, 80, dtype=torch.bool)
PATTERNS[0, :10], PATTERNS[1, 5:40], PATTERNS[2] = True, True, True


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_net_takes_patterns_of_different_sizes(dtype: torch.dtype) -> None:
    net = routed(3).eval()
    gw.set_routes(net, PATTERNS.to(dtype))
    assert net.routes is not None
    assert torch.equal(net.routes, PATTERNS)
    output, gates = net.forward_with_gates(images())
    assert torch.equal(gates, PATTERNS[net.route_of(images())].float())
    torch.testing.assert_close(output, net(images(), gates))


def test_given_routes_have_the_norms_of_the_backbone() -> None:
    net = routed(3)
    net(images())
    net.backbone[1].running_mean += 2
    gw.set_routes(net, PATTERNS)
    norms: Any = net.selection
    for route in range(3):
        assert torch.equal(norms.norms.tensors(route)["1.running_mean"], net.backbone[1].running_mean)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (PATTERNS[:2], r"shape \(3, 80\), a row for each route and a column for each gate, got \(2, 80\)"),
        (PATTERNS.tolist(), r"shape \(3, 80\), .* got list"),
        (PATTERNS * 0.5, "1 where a gate is open and 0 where it is closed"),
    ],
)
def test_other_patterns_raise(patterns: Any, message: str) -> None:
    net = routed(3)
    assert net.routes is not None
    before = net.routes.clone()
    with pytest.raises(InvalidValueError, match=message):
        gw.set_routes(net, patterns)
    assert torch.equal(net.routes, before)


def test_net_without_routes_takes_none() -> None:
    with pytest.raises(InvalidValueError, match="set_routes needs routes"):
        gw.set_routes(gw.GaterNet(backbone(), image_size=(8, 8)), PATTERNS)


def deciding() -> gw.GaterNet:
    """Return a net whose light gater decides each gate, with logits of both signs."""
    net = gw.GaterNet(backbone(), image_size=(8, 8))
    gater: Any = net.gater
    torch.nn.init.normal_(gater.head.fc2.weight, generator=torch.Generator().manual_seed(3))
    net(images(64))  # running statistics
    return net.eval()


def logits_of_routes(net: gw.GaterNet, patterns: Tensor, x: Tensor) -> Tensor:
    """Add the logits of the gates that a route opens, and subtract those of the others."""
    with torch.no_grad():
        logits = net.gater(x)
    rows = [[sum(v if p else -v for v, p in zip(own, row, strict=True)) for row in patterns] for own in logits]
    return torch.tensor(rows) / len(patterns[0]) ** 0.5


def test_gater_chooses_the_route_whose_open_gates_have_the_largest_logits() -> None:
    source, net = deciding(), routed(3)
    follow_gates(net, source, images(64).split(16))
    assert net.routes is not None
    assert torch.equal(net.routes, routes_from_gates(source, [images(64)], 3))
    expected = logits_of_routes(source, net.routes, images(5, seed=2))
    torch.testing.assert_close(net.eval().gater(images(5, seed=2)).detach(), expected, atol=1e-4, rtol=1e-4)
    assert len(expected.argmax(1).unique()) > 1


def test_light_gater_has_the_same_features_with_and_without_routes() -> None:
    """In this network two logits instead of 336 would leave room for wider features."""
    options: Any = {"in_chans": 1, "image_size": (8, 8)}
    nets: Any = [gw.make_model(f"resnet20+gaternet{routes}", **options) for routes in ("", ":routes=2")]
    one, other = ([tensor.shape for tensor in net.gater.features.state_dict().values()] for net in nets)
    assert one == other


def test_one_route_opens_what_most_images_open() -> None:
    source, net = deciding(), routed(1)
    follow_gates(net, source, [images(64)])
    with torch.no_grad():
        most = source.decide(images(64)).mean(0) > 0.5
    assert net.routes is not None
    assert torch.equal(net.routes, most.unsqueeze(0))
