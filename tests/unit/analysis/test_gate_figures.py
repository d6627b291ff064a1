"""Figures of gates: the drawn values are the counted ones, with captions and machine-readable data."""

import csv
import dataclasses
import io
import re
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

import gatewise as gw
from gatewise.analysis import figures, gate_figures, gater_figures, run_figures
from gatewise.analysis.drawing import INK, Drawing
from gatewise.analysis.gate_stats import GateStats, gate_statistics
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.interventions import Exchange
from gatewise.analysis.recording import GateRecorder
from support.gated_net import batches, net

CLASSES = ("ant", "_bee$", r"<cat & dog $\foo$>")


@pytest.fixture(scope="module")
def summaries() -> list[GateSummary]:
    return list(gate_statistics(net("gct"), batches(), 3).values())


@pytest.fixture(scope="module")
def drawings(summaries: list[GateSummary]) -> list[Drawing]:
    model = net("gct")
    parameters = [
        gate_figures.parameter_by_depth(gate_figures.gct_parameters(model, name), name)
        for name in ("alpha", "gamma", "beta")
    ]
    return [
        *parameters,
        gate_figures.values_by_depth(summaries),
        gate_figures.competition_by_depth(summaries),
        gate_figures.dependence_by_depth(summaries),
        gate_figures.classes_by_channel(summaries[0], CLASSES),
        gate_figures.classes_by_depth(summaries, CLASSES),
        run_figures.accuracy_against_macs({"a": (41.0, 0.82), "b": (20.0, 0.81)}),
        run_figures.gates_of_runs({"a": summaries, "b": summaries[:3]}, ["plain", "a", "b"]),
        gater_figures.accuracy_by_gates(Exchange((0, 2), 0.9, torch.tensor([[0.8, 0.1], [0.25, 1.0]])), CLASSES),
        figures.curves({"none": [[0.1, 0.5]], "<gct & se>": [[0.2, 0.6]]}),
    ]


def rows(drawing: Drawing) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(drawing.csv())))


@pytest.mark.extended
def test_every_drawing_is_svg_png_and_csv_with_caption(drawings: list[Drawing]) -> None:
    assert len({drawing.name for drawing in drawings}) == len(drawings)
    for drawing in drawings:
        for svg in (drawing.svg(), drawing.inline_svg()):
            assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert Image.open(io.BytesIO(drawing.png())).size[0] == round(200 * drawing.figure.get_size_inches()[0])
        assert rows(drawing)
        for sentence in (drawing.shows, drawing.look_for):
            assert sentence.endswith(".")
        assert drawing.svg() == drawing.svg(), "the same for the same content"


def test_drawing_in_page_has_own_ids_and_page_colours(drawings: list[Drawing]) -> None:
    ids: list[str] = []
    for drawing in drawings:
        inline = drawing.inline_svg()
        own = re.findall(r'\bid="([^"]*)"', inline)
        assert all(name.startswith(f"{drawing.name}-") for name in own)
        for reference in re.findall(r'(?:href="#|url\(#)([^")]*)', inline):
            assert reference in own
        ids += own
        colours = {svg: set(re.findall(r'"(#[0-9a-f]{6})"', svg)) for svg in (inline, drawing.svg())}
        assert colours[inline] == colours[drawing.svg()] - {INK}
        assert INK not in inline
        assert INK in drawing.svg()
    assert len(ids) == len(set(ids))


def test_tooltips_are_at_their_marks_and_escaped(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing.inline_svg())
        titles = {
            group.get("id"): group[0].text
            for group in tree.iter("{http://www.w3.org/2000/svg}g")
            if group.get("class") == "tip"
        }
        assert titles == {f"{drawing.name}-{gid}": tip for gid, tip in drawing.tips.items()}
    assert drawings[-1].tips["series-1"].startswith("<gct & se>: 60.00 %")


def test_depth_follows_network_order_with_counted_numbers(
    drawings: list[Drawing], summaries: list[GateSummary]
) -> None:
    gates = gw.gates_in(net("gct"))
    gamma, values, competition, dependence = drawings[1], *drawings[3:6]
    for drawing in (gamma, values, competition, dependence):
        assert [row["gate"] for row in rows(drawing)] == list(gates)
    for row, gate in zip(rows(gamma), gates.values(), strict=True):
        assert float(row["mean"]) == pytest.approx(gate.gamma.mean().item(), abs=1e-6)
        assert float(row["standard deviation"]) == pytest.approx(gate.gamma.std(correction=0).item(), rel=1e-5)
    for row, summary in zip(rows(values), summaries, strict=True):
        assert float(row["mean"]) == pytest.approx(summary.average)
        assert float(row["share near the identity"]) == pytest.approx(summary.near_identity)
    for row, summary in zip(rows(competition), summaries, strict=True):
        assert float(row["ratio"]) == pytest.approx(summary.competition)


def test_standard_deviation_is_over_images_and_channels() -> None:
    model, ((images, labels),) = net("gct"), batches()
    (first, *_) = gate_statistics(model, [(images, labels)], 3).values()
    with GateRecorder(model) as recorder, torch.no_grad():
        model(images)
    seen = next(iter(recorder.take().values())).values
    expected = seen.double().std(correction=0).item()
    assert float(rows(gate_figures.values_by_depth([first]))[0]["standard deviation"]) == pytest.approx(expected)


def test_classes_are_shown_by_most_distinctive_channels(summaries: list[GateSummary]) -> None:
    drawing = gate_figures.classes_by_channel(summaries[5], CLASSES, most_channels=3)
    differences = summaries[5].by_class - summaries[5].mean
    shown = {int(row["channel"]) for row in rows(drawing)}
    assert shown == set(differences.nan_to_num().square().sum(0).topk(3).indices.tolist())
    for row in rows(drawing):
        expected = differences[CLASSES.index(row["class"]), int(row["channel"])]
        assert float(row["difference"]) == pytest.approx(expected.item(), rel=1e-4)


def test_classes_are_ordered_by_distance_of_gates_from_mean(summaries: list[GateSummary]) -> None:
    (first, second, third) = rows(gate_figures.classes_by_depth(summaries, CLASSES))
    for number, row in enumerate((first, second, third)):
        assert row["class"] == CLASSES[number]
        for summary in summaries:
            away = (summary.by_class[number] - summary.mean).square().nanmean().sqrt()
            assert float(row[summary.path]) == pytest.approx(float(away), rel=1e-5)
    drawing = gate_figures.classes_by_depth(summaries, CLASSES, most=2)
    nearest = min((first, second, third), key=lambda row: sum(float(row[s.path]) ** 2 for s in summaries))
    assert [row["class"] for row in rows(drawing)] == [name for name in CLASSES if name != nearest["class"]]
    assert "2 of 3 classes" in drawing.shows


def test_gates_of_runs_are_side_by_side_with_own_numbers(summaries: list[GateSummary]) -> None:
    drawing = run_figures.gates_of_runs({"a": summaries, "b": summaries[:3]}, ["plain", "a", "b"])
    found = rows(drawing)
    assert [(row["run"], row["gate"]) for row in found] == [
        *(("a", s.path) for s in summaries),
        *(("b", s.path) for s in summaries[:3]),
    ]
    for row, summary in zip(found, [*summaries, *summaries[:3]], strict=True):
        numbers = [float(value) for value in list(row.values())[3:]]
        assert numbers == pytest.approx([
            100 * summary.near_identity,
            100 * summary.between_images,
            100 * (summary.competition - 1),
        ])
    svg = drawing.svg()
    assert all(f'id="series-{run}-{panel}"' in svg for run in range(2) for panel in range(3))


def test_accuracy_with_gates_of_other_class_is_at_its_place() -> None:
    exchange = Exchange((0, 2), 0.9, torch.tensor([[0.8, 0.1], [0.25, 1.0]]))
    drawing = gater_figures.accuracy_by_gates(exchange, CLASSES)
    assert drawing.csv().splitlines()[1].startswith("ant,80.0")
    assert [float(row[CLASSES[2]]) for row in rows(drawing)] == pytest.approx([10, 100])
    assert "2 of 3 classes" in drawing.shows


def test_single_training_has_no_bands() -> None:
    assert "seeds" not in figures.curves({"a": [[0.1, 0.5]], "b": [[0.2, 0.4]]}).shows
    assert "seeds" in figures.curves({"a": [[0.1, 0.5], [0.2, 0.6]]}).shows


def test_classes_without_images_are_omitted(summaries: list[GateSummary]) -> None:
    seen = [
        dataclasses.replace(s, by_class=torch.cat([s.by_class, torch.full_like(s.by_class[:1], torch.nan)]))
        for s in summaries
    ]
    classes = (*CLASSES, "dodo")
    for drawing in (gate_figures.classes_by_depth(seen, classes), gate_figures.classes_by_channel(seen[0], classes)):
        assert {row["class"] for row in rows(drawing)} == set(CLASSES)
        assert "3 of 4 classes" in drawing.shows
    few = gate_figures.classes_by_channel(seen[0], classes, most_classes=2)
    assert len({row["class"] for row in rows(few)}) == 2


def test_names_are_drawn_literally(summaries: list[GateSummary]) -> None:
    drawing = gate_figures.classes_by_depth(summaries, CLASSES)
    written = [
        element.text for element in ElementTree.fromstring(drawing.svg()).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {name.strip() for name in written if name} >= set(CLASSES)
    assert all(f'id="legend-{number}"' in drawing.svg() for number in range(3))
    drawing.png()


def test_metric_draws_both_kinds_of_gate_around_identity() -> None:
    model, ((images, labels),) = net("se+gc:rd_ratio=1/4"), batches()
    found = list(gate_statistics(model, [(images, labels)], 3).values())
    assert {s.is_additive for s in found} == {True, False}
    _, axes = gate_figures.draw_values_by_depth(found)
    low, high = axes.get_ylim()
    lowest = min(float(s.edges[s.histogram.nonzero()[0]]) - s.neutral for s in found)
    assert lowest - 0.05 * (high - low) <= low <= lowest
    middles = [bars.lines[0].get_ydata()[0] for bars in axes.containers]
    assert middles == pytest.approx([s.average - s.neutral for s in found])


def test_additive_gates_are_drawn_around_zero() -> None:
    found = list(gate_statistics(net("gc:rd_ratio=1/4"), batches(), 3).values())
    drawing = gate_figures.values_by_depth(found)
    assert "the values that gates add to each channel" in drawing.shows
    assert "added / rms of the map" in drawing.svg()


def test_metric_plots_on_new_or_given_axes() -> None:
    model, ((images, _),) = net("gct"), batches()
    stats = GateStats(model)
    with GateRecorder(model) as recorder, torch.no_grad():
        model(images)
    stats.update(recorder.take())
    figure, axes = stats.plot()
    assert axes in figure.axes
    assert stats.plot(ax=axes)[1] is axes


@pytest.mark.parametrize(("parameter", "start"), [("alpha", 1.0), ("beta", 0.0), ("gamma", 0.0)])
def test_start_of_training_is_on_axis_for_any_range(parameter: str, start: float) -> None:
    drawing = gate_figures.parameter_by_depth(
        [("a.gct", torch.tensor([3.0, 3.1])), ("b.gct", torch.tensor([3.2]))], parameter
    )
    axes = drawing.figure.axes[0]
    low, high = axes.get_ylim()
    assert low < start < 3.2 < high
    assert any(line.get_ydata()[0] == start for line in axes.lines)
