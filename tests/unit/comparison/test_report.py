"""The report in a real browser: shows the numbers, sorts, makes no requests, and escapes names."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from gatewise.analysis import drawing, figures
from gatewise.analysis.page import Page as Document
from gatewise.analysis.page import Section
from gatewise.analysis.run_figures import accuracy_against_macs
from gatewise.analysis.table import Cell, Table
from gatewise.comparison import compare, run_results
from gatewise.comparison import report as reporting
from gatewise.comparison import run as comparing
from gatewise.gates.spec import parse_gates
from gatewise.models.serialization import read_metrics, write_metrics
from gatewise.training import Recipe, Score
from support.browser import (
    CHROMIUM,
    Opened,
    browser,  # noqa: F401 - a fixture
    open_file,
)
from support.few_digits import first_digits

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

HOSTILE = "<script>document.title = 'taken'</script><img src='https://example.org/x.png'>\"'&amp;"
ACCURACY = {"none": [0.9, 0.8], "se": [0.95, 0.92], "gct:mode=l1@before_conv": [0.7, 0.2], "gc": [1.0, 0.99]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a comparison of four gates whose accuracies are set by hand."""
    out = tmp_path_factory.mktemp("report")
    small = first_digits(32)
    recipe = Recipe(data=f"somewhere/{HOSTILE}", epochs=1, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatewise.data.load.load_dataset", lambda *_: small)
        patch.setattr(run_results, "_ROUNDS", 2)
        patch.setattr(comparing, "training_speeds", lambda recipes, _: dict.fromkeys(recipes, 100.0))
        for other_tables in ("_further_scores", "_scores_by_class"):  # they would need other selectors
            patch.setattr(reporting, other_tables, lambda _: [])
        compare(recipe, [parse_gates(text) for text in ACCURACY], 2, out)
        for gates, values in ACCURACY.items():
            for seed, value in enumerate(values):
                folder = out / "runs" / gates.replace(":", "--").replace("@", "-") / f"seed_{seed}"
                write_metrics(folder, read_metrics(folder) | {"accuracy": value})
        compare(recipe, [parse_gates(text) for text in ACCURACY], 2, out)
    return out / "report.html"


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    opened = open_file(browser, report)
    yield opened
    opened.page.context.close()


def test_page_makes_no_requests_and_logs_no_errors(opened: Opened, report: Path) -> None:
    opened.head("accuracy").get_by_role("button").click()
    assert opened.requests == [report.as_uri()]
    assert opened.complaints == []


def test_answer_comes_before_its_figure(opened: Opened) -> None:
    children = opened.page.evaluate("[...document.querySelector('section').children].map(child => child.tagName)")
    assert children == ["H2", "P", "DIV"]
    assert opened.page.locator("section").first.locator("div > figure").count() == 1


def test_table_has_rows_of_comparison(opened: Opened, report: Path) -> None:
    results = json.loads((report.parent / "results.json").read_text())
    rows = opened.rows()
    assert opened.gates() == list(ACCURACY)
    assert [row[1].split(" ")[0] for row in rows] == ["85.00", "93.50", "45.00", "99.50"]
    assert [row[2].split(" ")[0] for row in rows] == ["-", "+8.50", "-40.00", "+14.50"]
    assert [row[6] for row in rows] == [f"{variant['parameters']:,}" for variant in results["variants"]]
    heads = [text.split("\n")[0] for text in opened.page.get_by_role("columnheader").all_inner_texts()]
    assert [heads[0], heads[1], heads[6]] == ["gates", "accuracy % [95 % interval]", "parameters"]


def test_click_on_header_sorts_ascending_then_descending(opened: Opened) -> None:
    head = opened.head("accuracy")
    upwards = ["gct:mode=l1@before_conv", "none", "se", "gc"]
    head.get_by_role("button").click()
    assert (opened.gates(), head.get_attribute("aria-sort")) == (upwards, "ascending")
    head.get_by_role("button").click()
    assert (opened.gates(), head.get_attribute("aria-sort")) == (upwards[::-1], "descending")
    head.get_by_role("button").click()
    assert (opened.gates(), head.get_attribute("aria-sort")) == (upwards, "ascending")


def test_numbers_are_sorted_numerically(browser: Browser, tmp_path: Path) -> None:
    rows = [[Cell(f"{number} ms", number)] for number in (9, 10, -1, 2.5, 100)]
    (tmp_path / "page.html").write_text(Document("t", "", [Section("s", table=Table(["latency"], rows))]).render())
    opened = open_file(browser, tmp_path / "page.html")
    opened.head("latency").get_by_role("button").click()
    assert opened.rows() == [["-1 ms"], ["2.5 ms"], ["9 ms"], ["10 ms"], ["100 ms"]]
    opened.page.context.close()


def test_each_column_is_sorted_by_its_values(opened: Opened) -> None:
    parameters = {row[0]: int(row[6].replace(",", "")) for row in opened.rows()}
    opened.head("parameters").get_by_role("button").click()
    assert opened.gates() == sorted(parameters, key=parameters.get)
    opened.head("gates").get_by_role("button").click()
    assert opened.gates() == sorted(ACCURACY)
    assert opened.page.locator("th[aria-sort]").count() == 1


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_table_can_be_sorted_by_keyboard(opened: Opened, key: str) -> None:
    opened.head("gates").get_by_role("button").focus()
    opened.page.keyboard.press("Tab")
    focused = opened.page.evaluate("document.activeElement.textContent")
    assert focused.startswith("accuracy")
    opened.page.keyboard.press(key)
    assert opened.gates() == ["gct:mode=l1@before_conv", "none", "se", "gc"]
    outline = opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_both_figures_are_visible_and_name_every_gate(opened: Opened) -> None:
    drawn = opened.page.locator("figure svg")
    assert drawn.count() == 2
    for figure in drawn.all():
        assert figure.is_visible()
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 150
        words = figure.locator("text").all_text_contents()
        assert set(ACCURACY) <= {word.strip() for word in words}


def test_axes_have_integer_epochs_and_valid_accuracies(opened: Opened) -> None:
    points, curves = opened.page.locator("figure svg").all()
    assert curves.locator("[id^=curves-xtick] text").all_text_contents() == ["1"]
    for figure in (curves, points):
        labels = figure.locator("[id*=-ytick] text").all_text_contents()
        assert len(labels) > 2
        assert all(0 <= float(label) <= 100 for label in labels)  # the interval of gct reaches from -273 to 363


def test_page_says_how_it_was_made(opened: Opened) -> None:
    facts = dict(
        zip(opened.page.locator("dt").all_inner_texts(), opened.page.locator("dd").all_inner_texts(), strict=True)
    )
    assert facts["precision"] == "fp32"
    assert "epochs=1" in facts["recipe"]
    assert "thread" in facts["hardware"]
    assert "2 seeds, 32 validation images; accuracy after the last epoch" in opened.page.locator(".lead").inner_text()


def test_every_column_is_visible_on_wide_screen(browser: Browser, report: Path) -> None:
    opened = open_file(browser, report)
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    assert opened.page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.scroll'))") == 0
    opened.page.context.close()


def test_flags_of_the_command_are_not_broken(browser: Browser, report: Path) -> None:
    opened = open_file(browser, report)
    opened.page.set_viewport_size({"width": 500, "height": 900})
    command = opened.page.locator("dt:text-is('command') + dd")
    assert command.inner_text().startswith("gatewise compare --data ")
    heights = {flag.bounding_box()["height"] for flag in command.locator(".flag").all()}
    assert len(heights) == 1, "a flag has two lines"
    assert command.locator(".flag").count() > 3
    opened.page.context.close()


def test_page_and_figures_fit_narrow_screen(browser: Browser, report: Path) -> None:
    opened = open_file(browser, report)
    opened.page.set_viewport_size({"width": 400, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    opened.page.locator("tbody").first.evaluate(
        "(body, name) => { body.rows[0].cells[0].textContent = name; body.rows[0].cells[0].className = 'long' }",
        "gaternet:sites=inner,budget=0.5,gate_bias=0,group_size=16",
    )
    first = opened.page.locator("tbody tr").first.locator("td").first.bounding_box()
    assert first is not None
    assert first["width"] < 250, "the names, which stay in place, leave room for the other columns"
    pictures = "[...document.querySelectorAll('.picture')].map(e => e.scrollWidth - e.clientWidth)"
    assert opened.page.evaluate(pictures) == [0, 0]
    opened.page.context.close()


def test_figures_are_side_by_side_where_there_is_room(browser: Browser, tmp_path: Path) -> None:
    drawn = figures.curves({"a": [[0.7, 0.8]]})
    wide = dataclasses.replace(figures.curves({"b": [[0.7, 0.8]]}), name="wide")
    wide.figure.set_figwidth(9)
    sections = [
        Section("two", drawings=[drawn, dataclasses.replace(drawn, name="other"), wide]),
        Section("one", drawings=[dataclasses.replace(drawn, name="alone")]),
    ]
    (tmp_path / "page.html").write_text(Document("t", "l", sections).render())
    opened = open_file(browser, tmp_path / "page.html")

    def box(selector: str) -> dict[str, float]:
        found = opened.page.locator(selector).bounding_box()
        assert found is not None
        return dict(found)

    def lefts() -> list[float]:
        return [box(f"figure:has([id={name}-figure_1])")["x"] for name in ("curves", "other", "wide")]

    first, second, third = lefts()
    assert first == third < second
    picture, caption = box(".alone .picture"), box(".alone figcaption")
    assert caption["x"] >= picture["x"] + picture["width"]
    assert caption["y"] < picture["y"] + picture["height"]
    opened.page.set_viewport_size({"width": 1000, "height": 900})
    assert len(set(lefts())) == 1
    assert box(".alone figcaption")["y"] >= box(".alone .picture")["y"] + box(".alone .picture")["height"]
    opened.page.context.close()


def test_hostile_name_is_escaped(opened: Opened) -> None:
    assert opened.page.title() == f"Gates compared on {Path(HOSTILE).name}"
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 1


def test_hostile_text_is_escaped_everywhere(browser: Browser, tmp_path: Path) -> None:
    table = Table([HOSTILE], [[Cell(HOSTILE, HOSTILE)], [Cell("b", "b")]])
    drawn = figures.curves({HOSTILE: [[0.1, 0.2]]})
    points = figures.accuracy_against_latency({HOSTILE: (1.0, 0.5, None, None)})
    sections = [Section(HOSTILE, HOSTILE, table), Section("figures", drawings=[drawn, points])]
    (tmp_path / "page.html").write_text(Document(HOSTILE, HOSTILE, sections, {HOSTILE: HOSTILE}).render())
    opened = open_file(browser, tmp_path / "page.html")
    page = opened.page
    assert page.title() == HOSTILE
    assert (page.locator("img").count(), page.locator("script").count(), len(opened.requests)) == (0, 1, 1)
    shown = [page.locator(name).first.text_content() for name in ("h1", ".lead", "h2", "section p", "td", "dt", "dd")]
    assert shown == [HOSTILE] * 7
    for figure in page.locator("figure svg").all():
        assert HOSTILE in " ".join(line.strip() for line in figure.locator("text").all_text_contents())
    page.context.close()


def test_variants_have_distinct_styles() -> None:
    assert len({drawing.series_style(index) for index in range(80)}) == 80
    assert len({drawing.series_style(index)[0] for index in range(10)}) == 10


def test_second_half_of_training_has_scale_of_its_own() -> None:
    seeds = [0.1, 0.2, 0.5, 0.81, 0.84, 0.85]
    (late,) = figures.late_curves({"a": [seeds], "b": [seeds]})
    axes = late.figure.axes[0]
    assert [(row[1].order, row[2].order) for row in late.table.rows[:3]] == [(4, 81.0), (5, 84.0), (6, 85.0)]
    assert axes.get_ylim()[0] > 80
    assert late.shows == "The same from epoch 4 on, with a scale of its own."
    assert late.tips["series-0"] == "a: 85.00 % after epoch 6, best 85.00 %"
    assert figures.late_curves({"a": [seeds[:5]]}) == [], "too few epochs"
    assert figures.late_curves({"a": [[0.1, 0.2, 0.3, 0.4, 0.6, 0.9]]}) == [], "it is seen in all epochs"
    assert figures.late_curves({"a": [[0.5] * 6]}) == [], "all are equal"


def test_score_whose_lower_values_are_better_is_drawn_in_its_unit() -> None:
    distance = Score("distance", "mean distance", is_fraction=False, higher_is_better=False)
    drawn = figures.curves({"a": [[3.0, 0.5, 0.75]]}, distance)
    assert drawn.table is not None
    assert drawn.table.columns == ["variant", "epoch", "mean", "lowest", "highest"]
    assert [row[2].text for row in drawn.table.rows] == ["3.0000", "0.5000", "0.7500"]
    assert [row[1].text for row in drawn.table.rows] == ["1", "2", "3"]
    assert drawn.tips == {"series-0": "a: 0.75 after epoch 3, best 0.50"}
    assert drawn.figure.axes[0].get_ylim()[1] > 3.0
    assert drawn.figure.axes[0].get_ylabel() == "validation mean distance"
    assert drawn.look_for == "A line that still falls at the end: more epochs may help."
    two = figures.curves({"a": [[3.0, 0.5]], "b": [[2.0, 0.4]]}, distance)
    assert two.look_for.startswith("Which line is lowest after the last epoch")
    points = figures.accuracy_against_latency({"a": (1.0, 2.5, 2.0, 3.0)}, distance)
    assert points.look_for == "Variants below and to the left of others: better and faster."
    assert points.tips == {"series-0": "a: 2.500, 1.00 ms"}


def test_rival_has_colour_of_its_gates_and_is_joined_to_them() -> None:
    points = {"none": (1.0, 0.8, None, None), "se": (2.0, 0.9, None, None), "wide": (2.1, 0.85, None, None)}
    drawn = figures.accuracy_against_latency(points, rivals={"wide": "se"})
    (joined,) = [line for line in drawn.figure.axes[0].lines if line.get_linestyle() == ":"]
    assert joined.get_xdata().tolist() == [2.1, 2.0]
    assert joined.get_ydata().tolist() == [85.0, 90.0]
    none, se, wide = [line for line in drawn.figure.axes[0].lines if line is not joined and len(line.get_xdata()) == 1]
    assert wide.get_color() == se.get_color() != none.get_color()
    assert (wide.get_markerfacecolor(), se.get_markerfacecolor()) == ("none", se.get_color())
    assert drawn.shows.endswith("Hollow: a network without gates that costs as much as the gates it is joined to.")
    assert "Hollow" not in figures.accuracy_against_latency(points).shows


def test_caption_says_what_intervals_are_over() -> None:
    def results(*over: str | None) -> dict[str, Any]:
        rows = [
            {
                "gates": str(number),
                "accuracy": {"mean": 0.5, "low": low, "high": low, **({"over": what} if what else {})},
                "latency_ms": {"1": {"median": 1.0}},
            }
            for number, what in enumerate(over)
            for low in [None if what == "" else 0.5]
        ]
        return {"score": "accuracy", "variants": rows}

    for over, expected in (
        ((None, None), "over seeds."),
        (("images", "images"), "over images."),
        (("", "images"), "over images."),
        ((None, "images"), "over seeds or images."),
    ):
        (drawn,) = reporting.draw_costs(results(*over))
        assert drawn.shows.endswith(f"bars are 95 % intervals {expected}")


@pytest.mark.parametrize("costs", [(40.812864,), (40.812864, 40.8128641), (0.0131,), (40.8, 123456.7)])
def test_axis_of_costs_has_short_numbers(costs: tuple[float, ...]) -> None:
    for drawn in (
        accuracy_against_macs({str(cost): (cost, 0.5) for cost in costs}),
        figures.accuracy_against_latency({str(cost): (cost, 0.5, 0.4, 0.6) for cost in costs}),
    ):
        axes = drawn.figure.axes[0]
        low, high = axes.get_xlim()
        assert low < min(costs) <= max(costs) < high
        assert all(len(tick.get_text()) <= 7 for tick in axes.get_xticklabels())


def test_caption_names_distinguishing_marks() -> None:
    drawn = figures.curves({"a": [[0.7, 0.8]]})
    text = Document("t", "l", [Section("s", drawings=[drawn, dataclasses.replace(drawn, look_for="")])]).render()
    assert f"{drawn.shows} <strong>What to look for:</strong> {drawn.look_for}</figcaption>" in text
    assert f"<figcaption>{drawn.shows}</figcaption>" in text


def test_scores_by_class_have_a_row_for_each_class() -> None:
    """Twelve percent of mIoU was shown without a word about seven classes that were never found."""
    scores = {"none": {"iou_by_class": {"sky": 0.5, "road": 0.0}}, "gct": {"iou_by_class": {"road": 0.25, "car": 1.0}}}
    variants = [{"gates": gates, "scores": of} for gates, of in scores.items()]
    (section,) = reporting._scores_by_class({"variants": variants})
    assert (section.title, section.table and section.table.columns) == ("IoU by class", ["class", "none", "gct"])
    assert section.table is not None
    assert [[cell.text for cell in row] for row in section.table.rows] == [
        ["sky", "50.00", "-"],
        ["road", "0.00", "25.00"],
        ["car", "-", "100.00"],
    ]
    assert reporting._scores_by_class({"variants": [{"gates": "none"}, {"gates": "gct"}]}) == []
    many = {f"class {number}": 1.0 for number in range(103)}
    (section,) = reporting._scores_by_class({"variants": [{"gates": "none", "scores": {"recall_by_class": many}}]})
    assert section.text == "In %, means over seeds. results.json also has the other 3 classes."
