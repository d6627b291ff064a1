"""`gatewise judge`: tables of scores, with a row for each training or each image, and runs without their weights."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

import gatewise as gw
from gatewise.cli import run as command
from gatewise.comparison.rivals import Rival
from gatewise.core.files import write_record
from gatewise.core.run_files import folder_name
from gatewise.errors import DataError, InvalidValueError
from gatewise.models.serialization import write_metrics

KEPT = Path(__file__).parents[3] / "docs/results/cifar10-four-gates"
NONE, GCT = [90.0, 90.2, 89.9, 90.1], [91.1, 91.2, 91.0, 91.3]
PLAIN = "variant,seed,top1\n" + "".join(
    f"{name},{seed},{value}\n" for name, values in (("none", NONE), ("gct", GCT)) for seed, value in enumerate(values)
)


def table(tmp_path: Path, text: str, name: str = "scores.csv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def variants(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["gates"]: row for row in results["variants"]}


def test_table_is_judged_as_a_comparison(tmp_path: Path) -> None:
    results = gw.judge(table(tmp_path, PLAIN), unit="%", out=tmp_path / "judged")
    gct, expected = variants(results)["gct"], stats.ttest_rel(GCT, NONE)
    assert gct["score"]["values"] == GCT
    assert gct["difference"]["mean"] == pytest.approx(1.1)
    assert gct["difference"]["p"] == pytest.approx(expected.pvalue)
    assert gct["verdict"] == "better"
    assert results["summary"][0].startswith("Use gct: its top1 is 1.10 points higher than that of none (95 % interval")
    assert json.loads((tmp_path / "judged/results.json").read_text()) == results
    assert results["summary"][0] in (tmp_path / "judged/report.html").read_text()


def test_results_of_a_comparison_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "all/runs").mkdir(parents=True)
    (tmp_path / "all/results.json").write_text("{}")
    with pytest.raises(InvalidValueError, match=r"all contains a comparison\. Choose another --out"):
        gw.judge(table(tmp_path, PLAIN), out=tmp_path / "all")
    assert (tmp_path / "all/results.json").read_text() == "{}"


def test_seeds_are_named_by_what_lacks_them(tmp_path: Path) -> None:
    results = gw.judge(table(tmp_path, PLAIN + "se,0,91\nse,1.0,92\n"), unit="%")
    assert results["seeds"] == 2
    assert results["notes"] == ["left out: seeds 2 and 3, which se lacks"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN + ",4,91\n", "scores.csv, row 10: the variant is missing. Add it, or remove the row."),
        (PLAIN + "gct,,91\n", "scores.csv, row 10: the seed is missing"),
        (PLAIN + "\n\ngct,0,91\n", "scores.csv, row 12: gct, seed 0 is there twice"),
        (PLAIN + "\n\ngct,9\n", "scores.csv, row 12: 2 cells, the header has 3"),
        ("variant,seed,top1\n", "has no rows; expected a header and at least one row"),
    ],
)
def test_row_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gw.judge(table(tmp_path, text))


def test_tables_as_other_programs_write_them(tmp_path: Path) -> None:
    expected = variants(gw.judge(table(tmp_path, PLAIN), baseline="none"))
    objects = [dict(zip(("variant", "seed", "top1"), line.split(","), strict=True)) for line in PLAIN.split()[1:]]
    for name, text in (
        ("excel.csv", "sep=;\n" + PLAIN.replace(",", ";")),
        ("blank.csv", "\n\n" + PLAIN),
        ("blank.jsonl", "\n\n".join(map(json.dumps, objects)) + "\n\n"),
        ("list.json", json.dumps(objects, indent=2)),
        ("lines.json", "\n".join(map(json.dumps, objects))),
    ):
        assert variants(gw.judge(table(tmp_path, text, name), baseline="none")) == expected, name


def test_seeds_that_change_nothing_are_said(tmp_path: Path) -> None:
    same = "variant,seed,top1\n" + "".join(
        f"{name},{seed},{90 + (name == 'gct')}\n" for name in ("none", "gct") for seed in range(3)
    )
    said = "gct cannot be tested: no score changes with the seed. Check that the trainings use it."
    assert said in gw.judge(table(tmp_path, same), unit="%")["summary"]
    shifted = PLAIN.partition("gct")[0] + "".join(f"gct,{seed},{value + 1}\n" for seed, value in enumerate(NONE))
    summary = gw.judge(table(tmp_path, shifted.replace("90.2", "90.5").replace("91.2", "91.5")), unit="%")["summary"]
    assert said not in summary


def test_kept_runs_that_cannot_be_judged_are_named(tmp_path: Path) -> None:
    kept = shutil.copytree(KEPT, tmp_path / "kept")
    (kept / "runs/gc/seed_1/metrics.json").unlink()
    notes = gw.judge(kept)["notes"]
    assert f"left out, since they have no metrics.json: {kept}/runs/gc/seed_1" in notes
    assert any(note.startswith("left out: seed 1, which gc lacks") for note in notes)
    log = kept / "runs/se/seed_0/log.jsonl"
    log.write_text(log.read_text().replace("validation_accuracy", "accuracy"))
    with pytest.raises(DataError, match=r"se/seed_0/log\.jsonl, line 1 has no validation_accuracy"):
        gw.judge(kept)


def test_rows_may_come_in_any_order_and_format(tmp_path: Path) -> None:
    lines = [dict(zip(("variant", "seed", "top1"), line.split(","), strict=True)) for line in PLAIN.split()[1:]]
    lines = [json.dumps({**line, "top1": float(line["top1"]), "seed": int(line["seed"])}) for line in lines[::-1]]
    first = gw.judge(table(tmp_path, PLAIN), baseline="none")
    second = gw.judge(table(tmp_path, "\n".join(lines), "scores.jsonl"), baseline="none")
    assert variants(first)["gct"]["difference"]["mean"] == pytest.approx(variants(second)["gct"]["difference"]["mean"])
    assert variants(first)["gct"]["p_holm"] == pytest.approx(variants(second)["gct"]["p_holm"])


def test_direction_and_baseline_can_be_chosen(tmp_path: Path) -> None:
    file = table(tmp_path, PLAIN)
    assert variants(gw.judge(file, lower_is_better=True))["gct"]["verdict"] == "worse"
    assert variants(gw.judge(file, baseline="gct"))["none"]["verdict"] == "worse"
    for chosen in ("none", "gct"):
        assert gw.judge(file, baseline=chosen)["variants"][0]["gates"] == chosen, "the baseline is the first row"
    with pytest.raises(InvalidValueError, match="unknown baseline 'gtc'"):
        gw.judge(file, baseline="gtc")


def test_percentages_have_intervals_within_their_limits(tmp_path: Path) -> None:
    file = table(tmp_path, "variant,seed,score\na,0,99.5\na,1,97\nb,0,100\nb,1,100\n")
    rows = variants(gw.judge(file, unit="%"))
    assert 0 < rows["a"]["score"]["low"] < 97 < 99.5 < rows["a"]["score"]["high"] < 100
    assert (rows["b"]["score"]["low"], rows["b"]["score"]["high"]) == (None, None)
    assert variants(gw.judge(file))["a"]["score"]["high"] > 100
    with pytest.raises(DataError, match=r"row 3: expected a score from 0 to 100 %, got 101"):
        gw.judge(table(tmp_path, "variant,seed,score\na,0,99\nb,0,101\n"), unit="%")


def test_rows_of_images(tmp_path: Path) -> None:
    right = {"none": [[1, 1, 0, 0, 1], [1, 0, 0, 0, 1]], "gct": [[1, 1, 1, 0, 1], [1, 1, 1, 0, 1]]}
    rows = [
        f"{name},{seed},{image},{value}"
        for name, of_seeds in right.items()
        for seed, values in enumerate(of_seeds)
        for image, value in enumerate(values)
    ]
    results = gw.judge(table(tmp_path, "\n".join(["variant,seed,image,correct", *rows])))
    found = variants(results)
    assert found["none"]["accuracy"]["values"] == pytest.approx([0.6, 0.4])
    assert found["gct"]["difference_over_images"]["mean"] == pytest.approx(0.3)
    assert found["gct"]["accuracy"]["over"] == "images", "seeds that agree are not exact"
    assert 0 < found["gct"]["accuracy"]["low"] < 0.8 < found["gct"]["accuracy"]["high"] < 1
    with pytest.raises(DataError, match="gct, seed 1 has other images than none, seed 0: 1 are in one of both"):
        gw.judge(table(tmp_path, "\n".join(["variant,seed,image,correct", *rows[:-1]])))


@pytest.mark.parametrize("unit", ["", "%"])
def test_right_answers_of_images_are_shown_in_percent(tmp_path: Path, unit: str) -> None:
    """With --unit %, two of three were 0.67 %."""
    rows = [f"a,{seed},{image},{image > 0}" for seed in range(2) for image in range(3)]
    gw.judge(table(tmp_path, "\n".join(["variant,seed,image,correct", *rows])), unit=unit, out=tmp_path / "judged")
    assert "| 66.67 [" in (tmp_path / "judged/results.md").read_text()


@pytest.mark.parametrize("unit", ["", "%"])
def test_wrong_answers_of_images_are_better_if_fewer(tmp_path: Path, unit: str) -> None:
    """The better network was called the worse one, and errors were shown as accuracy."""
    rows = [f"{name},{seed},{image},{image < wrong}" for name, wrong in (("none", 6), ("gct", 2))
            for seed in range(3) for image in range(8 + seed)[:8]]  # fmt: skip
    file = table(tmp_path, "\n".join(["variant,seed,image,error", *rows]))
    results = gw.judge(file, unit=unit, lower_is_better=True, out=tmp_path / "judged")
    found = variants(results)
    assert found["none"]["score"]["values"] == [0.75] * 3, "True is 1"
    assert found["none"]["score"]["over"] == "images"
    assert found["gct"]["difference_over_images"]["mean"] == pytest.approx(-0.5)
    assert results["given_score"] == {"title": "error", "unit": "", "higher_is_better": False, "is_fraction": True}
    assert "| 75.00 [" in (tmp_path / "judged/results.md").read_text()
    noisy = "variant,seed,image,error\na,0,x,0\na,0,y,0\na,1,x,1\na,1,y,0\nb,0,x,1\nb,0,y,1\nb,1,x,1\nb,1,y,0\n"
    assert gw.judge(table(tmp_path, noisy), lower_is_better=True, baseline="b")["summary"][0] == (
        "Use b: a was not shown to be better: its error is 50.00 points lower (95 % interval -100.00 to +100.00)."
    )


def test_scores_of_any_size_are_tested_and_shown(tmp_path: Path) -> None:
    """Errors of 3.0e-6 and 1.5e-6 were 0.0000, with equal differences that cannot be tested."""
    noise = [0.0, 1e-7, -1e-7, 2e-7, 0.5e-7]
    rows = [f"{name},{seed},{error + sign * more}" for name, error, sign in (("none", 3e-6, 1), ("gct", 1.5e-6, -1))
            for seed, more in enumerate(noise)]  # fmt: skip
    results = gw.judge(table(tmp_path, "\n".join(["variant,seed,mse", *rows])), lower_is_better=True)
    assert variants(results)["gct"]["verdict"] == "better"
    assert results["summary"][0].startswith(
        "Use gct: its mse is 1.6e-06 lower than that of none (95 % interval -1.88e-06 to -1.32e-06, 5 seeds, p = "
    )


def test_failed_trainings_and_missing_seeds_are_said(tmp_path: Path) -> None:
    text = PLAIN + "none,7,90\nse,0,91\nse,1,\nse,2,nan\nse,3,91\n"
    results = gw.judge(table(tmp_path, text), unit="%")
    assert results["failed"] == {"se": "seed 1: no score"}
    assert list(variants(results)) == ["none", "gct"]
    assert results["notes"] == ["left out: seed 7, which gct lacks"]
    assert results["seeds"] == 4
    assert results["summary"][-1] == "se failed and is left out (seed 1: no score)."


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("model,seed,score\na,0,1\n", "has no column 'variant'; expected variant, seed, score"),
        ("variant,score\na,1\n", "has no column 'seed'"),
        ("variant,seed,top1,top5\na,0,1,2\n", "which column is the score"),
        ("variant,seed\na,0\n", "which column is the score"),
        ("variant,seed,score\na,0,high\n", r"row 2: expected a number as score, got 'high'"),
        ("variant,seed,score\na,0,1\na,0,2\n", r"row 3: a, seed 0 is there twice"),
        ("variant,seed,score\na,0,1\nb,1,2\n", "no seed is there for all variants, .*: a has 0; b has 1"),
        ("variant,seed,score\na,0,\n", "no variant has a score for each of its seeds"),
        ("variant,seed,score\nnone,0,\na,0,1\n", "the baseline none has a training without a score"),
    ],
)
def test_table_that_cannot_be_judged(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises((DataError, InvalidValueError), match=error):
        gw.judge(table(tmp_path, text))


def test_command_prints_the_answer_before_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path, PLAIN)
    assert command(["judge", str(file), "--unit", "%", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Use gct: its top1 is 1.10 points higher than that of none")
    assert printed.index("Use gct") < printed.index("verdict (Holm)") < printed.index("report.html")
    assert "MACs" not in printed
    assert command(["judge", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gw.judge(file)


# Runs without weights

ENVIRONMENT = {"hardware": "a processor", "torch": "2.14", "gatewise": "0"}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def kept_run(folder: Path, wrong: int, *, precision: str = "fp32", tested: float = 0.5) -> None:
    """Write what is kept of a run: metrics, log and predictions, of which the first `wrong` are wrong."""
    folder.mkdir(parents=True)
    predictions = LABELS.clone()
    predictions[:wrong] = (predictions[:wrong] + 1) % 3
    accuracy = 1 - wrong / len(LABELS)
    log = {"epoch": 1, "images_per_second": 10.0, "validation_accuracy": accuracy}
    (folder / "log.jsonl").write_text(json.dumps(log) + "\n")
    save_file({"predictions": predictions, "labels": LABELS}, folder / "predictions.safetensors")
    metrics = {"score": "accuracy", "accuracy": accuracy, "parameters": 10, "epochs": 1, "precision": precision}
    write_metrics(
        folder, {**metrics, "images_per_second": 10.0, "environment": ENVIRONMENT, "test": {"accuracy": tested}}
    )


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    for name, wrong in (("none", (3, 4, 3)), ("gct", (1, 1, 2))):
        for seed, count in enumerate(wrong):
            kept_run(tmp_path / "kept/runs" / name / f"seed_{seed}", count)
    return tmp_path / "kept"


def test_runs_without_weights_are_judged(kept: Path, tmp_path: Path) -> None:
    results = gw.judge(kept, out=tmp_path / "judged")
    none, gct = variants(results)["none"], variants(results)["gct"]
    assert none["accuracy"]["values"] == [0.625, 0.5, 0.625]
    assert gct["difference"]["mean"] == pytest.approx((7 + 7 + 6 - 5 - 4 - 5) / 24)
    assert gct["difference_over_images"]["mean"] == pytest.approx(gct["difference"]["mean"])
    assert gct["test"]["mean"] == 0.5
    assert gct["curves"] == [[0.875], [0.875], [0.75]]
    assert results["score"] == "accuracy"
    assert (tmp_path / "judged/curves.svg").exists()


def test_seed_that_others_lack_is_in_no_number(kept: Path) -> None:
    """Its test score and its curve were."""
    kept_run(kept / "runs/none/seed_3", 8, tested=0.0)
    none = variants(gw.judge(kept))["none"]
    assert none["accuracy"]["values"] == [0.625, 0.5, 0.625]
    assert none["test"]["mean"] == 0.5
    assert none["curves"] == [[0.625], [0.5], [0.625]]


def test_runs_without_predictions_have_no_differences_over_images(kept: Path) -> None:
    (kept / "runs/gct/seed_1/predictions.safetensors").unlink()
    assert "difference_over_images" not in variants(gw.judge(kept))["gct"]


def test_comparison_can_be_put_together_from_two_folders(kept: Path, tmp_path: Path) -> None:
    whole = gw.judge(kept)
    for name in ("none", "gct"):
        (kept / "other" / name).mkdir(parents=True)
        shutil.move(kept / f"runs/{name}/seed_2", kept / f"other/{name}/seed_2")
    found = gw.judge(kept)
    assert {name: row["p_holm"] for name, row in variants(found).items() if name == "gct"} == {
        "gct": variants(whole)["gct"]["p_holm"]
    }


def test_rivals_of_a_comparison_are_judged_as_such(kept: Path) -> None:
    """The plain networks of equal cost were rows like gates, compared with none and counted by Holm's method."""
    alone = variants(gw.judge(kept))["gct"]
    rival = "resnet20_wider:parameters=400000"
    for seed in range(3):
        kept_run(kept / "runs" / folder_name(rival) / f"seed_{seed}", (4, 3, 5)[seed])
    chosen = [
        Rival("gct", "latency", rival, 2.0, 2.1, {"gates": [1.9, 2.1], "network": [2.0, 2.2], "ratio": [1.0, 1.1]}),
        Rival("gct", "macs", "resnet20_wider:parameters=300000", 41e6, 41.5e6),
        Rival("eca", "macs", "resnet20", 41e6, 41e6),
    ]
    record = {"model": "resnet20", "image": [3, 32, 32], "outputs": 2, "rivals": list(map(dataclasses.asdict, chosen))}
    write_record(kept / "rivals.json", record, 1)
    for folder in (kept, kept / "runs"):
        results = gw.judge(folder)
        found = variants(results)
        assert list(found) == ["none", "gct", rival]
        assert found["gct"]["p_holm"] == alone["p_holm"]
        assert found["gct"]["rivals"] == {"latency": rival}
        expected = [a - b for a, b in zip(*(found[name]["accuracy"]["values"] for name in ("gct", rival)), strict=True)]
        assert found["gct"]["against_rivals"]["latency"]["difference"]["mean"] == pytest.approx(sum(expected) / 3)
        assert found[rival]["rival_of"] == {"gct": ["latency"]}
        assert "verdict" not in found[rival]
        assert [one["gates"] for one in results["chosen_rivals"]] == ["gct", "gct"], "eca has no runs"
        assert results["notes"] == [
            "rival of gct by multiply-adds has no finished runs: resnet20_wider:parameters=300000"
        ]
    shutil.rmtree(kept / "runs/gct")
    assert "verdict" not in variants(gw.judge(kept))[rival], (
        "a rival of gates that have no runs is not one of the gates"
    )


def test_scores_that_are_not_defined_are_in_no_number(kept: Path) -> None:
    shutil.rmtree(kept / "runs/gct/seed_1")
    kept_run(kept / "runs/gct/seed_1", 1, tested=float("nan"))
    assert json.loads((kept / "runs/gct/seed_1/metrics.json").read_text())["test"] == {"accuracy": None}
    found = variants(gw.judge(kept))
    assert found["none"]["test"]["mean"] == 0.5
    assert "test" not in found["gct"]


def relabelled(run: Path, labels: torch.Tensor) -> None:
    save_file({"predictions": labels.clone(), "labels": labels}, run / "predictions.safetensors")


@pytest.mark.parametrize("labels", [LABELS[:6], LABELS.flip(0)])
def test_runs_of_one_seed_must_have_the_same_images(kept: Path, labels: torch.Tensor) -> None:
    """They were paired, or ended in an error of torch."""
    relabelled(kept / "runs/gct/seed_1", labels)
    with pytest.raises(InvalidValueError, match=r"have other (numbers|labels) of validation images.*--split-seed"):
        gw.judge(kept)


def test_each_seed_may_have_its_own_images(kept: Path) -> None:
    for name in ("none", "gct"):
        relabelled(kept / "runs" / name / "seed_1", LABELS[:6])
    results = gw.judge(kept)
    assert "difference_over_images" not in variants(results)["gct"]
    assert "the seeds have different validation images, so there are no differences over images" in results["notes"]


def test_runs_that_cannot_be_judged(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no finished runs; expected VARIANT/seed_N/metrics\.json below it"):
        gw.judge(tmp_path / "kept/runs/none/seed_0")
    with pytest.raises(InvalidValueError, match="the score of runs is known"):
        gw.judge(kept, unit="%")
    shutil.copytree(kept / "runs/gct/seed_0", kept / "again/gct/seed_0")
    with pytest.raises(DataError, match="has two runs of gct, seed 0"):
        gw.judge(kept)
    shutil.rmtree(kept / "again")
    kept_run(kept / "runs/se/seed_0", 1, precision="bf16")
    with pytest.raises(InvalidValueError, match="which compares machines and not gates"):
        gw.judge(kept)
