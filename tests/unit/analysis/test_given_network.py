"""A network that was trained elsewhere: its examples, and labels that do not count."""

import torch
from torch import Tensor, nn

from gatewise.analysis.given_network import GivenNetwork
from gatewise.data import IGNORED


def given(net: nn.Module, labels: Tensor) -> GivenNetwork:
    images = torch.arange(len(labels)).float()[:, None, None, None].expand(-1, 3, 4, 4)
    return GivenNetwork("explain", net, [(images, labels)])


def test_examples_are_first_images_of_first_classes() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    images, labels = given(net, torch.tensor([3, 3, 3, 3, 1, 0, 2])).examples(3)
    assert labels.tolist() == [0, 1, 2]
    assert images[:, 0, 0, 0].tolist() == [5.0, 4.0, 6.0]


def test_negative_values_of_masks_do_not_count() -> None:
    masks = torch.tensor([[[0, 1], [-1, 2]]]).repeat(2, 2, 2)
    ((_, labels),) = given(nn.Conv2d(3, 3, 1), masks).batches()
    assert torch.equal(labels == IGNORED, masks == -1)
    assert torch.equal(labels[masks >= 0], masks[masks >= 0])


def test_output_of_one_axis_has_no_classes() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1), nn.Flatten(0))
    found = given(net, torch.tensor([0, 1, 0]))
    assert found.task is None
    assert found.remark == "Labels (3,) are no classes of images or pixels for outputs (3,)."
