"""Patterns of gates: hand-computed numbers, collected batch by batch, drawn."""

import re

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.analysis import gater_figures, run_figures
from gatewise.analysis.drawing import Drawing, series_style
from gatewise.analysis.patterns import GatePatterns, UnitKinds, record_patterns
from gatewise.errors import InvalidValueError


def tiny() -> gw.GaterNet:
    """Return a net of two sites with two gates each."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        *(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return gw.GaterNet(backbone, image_size=(8, 8))


GATES = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 1]])
LABELS = torch.tensor([0, 0, 1, 1])
MACS = torch.tensor([100.0, 50, 150, 100])


@pytest.fixture
def patterns() -> GatePatterns:
    found = GatePatterns(tiny().sites, classes=3)
    found.update(GATES, LABELS, MACS)
    return found


def test_numbers_match_hand_count(patterns: GatePatterns) -> None:
    assert patterns.images == 4
    assert patterns.images_by_gate.tolist() == [4, 0, 2, 2]
    assert patterns.kinds() == [UnitKinds("0", 1, 1, 0), UnitKinds("2", 0, 0, 2)]
    assert patterns.open_gates() == (1, 2.0, 3)
    assert patterns.images_by_open_gates.tolist() == [0, 1, 2, 1, 0]
    assert patterns.rate_by_class.tolist() == [[1, 0, 0.5, 0], [1, 0, 0.5, 1], [0, 0, 0, 0]]
    assert patterns.executed_macs == 100
    assert patterns.nearly_constant() == 0


def test_nearly_constant_gates_are_reported() -> None:
    found = GatePatterns(tiny().sites, classes=1)
    gates = torch.zeros(1000, 4)
    gates[0, 0] = 1  # once
    gates[:, 1] = 1
    gates[0, 1] = 0  # all but once
    gates[:500, 2] = 1
    found.update(gates, torch.zeros(1000).long(), torch.zeros(1000))
    assert found.nearly_constant() == 2


@pytest.mark.parametrize("pieces", [1, 3, 10])
def test_batches_add_up_and_sample_does_not_grow(pieces: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gates = (torch.rand(60, 4, generator=generator) < 0.5).float()
    labels = torch.randint(0, 3, (60,), generator=generator)
    whole, parts = (GatePatterns(tiny().sites, classes=3, keep=20) for _ in range(2))
    whole.update(gates, labels, gates.sum(1))
    for piece in torch.arange(60).chunk(pieces):
        parts.update(gates[piece], labels[piece], gates[piece].sum(1))
    assert torch.equal(whole.opened_by_class, parts.opened_by_class)
    assert torch.equal(whole.images_by_open_gates, parts.images_by_open_gates)
    assert whole.executed_macs == pytest.approx(parts.executed_macs)
    assert parts._patterns.shape == (20, 4)
    assert torch.equal(whole._patterns, parts._patterns)
    assert torch.equal(whole._labels, parts._labels)
    assert torch.equal(whole.kept, parts.kept)
    assert torch.equal(gates[whole.kept].bool(), whole._patterns)
    assert torch.equal(labels[whole.kept], whole._labels)


def test_sample_is_spread_over_all_images() -> None:
    found = GatePatterns(tiny().sites, classes=10, keep=200)
    for batch in range(10):
        found.update(torch.ones(100, 4), torch.full((100,), batch), torch.ones(100))
    counts = found._labels.bincount(minlength=10)
    assert counts.sum() == 200
    assert counts.min() >= 8


def test_patterns_of_different_classes_are_apart() -> None:
    found = GatePatterns(tiny().sites, classes=2)
    noise = torch.rand(80, 4) < 0.1
    labels = torch.arange(80) % 2
    found.update((torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])[labels].bool() ^ noise).float(), labels, torch.ones(80))
    points, kept = found.embedding()
    assert points.shape == (80, 2)
    distance = torch.cdist(points, points).fill_diagonal_(float("inf"))
    assert (kept[distance.argmin(1)] == kept).double().mean() > 0.8


def test_histogram_bars_hold_equal_numbers_of_integers() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 90, 1), nn.ReLU(), nn.Conv2d(90, 3, 1))
    found = GatePatterns(gw.GaterNet(backbone, image_size=(8, 8)).sites, classes=1)
    found.update((torch.arange(90) <= torch.arange(90)[:, None]).float(), torch.zeros(90).long(), torch.ones(90))
    rows = open_rows(gater_figures.open_gates_by_image(found))
    assert {row[2] for row in rows} == {2.0}, "each number of open gates once, two of them in each bar"
    assert (rows[0][0], rows[-1][1]) == (0.5, 90.5)
    by_gate = open_rows(gater_figures.images_by_gate(found))
    assert sum(row[2] for row in by_gate) == 89, "all but the gate that is always open"


def open_rows(drawing: Drawing) -> list[list[float]]:
    return [[float(value) for value in line.split(",")] for line in drawing.csv().splitlines()[1:]]


def test_single_gate_has_no_plane() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Conv2d(1, 3, 1))
    found = GatePatterns(gw.GaterNet(backbone, image_size=(8, 8)).sites, classes=1)
    found.update((torch.arange(8) % 2).float().unsqueeze(1), torch.zeros(8).long(), torch.ones(8))
    with pytest.raises(InvalidValueError, match="two gates"):
        found.embedding()


def test_classes_with_most_images_have_own_style() -> None:
    found = GatePatterns(tiny().sites, classes=5)
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4] * 4)
    found.update((torch.rand(32, 4, generator=generator) < 0.5).float(), labels, torch.ones(32))
    written = texts(gater_figures.patterns_in_the_plane(found, ("a", "b", "_c$", "d", "e"), most=2))
    assert written == ["b", "d", "other classes"]
    every = texts(gater_figures.patterns_in_the_plane(found, ("a", "b", "_c$x$", "d", "e")))
    assert [text.strip() for text in every] == ["a", "b", "_c$x$", "d", "e"]


@pytest.mark.parametrize("count", [2, 10])
def test_unprojectable_patterns_rejected(count: int) -> None:
    found = GatePatterns(tiny().sites, classes=1)
    found.update(torch.ones(count, 4), torch.zeros(count).long(), torch.ones(count))
    with pytest.raises(InvalidValueError, match=f"{count} gate vectors of which 1 differ"):
        found.embedding()


def test_recording_uses_eval_mode_and_restores_net() -> None:
    net = tiny().train()
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = record_patterns(net, zip(images.split(2), labels.split(2), strict=True), classes=3)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    _, gates = net.eval().forward_with_gates(images)
    assert torch.equal(found.images_by_gate, gates.sum(0).long())
    assert found.executed_macs == pytest.approx(float(net.executed_macs(gates).mean()))


def test_empty_data_rejected() -> None:
    net = gw.make_model("resnet20+gaternet")
    with pytest.raises(InvalidValueError, match="there are no images to record"):
        record_patterns(net, iter(()), classes=2)


def test_failed_recording_restores_training_flags() -> None:
    net = tiny().train()
    with pytest.raises(RuntimeError):
        record_patterns(net, [(torch.zeros(1, 9, 8, 8), torch.zeros(1).long())], classes=3)
    assert all(module.training for module in net.modules())


def test_runs_are_drawn_by_share_of_open_gates_per_layer(patterns: GatePatterns) -> None:
    other = GatePatterns(tiny().sites, classes=3)
    other.update(torch.ones(2, 4), torch.tensor([0, 1]), torch.ones(2))
    assert patterns.open_shares() == [0.5, 0.5]
    drawing = run_figures.open_gates_of_runs({"some": patterns, "all": other}, ["all", "none", "some"])
    assert drawing.csv().splitlines()[1:] == ["some,1,0,50.0", "some,2,2,50.0", "all,1,0,100.0", "all,2,2,100.0"]
    colours = [line.get_color() for line in drawing.figure.axes[0].lines]
    assert colours == [series_style(2)[0], series_style(0)[0]], "those of the runs on the whole page"


def texts(drawing: Drawing) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg())


def test_figures_have_captions() -> None:
    found = GatePatterns(tiny().sites, classes=2)
    generator = torch.Generator().manual_seed(0)
    gates: Tensor = (torch.rand(50, 4, generator=generator) < 0.5).float()
    found.update(gates, torch.arange(50) % 2, torch.ones(50))
    kinds = texts(gater_figures.kinds_by_unit(found))
    assert {"always open", "depends on the image", "always closed", "gates (%)"} <= set(kinds)
    assert "images, of 50, that open a gate" in texts(gater_figures.images_by_gate(found))
    assert "open gates, of 4" in texts(gater_figures.open_gates_by_image(found))
    assert {"ant", "bee"} <= set(texts(gater_figures.patterns_in_the_plane(found, ["ant", "bee"])))
