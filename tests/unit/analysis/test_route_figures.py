"""Which images take which route: counts, examples, figures, and their place on a page."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gatewise as gw
from gatewise.analysis.route_figures import classes_by_route, pictures_by_route
from gatewise.analysis.route_use import RouteUse, record_routes
from gatewise.errors import InvalidValueError


class Brightness(nn.Module):
    """Sends dark images to route 0 and bright ones to route 2: (N, 3, 8, 8) -> (N, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, torch.full_like(mean, -9.0), mean], 1)


def net() -> gw.GaterNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return gw.GaterNet(backbone, routes=3, gater=Brightness(), image_size=(8, 8)).eval()


BRIGHT = torch.tensor([1.0, -1, 1, -1, -1, 1, 1, 1])
IMAGES = BRIGHT.reshape(8, 1, 1, 1).expand(8, 3, 8, 8)
LABELS = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])


@pytest.fixture
def use() -> RouteUse:
    return record_routes(net(), zip(IMAGES.split(3), LABELS.split(3), strict=True), classes=2, examples=2)


def test_counts_and_examples_of_each_route(use: RouteUse) -> None:
    assert use.images.tolist() == [[3, 0], [0, 0], [1, 4]]
    assert use.shares == [0.375, 0.0, 0.625]
    assert use.examples == ((1, 3), (), (0, 5))
    assert use.overlap.diagonal().tolist() == [1.0, 1.0, 1.0]
    routes = net().routes
    assert routes is not None
    both, either = (routes[0] & routes[1]).sum(), (routes[0] | routes[1]).sum()
    assert float(use.overlap[0, 1]) == pytest.approx(int(both) / int(either))


def test_information_that_route_and_class_share(use: RouteUse) -> None:
    parts = [(3, 3, 4), (1, 5, 4), (4, 5, 4)]
    assert use.shared_information == pytest.approx(sum(n / 8 * math.log2(8 * n / (a * b)) for n, a, b in parts))
    assert RouteUse(torch.tensor([[2, 2], [2, 2]]), ((), ()), torch.eye(2)).shared_information == 0


def test_figures_have_their_numbers(use: RouteUse) -> None:
    drawing = classes_by_route(use, ["dark", "bright"])
    assert drawing.csv().splitlines() == ["route,dark,bright", "0,3,0", "1,0,0", "2,1,4"]
    colour = {index: Image.new("RGB", (8, 8), (30 * index, 0, 0)) for index in range(8)}
    pictures = pictures_by_route(use, colour.__getitem__)
    assert [row[2].text for row in pictures.table.rows] == ["1, 3", "", "0, 5"]
    sheet = pictures.figure.axes[0].images[0].get_array()
    assert [int(sheet[48 * row + 20, 48 * column + 20, 0]) for row in (0, 1, 2) for column in (0, 1)] == [
        *(30, 90),
        *(255, 255),
        *(0, 150),
    ]


def test_page_shows_routes(tmp_path: Path) -> None:
    gw.explain(net(), [(IMAGES + 0.1 * torch.randn(8, 3, 8, 8), LABELS)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Of 3 routes, each image takes one" in page
    assert "classes_by_route" in page
    assert "pictures_by_route" in page


def test_without_images_or_routes_it_raises() -> None:
    with pytest.raises(InvalidValueError, match="no images to record"):
        record_routes(net(), [], classes=1)
