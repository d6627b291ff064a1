"""Learning from a teacher, in loops of one's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.gaternet.teaching import class_divergence, label_divergence, squared_distance
from support.routed_nets import backbone, images, routed

CROSS_ENTROPY = nn.functional.cross_entropy
LABELS = torch.arange(12) % 4


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 2)])
def test_divergence_is_that_of_torch_times_squared_temperature(shape: tuple[int, ...]) -> None:
    own, teacher = logits(*shape), logits(*shape, seed=1)
    parts = [(each / 2).movedim(1, -1).reshape(-1, 3) for each in (own, teacher)]
    expected = 4 * nn.functional.kl_div(parts[0].log_softmax(1), parts[1].softmax(1), reduction="batchmean")
    assert_close(gw.distillation_loss(own, teacher, temperature=2.0), expected)
    assert class_divergence(own, teacher, 2.0).shape == (5,)


def test_labels_are_independent() -> None:
    own, teacher = logits(5, 3), logits(5, 3, seed=1)
    two = [torch.stack([each, torch.zeros_like(each)], 1) for each in (own, teacher)]
    expected = class_divergence(two[0], two[1], 3.0)
    assert_close(label_divergence(own, teacher, 3.0), expected)


def test_numbers_have_squared_distance() -> None:
    assert_close(squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]), 9.0), torch.tensor([2.5]))


def test_teacher_gets_no_gradient() -> None:
    own, teacher = logits(2, 3).requires_grad_(), logits(2, 3, seed=1).requires_grad_()
    gw.distillation_loss(own, teacher).backward()
    assert own.grad is not None
    assert teacher.grad is None


def test_plain_network_learns_from_trained_one() -> None:
    net, teacher = backbone(), backbone()
    teacher[6].reset_parameters()
    teacher.train()
    criterion = gw.TeacherLoss(CROSS_ENTROPY, net, teacher, temperature=2.0, weight=3.0)
    output = net(images())
    loss = criterion(output, LABELS, images=images())
    assert teacher.training
    taught = gw.distillation_loss(output, teacher.eval()(images()), temperature=2.0)
    assert_close(loss, CROSS_ENTROPY(output, LABELS) + 3 * taught)
    assert list(criterion.parameters()) == []
    assert_close(criterion(net.eval()(images()), LABELS), CROSS_ENTROPY(net(images()), LABELS))
    with pytest.raises(InvalidValueError, match="needs the images that the teacher sees"):
        criterion(net.train()(images()), LABELS)


@pytest.mark.parametrize("options", [{}, {"routes": 3}, {"routes": 1}, {"gater": "local"}])
def test_dense_network_teaches_and_learns_in_same_step(options: dict[str, Any]) -> None:
    net = gw.GaterNet(backbone(), image_size=(8, 8), budget=0.5, **options)
    criterion = gw.TeacherLoss(CROSS_ENTROPY, net, weight=0.5)
    statistics = net.backbone[1].running_mean.clone()
    output = net(images())
    others = net._companion_outputs
    assert others is not None
    assert_close(others.dense, net.backbone(images()))
    loss = criterion(output, LABELS)
    expected = CROSS_ENTROPY(output, LABELS) + CROSS_ENTROPY(others.dense, LABELS)
    divergences = [class_divergence(output, others.dense, 4.0)]
    if options.get("routes") == 3:
        divergences.append(class_divergence(others.random, others.dense, 4.0))
        expected += 0.5 * net.selection.preference_loss(others.logits, others.routes, torch.stack(divergences, 1))
    assert_close(loss, expected + 0.5 * sum(each.mean() for each in divergences))
    assert net.companion_outputs() is None
    assert not torch.equal(net.backbone[1].running_mean, statistics)


def test_dense_forward_leaves_statistics_of_gated_network() -> None:
    alone, taught = (gw.GaterNet(backbone(), image_size=(8, 8), gate_bias=-1.0) for _ in range(2))
    gw.TeacherLoss(CROSS_ENTROPY, taught)
    for net in (alone, taught):
        torch.manual_seed(3)
        net(images())
    for name, buffer in alone.backbone.named_buffers():
        assert torch.equal(buffer, dict(taught.backbone.named_buffers())[name]), name


def test_random_routes_are_used_equally() -> None:
    net = routed(3)
    gw.TeacherLoss(CROSS_ENTROPY, net)
    net(images())
    others = net.companion_outputs()
    assert others is not None
    assert others.routes is not None
    assert others.routes[:, 1].bincount().tolist() == [4, 4, 4]


def test_random_route_output_is_that_of_the_route() -> None:
    net = routed(3)
    gw.TeacherLoss(CROSS_ENTROPY, net)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()  # batch statistics would depend on the other images of the route
    output = net(images())
    others = net.companion_outputs()
    assert others is not None
    assert_close(output, net(images(), net.routes[others.routes[:, 0]].float()))
    assert_close(others.random, net(images(), net.routes[others.routes[:, 1]].float()))


def test_composes_with_gate_loss() -> None:
    net = gw.GaterNet(backbone(), image_size=(8, 8), budget=0.5)
    taught = gw.TeacherLoss(CROSS_ENTROPY, net)
    criterion = gw.GateLoss(taught, net)
    output = net(images())
    due, dense = net._due, net._companion_outputs.dense
    expected = CROSS_ENTROPY(output, LABELS) + CROSS_ENTROPY(dense, LABELS) + 0.5 * gw.distillation_loss(output, dense)
    assert_close(criterion(output, LABELS), expected + due)
    with pytest.warns(UserWarning, match="has nothing from the dense network"):
        taught(output, LABELS)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gw.TeacherLoss(CROSS_ENTROPY, backbone()), InvalidValueError, "this network is no GaterNet"),
        (
            lambda: gw.TeacherLoss(CROSS_ENTROPY, routed(), "run"),
            InvalidTypeError,
            "teacher must be 'self' or a network",
        ),
        (lambda: gw.TeacherLoss(3, routed()), InvalidTypeError, "criterion must be"),
        (lambda: gw.TeacherLoss(CROSS_ENTROPY, routed(), temperature=0.0), InvalidValueError, "temperature"),
        (lambda: gw.distillation_loss(logits(2, 3), logits(2, 4)), InvalidValueError, r"returns shape \(2, 4\)"),
    ],
)
def test_wrong_arguments_raise(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
