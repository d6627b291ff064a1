"""Figures of attention over images: maps at their images, queries marked at their positions."""

import csv
import io
from xml.etree import ElementTree

import pytest
import torch

from gatewise.analysis.attention import QueryDistances
from gatewise.analysis.attention_figures import attention_overlays, distances_by_gate

PICTURES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def maps(queries: int, same: bool) -> torch.Tensor:
    found = torch.rand(2, queries, 4, 4, generator=torch.Generator().manual_seed(1))
    return found[:, :1].expand(-1, queries, -1, -1) if same else found


@pytest.mark.parametrize(("same", "columns"), [(True, 2), (False, 4)])
def test_map_equal_for_all_positions_is_drawn_once(same: bool, columns: int) -> None:
    drawing = attention_overlays("layer.nl", PICTURES, maps(3, same), torch.tensor([0, 6, 15]))
    assert len(drawing.figure.axes) == 2 * columns + 1, "and a colour bar"
    assert ElementTree.fromstring(drawing.inline_svg()).get("aria-label") == drawing.shows
    assert ("query positions" in drawing.shows) is not same
    rows = list(csv.DictReader(io.StringIO(drawing.csv())))
    assert len(rows) == 2 * (columns - 1)
    own = 16 * maps(3, same)[0, 0]
    assert float(rows[0]["largest weight (x uniform)"]) == pytest.approx(own.max().item())
    assert float(rows[0]["smallest weight (x uniform)"]) == pytest.approx(own.min().item())


def test_crosses_mark_the_queries() -> None:
    drawing = attention_overlays("layer.nl", PICTURES, maps(3, same=False), torch.tensor([0, 6, 15]))
    crosses = [axes.lines[0].get_xydata()[0].tolist() for axes in drawing.figure.axes[1:4]]
    assert crosses == [[1.5, 1.5], [9.5, 5.5], [13.5, 13.5]], "middles of cells of 4 pixels, (x, y)"


def test_map_is_drawn_on_its_picture_at_its_size() -> None:
    drawing = attention_overlays("layer.nl", PICTURES, maps(3, same=False), torch.tensor([0, 6, 15]))
    second = drawing.figure.axes[4 + 2]
    picture, overlay = (image.get_array() for image in second.images)
    assert torch.equal(torch.as_tensor(picture), PICTURES[1].mean(0)), "in grey, so that only weights have colour"
    assert overlay.shape == (16, 16)
    small = torch.nn.functional.avg_pool2d(torch.as_tensor(overlay.data)[None, None], 4)[0, 0]
    assert torch.corrcoef(torch.stack([small.flatten(), maps(3, same=False)[1, 1].flatten()]))[0, 1] > 0.9


def test_all_maps_share_one_colour_scale() -> None:
    axes = attention_overlays("layer.nl", PICTURES, maps(3, same=False), torch.tensor([0, 6, 15])).figure.axes
    limits = {axes[4 * row + column].images[1].get_clim() for row in (0, 1) for column in (1, 2, 3)}
    assert len(limits) == 1


def test_nearly_uniform_maps_are_drawn_and_labelled_uniform() -> None:
    uniform = torch.full((2, 3, 4, 4), 1 / 16)
    uniform[0, 1, 2, 2] *= 1.01
    drawing = attention_overlays("layer.nl", PICTURES, uniform, torch.tensor([0, 6, 15]))
    assert drawing.figure.axes[1].images[1].get_clim() == (0.95, 1.05)
    assert "from 1 to 1.01 times uniform attention, so it is practically uniform" in drawing.shows
    uniform[0, 1, 2, 2] *= 1.1
    assert "practically" not in attention_overlays("a", PICTURES, uniform, torch.tensor([0, 6, 15])).shows


def test_single_picture_is_drawn() -> None:
    drawing = attention_overlays("layer.gc", PICTURES[:1], maps(3, same=True)[:1], torch.tensor([0, 6, 15]))
    assert len(drawing.figure.axes) == 3


def test_distances_are_drawn_unchanged() -> None:
    found = [QueryDistances("a.nl", 0.4, 0.1, 0.2), QueryDistances("b.gc", 0.5, 0.0, 0.0)]
    drawing = distances_by_gate(found)
    heights = [bar.get_height() for bar in drawing.figure.axes[0].patches]
    assert heights == [0.4, 0.5, 0.1, 0.0, 0.2, 0.0]
    assert drawing.tips["series-1-0"] == "a.nl: attention 0.100"
    assert {f"distances-{gid}" for gid in drawing.tips} <= {
        group.get("id") for group in ElementTree.fromstring(drawing.inline_svg()).iter()
    }
