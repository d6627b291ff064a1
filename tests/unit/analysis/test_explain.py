"""The page about runs, in a real browser: correct numbers, and missing parts reported."""

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser

from gatewise.analysis.explanation import explain_runs
from gatewise.cli import run
from gatewise.data import Images, load_dataset
from gatewise.data.decode import fit, picture_of, pixels_of
from gatewise.errors import DataError, InvalidValueError, StorageError
from gatewise.insertion.insert import gates_in
from gatewise.models.serialization import save_model
from gatewise.training import runs as opening
from gatewise.training import train
from support.browser import (
    CHROMIUM,
    browser,  # noqa: F401 - a fixture
    open_file,
)
from support.small_runs import DATASET, RECIPE

GATES = {"gct": "gct", "plain": "none", "attending": "gc:rd_ratio=1/4+nl", "gated": "gaternet:budget=0.5,gate_bias=0"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four short runs; tests only read it."""
    folder = tmp_path_factory.mktemp("runs")
    for name, gate in GATES.items():
        train(dataclasses.replace(RECIPE, gate=gate, epochs=2), folder / name, dataset=DATASET)
    return folder


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: str, *_: object) -> object:
        if source != "memory":
            raise DataError(f"data folder {source!r} does not exist")
        return DATASET

    monkeypatch.setattr("gatewise.data.load.load_dataset", load)


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatewise.data.load.load_dataset", lambda *_: DATASET)
        folder = tmp_path_factory.mktemp("page")
        yield explain_runs([runs / name for name in GATES], folder / "page.html", figures_in=folder / "figures")


def heads(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def test_each_kind_of_gate_has_its_sections(page: Path) -> None:
    assert heads(page) == [
        "Runs",
        "Validation accuracy while training",
        "Gates of the runs, layer by layer",
        *(
            f"gct: {part}"
            for part in ("parameters of gct by depth", "factors of gates by depth", "gates near the identity")
        ),
        "plain: no gates",
        *(f"attending: {part}" for part in ("values added by gates by depth", "gates near the identity", "attention")),
        "gated: which filters the gater opens",
        "How this was made",
    ]


def test_page_is_one_small_file_with_unique_ids(page: Path) -> None:
    text = page.read_text()
    assert page.stat().st_size < 6e6
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_numbers_equal_those_of_runs(page: Path, runs: Path) -> None:
    text = page.read_text()
    for name in GATES:
        metrics = json.loads((runs / name / "metrics.json").read_text())
        assert f">{100 * metrics['accuracy']:.2f}</td>" in text
        assert f">{metrics['parameters']:,}</td>" in text
    executed = json.loads((runs / "gated" / "metrics.json").read_text())["executed_macs"]
    assert f"{executed / 1e6:.2f} M executed" in text


def test_figures_are_kept_in_three_formats_on_request(page: Path) -> None:
    files = {file.name for file in (page.parent / "figures").iterdir()}
    names = {file.rpartition(".")[0] for file in files}
    assert {"curves", "gates_of_runs", "gamma-gct", "kinds-gated", "distances-attending"} <= names
    assert {f"{what}-factors-gct" for what in ("values", "competition", "dependence", "classes_by_depth")} <= names
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png", "csv")}


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_page_works_in_browser_without_network(browser: Browser, page: Path) -> None:
    opened = open_file(browser, page)
    figures = opened.page.locator("figure svg")
    assert figures.count() == len(list((page.parent / "figures").glob("*.svg")))
    curves = opened.page.locator("figure", has=opened.page.locator("[id=curves-series-0]"))
    curves.locator("[id=curves-series-0]").focus()
    assert curves.locator("output").inner_text().startswith("gct: ")
    legend = curves.locator("[id=curves-legend-0]")
    for shown in ("false", "true"):
        legend.press("Enter")
        assert legend.get_attribute("aria-pressed") == shown
        assert curves.locator("[id=curves-series-0]").is_visible() is (shown == "true")
    opened.page.set_viewport_size({"width": 400, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert (opened.requests, opened.complaints) == ([page.as_uri()], [])
    opened.page.context.close()


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_points_of_patterns_show_their_images(browser: Browser, page: Path) -> None:
    opened = open_file(browser, page)
    figure = opened.page.locator("figure", has=opened.page.locator(".thumbnail"))
    data = json.loads(figure.locator("script").inner_text())
    kept = list(csv.DictReader(io.StringIO((page.parent / "figures" / "patterns-gated.csv").read_text())))
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sheet"].partition(",")[2])))
    assert len(kept) == len(data["points"]) == 30
    for number, row in enumerate(kept):
        image = int(row["image"])
        assert data["labels"][number] == row["class"] == "abc"[int(DATASET.validation.labels[image])]
        y, x = (32 * part for part in divmod(number, data["columns"]))
        tile = pixels_of(sheet.crop((x, y, x + 32, y + 32))).double()
        expected = pixels_of(fit(DATASET.validation.picture(image), 32)).double()
        assert (tile - expected).abs().mean() < 12, "JPEG, which loses little"

    svg, thumbnail = figure.locator("svg").bounding_box(), figure.locator(".thumbnail")
    assert svg
    for series in range(3):
        marks = figure.locator(f"[id=patterns-gated-series-{series}] use").all()
        own = [point for point, of in zip(data["points"], data["series"], strict=True) if of == series]
        assert len(marks) == len(own) == 10
        for mark, (x, y) in zip(marks, own, strict=True):
            box = mark.bounding_box()
            assert box
            assert abs(box["x"] + box["width"] / 2 - svg["x"] - x * svg["width"]) < 2
            assert abs(box["y"] + box["height"] / 2 - svg["y"] - y * svg["height"]) < 2

    def hover(number: int) -> None:
        x, y = data["points"][number]
        figure.locator("svg").hover(position={"x": x * svg["width"], "y": y * svg["height"]})

    def is_shown() -> bool:
        return "shown" in (thumbnail.get_attribute("class") or "").split()

    hover(7)
    assert is_shown()
    assert figure.locator("output").inner_text() == data["labels"][7]
    row, column = divmod(7, data["columns"])
    at = thumbnail.evaluate("element => getComputedStyle(element).backgroundPosition")
    assert at == f"{-64 * column}px {-64 * row}px"
    figure.locator(f"[id=patterns-gated-legend-{data['series'][7]}]").press("Enter")
    figure.locator("svg").hover(position={"x": 1, "y": 1})
    assert not is_shown()
    hover(7)
    assert not is_shown() or figure.locator("output").inner_text() != data["labels"][7], "toggled away, so no picture"
    thumbnail.focus()
    read = []
    for _ in range(20):
        read.append(figure.locator("output").inner_text())
        thumbnail.press("ArrowRight")
    assert data["labels"][7] not in read
    assert len(set(read)) == 2
    thumbnail.press("ArrowLeft")
    assert read[0] in "abc"
    assert (opened.requests, opened.complaints) == ([page.as_uri()], [])
    opened.page.context.close()


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_marks_are_one_tab_stop_with_arrow_keys(browser: Browser, page: Path) -> None:
    opened = open_file(browser, page)
    figure = opened.page.locator("figure", has=opened.page.locator("[id=competition-factors-gct-layer-0]"))
    marks = figure.locator(".tip")
    assert marks.count() > 10
    assert figure.locator(".tip[tabindex='0']").count() == 1
    marks.nth(0).focus()
    first = figure.locator("output").inner_text()
    opened.page.keyboard.press("ArrowRight")
    assert figure.locator("output").inner_text() == marks.nth(1).locator("title").first.text_content() != first
    opened.page.keyboard.press("ArrowLeft")
    assert figure.locator("output").inner_text() == first
    opened.page.context.close()


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/x/gct/seed_0"], ["seed_0"]),
        (["/x/none/seed_0", "/x/gct/seed_0"], ["none", "gct"]),
        (["/x/gct/seed_0", "/x/gct/seed_1"], ["seed_0", "seed_1"]),
        (["/x/gct/seed_0", "/y/gct/seed_1", "/y/gct/seed_0"], ["x/gct/seed_0", "y/gct/seed_1", "y/gct/seed_0"]),
    ],
)
def test_runs_are_labelled_by_distinct_parts_of_their_paths(folders: list[str], names: list[str]) -> None:
    assert opening._names(folders) == names


def test_figure_names_are_unique_for_any_run_names() -> None:
    assert opening._slugs(["gct", "se"]) == ["gct", "se"]
    slugs = opening._slugs(["lr_0.1", "lr-0-1", "../../etc", "é"])
    assert len(set(slugs)) == 4
    assert all(re.fullmatch("[A-Za-z0-9-]+", slug) for slug in slugs)


def test_examples_are_of_different_classes(runs: Path) -> None:
    (run_,) = opening.open_runs([runs / "gct"])
    assert run_.examples(2)[0].shape == (2, 1, 8, 8)
    (found, labels), every = run_.examples(9), next(run_.batches())[0]
    assert torch.equal(found, every[:3]), "labels are 0, 1, 2, 0, ..."
    assert labels.tolist() == [0, 1, 2]


def test_runs_share_images(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("gatewise.data.load.load_dataset", lambda *arguments: asked.append(arguments) or DATASET)
    opening.open_runs([runs / "gct", runs / "plain"])
    assert len(asked) == 1


@pytest.mark.slow
def test_run_of_streamed_photographs_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewise.data.load.load_dataset", load_dataset)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            pixels = torch.randint(0, 256, (3, 20, 24), generator=generator, dtype=torch.uint8)
            file = tmp_path / "photographs" / split / f"class {number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture_of(pixels).save(file)
    recipe = dataclasses.replace(
        RECIPE, data=str(tmp_path / "photographs"), image_size=16, loading="stream", batch_size=6, epochs=1
    )
    train(dataclasses.replace(recipe, gate="gct+gaternet:budget=0.5,gate_bias=0"), tmp_path / "run")
    text = explain_runs([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "gates were shown 6 validation images" in text
    assert "Factors of gates by depth" in text
    assert "Which filters the gater opens" in text


def test_requested_images_are_shown(runs: Path, tmp_path: Path) -> None:
    for split, count in (("validation", 30), ("train", 48)):
        page = explain_runs([runs / "gated"], tmp_path / "page.html", split=split)
        assert f"gates were shown {count} {split} images" in page.read_text()
        assert f"open for at least 99.5 % of the {count} images" in page.read_text()


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_numbers_of_figure_can_be_read_and_sorted(browser: Browser, page: Path) -> None:
    opened = open_file(browser, page)
    figure = opened.page.locator("figure", has=opened.page.locator("[id=competition-factors-gct-layer-0]"))
    figure.locator("summary").press("Enter")
    figure.get_by_role("columnheader").filter(has_text="ratio").get_by_role("button").press("Enter")
    ratios = [float(cell) for cell in figure.locator("tbody td:last-child").all_inner_texts()]
    assert len(ratios) > 10
    assert ratios == sorted(ratios)
    opened.page.context.close()


METRICS = {
    "parameters": 1,
    "epochs": 1,
    "precision": "",
    "environment": {"hardware": ""},
    "images_per_second": 1,
}  # without a score


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", b"{}", "has no 'parameters'"),
        ("metrics.json", b"[]", "is not a JSON object"),
        ("metrics.json", json.dumps(METRICS).encode(), "has no 'accuracy'"),
        (
            "metrics.json",
            json.dumps({**METRICS, "score": "f1"}).encode(),
            "has no 'f1'",
        ),
        ("metrics.json", b'{"accuracy": 0.5', "is not valid JSON"),
        ("metrics.json", b"\xff\xfe", "is not UTF-8 text"),
        ("log.jsonl", b'{"epoch": 1}\n', "line 1: the content has no 'images_per_second', got 'epoch'"),
        (
            "log.jsonl",
            b'{"epoch": 1, "train_accuracy": 0.5, "images_per_second": 9}\n',
            "line 1: no number for 'validation_accuracy'",
        ),
        ("log.jsonl", b"\xff\n", "line 1: not valid JSON"),
        ("config.json", b"{}", "has no 'spec'"),
        ("config.json", None, "has no 'mean'"),
    ],
)
def test_damaged_files_of_run_are_one_line(
    runs: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    shutil.copytree(runs / "gct", tmp_path / "run")
    if content is None:
        config = json.loads((tmp_path / "run" / file).read_text())
        del config["mean"]
        content = json.dumps(config).encode()
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        explain_runs([tmp_path / "run"], tmp_path / "page.html")


def test_missing_images_are_reported_and_rest_is_shown(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object) -> None:
        raise DataError("data folder 'memory' does not exist")

    monkeypatch.setattr("gatewise.data.load.load_dataset", gone)
    page = explain_runs([runs / "gct"], tmp_path / "page.html")
    assert heads(page)[2:4] == ["Parameters of gct by depth", "Without images"]
    assert "Statistics that need images are omitted. data folder &#39;memory&#39; does not exist" in page.read_text()
    written = page.read_bytes()
    page.unlink()
    assert run(["explain", str(runs / "gct"), "--out", str(page)]) == 2
    out, err = capsys.readouterr()
    assert (out, page.read_bytes()) == (f"page: {page}\n", written)
    assert "the page has no images, and omits what needs them. data folder 'memory' does not exist" in err


def test_invalid_input_is_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "gct", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(DataError, match="is damaged"):
        explain_runs([tmp_path / "cut"], tmp_path / "page.html")
    with pytest.raises(InvalidValueError, match="the same run is given twice"):
        explain_runs([runs / "gct", runs / "gct"], tmp_path / "page.html")
    with pytest.raises(InvalidValueError, match="no run to explain"):
        explain_runs([], tmp_path / "page.html")
    larger = Images(torch.zeros(3, 1, 9, 9, dtype=torch.uint8), torch.arange(3))
    monkeypatch.setattr("gatewise.data.load.load_dataset", lambda *_: dataclasses.replace(DATASET, train=larger))
    with pytest.raises(DataError, match=r"memory has images of 9x9; the run in .* was trained with 8x8"):
        explain_runs([runs / "gct"], tmp_path / "page.html", data="larger")
    other = dataclasses.replace(DATASET, classes=("x", "y", "z"))
    monkeypatch.setattr("gatewise.data.load.load_dataset", lambda *_: other)
    assert run(["explain", str(runs / "gct"), "--data", "other", "--out", str(tmp_path / "page.html")]) == 2
    assert "Give the data it was trained with" in capsys.readouterr().err
    with pytest.raises(StorageError, match="is a folder; give the name of a file"):
        explain_runs([runs / "gct"], tmp_path)
    with pytest.raises(StorageError, match=r"log\.jsonl is not a folder"):
        explain_runs([runs / "gct"], tmp_path / "page.html", figures_in=runs / "gct" / "log.jsonl")
    with pytest.raises(InvalidValueError, match="split"):
        explain_runs([runs / "gct"], tmp_path / "page.html", split="test")  # type: ignore[arg-type]
    assert run(["explain", "nowhere", "--out", str(tmp_path / "page.html")]) == 2
    assert "run folder 'nowhere' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.extended
def test_runs_on_different_images_are_not_shown_side_by_side(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "plain", tmp_path / "elsewhere")
    recipe = opening.Recipe.load(tmp_path / "elsewhere" / "recipe.yaml")
    dataclasses.replace(recipe, data="other images").save(tmp_path / "elsewhere" / "recipe.yaml")
    page = explain_runs([runs / "gct", tmp_path / "elsewhere"], tmp_path / "page.html")
    text = page.read_text()
    assert "were trained and measured on different images" in text
    assert "other images" in text.partition("</table>")[0], "the table names each run's data"
    assert "Validation accuracy while training" not in text
    assert "accuracy_macs-" not in text
    assert "Validation accuracy while training" in explain_runs([runs / "gct", runs / "plain"], page).read_text()


def test_page_names_images_shown_to_gates(runs: Path, tmp_path: Path) -> None:
    text = explain_runs([runs / "gct"], tmp_path / "page.html").read_text()
    assert "memory, 2 epochs" in text
    assert "gates were shown 30 validation images of memory" in text


def test_comparison_rejected_with_alternative(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds a comparison; give its runs, for example .*/runs/\*/seed_0"):
        explain_runs([tmp_path], tmp_path / "page.html")


def test_nonfinite_weights_rejected_with_their_name(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "gct", tmp_path / "run")
    model, config = opening.load_model(tmp_path / "run")
    path, gate = next(iter(gates_in(model).items()))
    gate.gamma.data.flatten()[0] = torch.nan
    details = {key: value for key, value in config.items() if key not in {"spec", "sha256"}}
    save_model(tmp_path / "run", model, opening.ModelSpec.from_dict(config["spec"]), details)
    with pytest.raises(DataError, match=f"{path}.gamma holds values that are not finite"):
        explain_runs([tmp_path / "run"], tmp_path / "page.html")


def test_without_idle_gates_nothing_is_counted_again(runs: Path, tmp_path: Path) -> None:
    text = explain_runs([runs / "attending"], tmp_path / "page.html").read_text()
    assert ("None of the" in text) is not ("without these" in text)
