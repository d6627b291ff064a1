"""Figures are readable: data within the axes, names that do not overlap, and equal lines that are both seen."""

import re
from typing import Any

import pytest
import torch
from matplotlib.transforms import Bbox

from gatewise.analysis import figures, gate_figures, pixel_figures, run_figures, score_figures
from gatewise.analysis.axes import name_along, name_gates_along
from gatewise.analysis.drawing import WIDTH, Drawing, new_figure
from gatewise.analysis.gate_stats import gate_statistics
from support.gated_net import batches, net

LONG = "gaternet:sites=inner,budget=0.5,gate_bias=0,teacher=resnet20@before_conv"
CLASSES = [f"class {number} with a name that is much longer than a cell of the figure" for number in range(32)]
GATES = [(f"stages.{number // 6}.{number}.conv1.gct", torch.tensor([0.0, number / 9])) for number in range(53)]


def _summaries() -> list[Any]:
    return list(gate_statistics(net("gct"), batches(), 3).values())


def _points(count: int) -> dict[str, tuple[float, float, float | None, float | None]]:
    return {f"{number} {LONG}": (1 + number / 9, 0.9, 0.85, 0.92) for number in range(count)}


DRAWN = {
    "rising curve": lambda: figures.curves({"a": [[0.1, 0.2, 0.8, 0.9]], "b": [[0.7, 0.8, 0.85, 0.9]]}),
    "two epochs": lambda: figures.curves({"a": [[0.1, 0.9]]}),
    "one epoch": lambda: figures.curves({"a": [[0.4]]}),
    "flat curves": lambda: figures.curves({"a": [[0.5, 0.5]], "b": [[0.5, 0.5]]}),
    "curves at the ends": lambda: figures.curves({"a": [[0.0, 1.0]], "b": [[1.0, 1.0]]}),
    "twenty long names": lambda: figures.accuracy_against_latency(_points(20)),
    "two short names": lambda: figures.accuracy_against_latency({"none": (1, 0.5, 0, 1), "se": (2, 0.5, 0.4, 0.6)}),
    "runs": lambda: run_figures.accuracy_against_macs({"a": (41.0, 0.82), "b": (20.0, 0.81)}),
    "names of 53 gates": lambda: gate_figures.parameter_by_depth(GATES, "gamma"),
    "gates of one network": lambda: gate_figures.dependence_by_depth(_summaries()),
    "classes of gates": lambda: gate_figures.classes_by_depth(_summaries(), ["ant", "bee", LONG]),
    "32 classes of pixels": lambda: pixel_figures.iou_by_class({"a": dict.fromkeys(CLASSES, 0.5)}),
    "two confused classes": lambda: score_figures.confusion_matrix(torch.eye(2).long(), ["ant", "bee"]),
    "32 confused classes": lambda: score_figures.confusion_matrix(torch.eye(32).long(), CLASSES),
}


@pytest.fixture(scope="module", params=DRAWN)
def drawing(request: pytest.FixtureRequest) -> Drawing:
    return DRAWN[request.param]()


def test_points_are_within_axes(drawing: Drawing) -> None:
    for axes in drawing.figure.axes:
        lines = [line for line in axes.lines if line.get_transform() == axes.transData]
        for line in lines:
            for (low, high), values in ((axes.get_xlim(), line.get_xdata()), (axes.get_ylim(), line.get_ydata())):
                assert all(low <= value <= high for value in values)


def _ticks(axis: Any) -> list[Any]:
    """Return the labels of the ticks that are drawn: those within the limits."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    labels = [label for tick in ticks for label in (tick.label1, tick.label2)]
    return [label for label in labels if label.get_visible() and label.get_text()]


def test_texts_are_within_figure_and_apart(drawing: Drawing) -> None:
    figure = drawing.figure
    names = [_ticks(axis) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    labels = [[axis.label] for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.label.get_text()]
    for group in (*names, *labels, *(legend.get_texts() for legend in figure.legends)):
        boxes = [name.get_window_extent() for name in group]
        for number, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, group[number]
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, group[number]
            assert not any(Bbox.intersection(box, other) for other in boxes[number + 1 :]), group[number]
    axes = figure.axes[0]
    assert axes.get_window_extent().height > 0.3 * WIDTH * figure.dpi, "names and legends need not its room"


def test_score_axis_does_not_magnify_rounding() -> None:
    for values in ([0.5, 0.5001], [1.0, 0.9999], [0.0, 0.0]):
        low, high = figures.curves({"a": [values]}).figure.axes[0].get_ylim()
        assert high - low >= 1
        assert 0 <= low < high <= 100.5


def test_values_near_the_identity_fill_their_axis() -> None:
    layer = gate_figures.Depth("a.gct", torch.zeros(100).index_fill(0, torch.tensor([52]), 9.0), 1.05, 0.005)
    far = gate_figures.Depth("b.gct", torch.zeros(100).index_fill(0, torch.tensor([99]), 9.0), 7.0, 30.0)
    edges = torch.linspace(0, 2, 101)
    for layers, lowest, highest in (([layer], 1.0, 1.06), ([layer, far], 0.0, 7.0)):
        _, axes = new_figure(3.0)
        gate_figures.draw_density(layers, edges, 1.0, axes)
        margin = 0.05 * (highest - lowest)
        assert axes.get_ylim() == pytest.approx((lowest - margin, highest + margin))


def test_line_under_an_equal_one_is_seen() -> None:
    drawn = figures.curves({"a": [[0.5, 0.6]], "b": [[0.5, 0.6]], "c": [[0.5, 0.7]], "d": [[0.5, 0.6]]})
    assert [line.get_linestyle() for line in drawn.figure.axes[0].lines] == ["-", "--", "-", "--"]
    offsets = re.findall(r"stroke-dashoffset: (-?[\d.]+)", drawn.svg())
    assert len(set(offsets)) == 2, "equal lines have dashes at different places"


def test_gates_are_named_without_the_part_that_all_share() -> None:
    for paths, names in (
        (["a.0.gct", "b.gct"], ["a.0", "b"]),
        (["a.gct", "a.se"], ["a.gct", "a.se"]),
        (["gct", "a.gct"], ["gct", "a.gct"]),
    ):
        axes = new_figure(3.0)[1]
        name_gates_along(axes, paths)
        assert [name.get_text() for name in axes.get_xticklabels()] == names


def test_short_names_are_not_turned() -> None:
    for names, rotation in ((["0", "10"], 0), (["cat", "10"], 90)):
        axes = new_figure(3.0)[1]
        name_along(axes, names)
        assert {name.get_rotation() for name in axes.get_xticklabels()} == {rotation}
