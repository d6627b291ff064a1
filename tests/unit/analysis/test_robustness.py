"""Scores on corrupted images, with made-up corruptions: kept with the run, the same images for all."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gatewise.analysis import robustness
from gatewise.analysis.robustness import corruptions_table, score_corruptions, summarised
from gatewise.comparison import compare, run_results
from gatewise.comparison.rival_rows import RivalRows
from gatewise.data.corruptions import CORRUPTIONS
from gatewise.errors import InvalidValueError
from gatewise.gates.spec import parse_gates_list
from gatewise.training import Progress, score_named
from gatewise.training.runs import Run
from support.few_digits import QUICK, few_digits, few_rounds, first_digits  # noqa: F401 - fixtures

TINY = dataclasses.replace(QUICK, model="resnet20_wider:parameters=3000")


def darken(patch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Corrupt by darkening, without the package; return what is corrupted."""
    made: list[tuple[str, int, int]] = []

    def darkened(pixels: Tensor, corruption: str, strength: int, number: int) -> Tensor:
        made.append((corruption, strength, number))
        return pixels // (1 + strength)

    patch.setattr(robustness, "corrupted", darkened)
    patch.setattr(robustness, "IMAGES", 20)
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    return darken(monkeypatch)


class Compared(NamedTuple):
    out: Path
    results: dict[str, Any]
    calls: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def original(few_rounds: None, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Compare two networks once, for all tests, which only read it."""
    out, small = tmp_path_factory.mktemp("corruptions"), first_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatewise.data.load.load_dataset", lambda *_: small)
        made = darken(patch)
        return Compared(out, compare(TINY, parse_gates_list("none,se"), 2, out, corruptions=True), made)


@pytest.fixture
def compared(original: Compared, few_digits: None, tmp_path: Path) -> Path:
    """Return a copy of the comparison's folder."""
    return shutil.copytree(original.out, tmp_path / "copy")


@pytest.mark.extended
def test_comparison_on_corrupted_images(original: Compared) -> None:
    out, results, calls = original
    assert len(calls) == 15 * 5 * 20 + 2  # once for all four networks, and two checks of what can be corrupted
    expected = ["--corruptions", "--workers", "0", "--out", str(out)]
    assert shlex.split(results["training"]["command"])[-5:] == expected
    rows = {variant["gates"]: variant["corruptions"] for variant in results["variants"]}
    for name, row in rows.items():
        assert list(row["scores"]) == list(CORRUPTIONS)
        kept = [json.loads((out / "runs" / name / f"seed_{seed}/corruptions.json").read_text()) for seed in range(2)]
        assert row["values"] == [summarised(one)["mean"] for one in kept]
        assert row["mean"] == pytest.approx(sum(row["values"]) / 2)
        assert row["scores"]["fog"][4] == pytest.approx(sum(one["scores"]["fog"][4] for one in kept) / 2)
        assert row["images"] == 20
    expected = [one - base for one, base in zip(rows["se"]["values"], rows["none"]["values"], strict=True)]
    assert rows["se"]["difference"]["mean"] == pytest.approx(sum(expected) / 2)
    assert rows["se"]["verdict"] in {"better", "worse", "no difference shown"}
    assert "difference" not in rows["none"]
    page = (out / "report.html").read_text()
    assert "Corrupted images" in page
    assert "elastic_transform (digital)" in page


@pytest.mark.parametrize(("level", "verdict"), [(0.05, "better"), (1e-6, "no difference shown")])
def test_verdicts_use_the_level_of_the_comparison(monkeypatch: pytest.MonkeyPatch, level: float, verdict: str) -> None:
    monkeypatch.setattr(run_results.Run, "open", lambda value: value)
    monkeypatch.setattr(
        run_results,
        "score_corruptions",
        lambda values, _: [
            {"images": 9, "clean": value, "scores": {name: [value] * 5 for name in CORRUPTIONS}} for value in values
        ],
    )
    runs: Any = {"none": [0.50, 0.51, 0.52], "se": [0.55, 0.565, 0.57]}
    results: dict[str, Any] = {"baseline": "none", "level": level, "variants": [{"gates": name} for name in runs]}
    run_results.add_corruptions(results, runs, RivalRows(list(runs), {}), score_named("accuracy"), Progress(quiet=True))
    assert results["variants"][1]["corruptions"]["verdict"] == verdict


@pytest.mark.extended
@pytest.mark.usefixtures("calls")
def test_scores_are_those_of_the_corrupted_images(compared: Path) -> None:
    run = Run.open(compared / "runs/se/seed_1")
    (found,) = score_corruptions([run])
    pixels, labels = first_digits().validation.pixels, first_digits().validation.labels
    chosen = robustness.evenly_spaced(len(pixels), 20)
    mean, std = (torch.tensor(run.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    for strength, value in ((0, found["clean"]), (3, found["scores"]["snow"][2])):
        with torch.no_grad():
            logits = run.model(((pixels[chosen] // (1 + strength)).float() - mean) / std)
        assert value == pytest.approx(float((logits.argmax(1) == labels[chosen]).float().mean()))


@pytest.mark.extended
def test_kept_scores_are_used_while_the_weights_are_the_same(compared: Path, calls: list[tuple[str, int, int]]) -> None:
    run = Run.open(compared / "runs/se/seed_1")
    made = len(calls)
    score_corruptions([run])
    assert len(calls) == made
    file = run.folder / "corruptions.json"
    file.write_text(file.read_text().replace(run.config["sha256"], "0" * 64))
    score_corruptions([run])
    assert len(calls) == made + 15 * 5 * 20 + 1


@pytest.mark.extended
def test_masks_do_not_fit_corrupted_images(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(compared / "runs/none/seed_0")
    (run.folder / "corruptions.json").unlink()
    monkeypatch.setattr(type(run.task), "class_per_pixel", True)
    with pytest.raises(InvalidValueError, match="masks would not fit"):
        score_corruptions([run])


def test_table_has_a_row_per_corruption() -> None:
    scores = {name: [0.5] * 5 for name in CORRUPTIONS}
    found = {"gct": {"clean": 0.75, **summarised({"scores": scores})}}
    table = corruptions_table(found, score_named("accuracy"))
    assert [row[0].text for row in table.rows][:3] == ["none", "mean", "gaussian_noise (noise)"]
    assert [row[1].text for row in table.rows][:3] == ["75.00", "50.00", "50.00"]
    assert len(table.rows) == 17
