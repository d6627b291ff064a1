"""gatewise compact and gatewise bench, on a run that was trained for them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.analysis.benchmark import bench_run
from gatewise.analysis.explanation import explain_runs
from gatewise.cli import run
from gatewise.errors import StorageError
from gatewise.exporting.run_compaction import compact_run
from gatewise.models.serialization import load_model
from gatewise.training.runs import open_runs
from support.command_runs import TRAIN, gated, images_of, plain, small  # noqa: F401 - fixtures


def test_compacted_run_is_a_run(gated: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, _ = load_model(gated)
    compacted, config = load_model(small)
    x = images_of(gated)
    with torch.no_grad():
        assert torch.allclose(net(x), compacted(x), rtol=1e-4, atol=1e-4)
    assert isinstance(compacted, gw.GaterNet)
    assert 0 < compacted.gate_count < net.gate_count
    metrics, before = (json.loads((folder / "metrics.json").read_text()) for folder in (small, gated))
    assert metrics["accuracy"] == metrics["accuracy_before"] == pytest.approx(float(accuracy(net, gated)))
    assert metrics["parameters"] == sum(p.numel() for p in compacted.parameters()) < before["parameters"]
    assert metrics["compaction"] == config["compacted"][0]
    assert metrics["compaction"]["images"] == 1437
    assert metrics["executed_macs"] <= compacted.dense_macs + compacted.gater_macs
    assert (small / "recipe.yaml").read_bytes() == (gated / "recipe.yaml").read_bytes()


def accuracy(net: nn.Module, folder: Path) -> torch.Tensor:
    (opened,) = open_runs([folder])
    with torch.no_grad():
        return torch.cat([net(x).argmax(1) == labels for x, labels in opened.batches()]).float().mean()


def test_compact_prints_its_result(gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compact", str(gated), "--out", str(tmp_path / "a"), "--images", "7"]) == 0
    message = capsys.readouterr().out
    assert "still decided on 7 images" in message
    assert "of 360 other images change a constant gate" in message
    assert f"run: {tmp_path / 'a'}" in message
    assert run(["compact", str(gated), "--out", str(tmp_path / "b"), "--images", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compaction"]["images"] == 7


def test_interrupted_compaction_leaves_no_run(gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, _: object) -> None:
        raise StorageError(f"{folder / 'metrics.json'} cannot be written")

    monkeypatch.setattr("gatewise.exporting.run_compaction.write_metrics", full)
    with pytest.raises(StorageError, match=f"^{tmp_path}/small/metrics.json cannot be written"):
        compact_run(gated, tmp_path / "small", images=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extended
def test_without_progress_nothing_is_printed(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class StopError(Exception):
        pass

    def begun(timed: object, rounds: int, say: Callable[[str], None]) -> None:
        say("measuring")
        raise StopError

    monkeypatch.setattr("gatewise.analysis.benchmark.GaterForms", begun)
    with pytest.raises(StopError):
        bench_run(gated, tmp_path)
    compact_run(gated, tmp_path / "small", images=64)
    explain_runs([gated], tmp_path / "page.html")
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.slow
def test_compacted_run_can_be_compacted_predicted_and_explained(small: Path, tmp_path: Path) -> None:
    assert run(["compact", str(small), "--out", str(tmp_path / "twice"), "--images", "50"]) == 0
    assert len(load_model(tmp_path / "twice")[1]["compacted"]) == 2
    assert run(["explain", str(small), "--out", str(tmp_path / "page.html")]) == 0


def test_training_names_what_its_shares_and_multiply_adds_count(
    gated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*TRAIN, "--budget", "0.5", "--out", str(gated), "--resume"]) == 0  # a finished run is not trained again
    metrics, out = json.loads((gated / "metrics.json").read_text()), capsys.readouterr().out
    assert re.search(
        r" epoch, 0\.\d{3}( \(budget 0.5 missed\))? of the gated filters' multiply-adds open, \d+ % of", out
    )
    assert f" {metrics['executed_macs'] / 1e6:.2f} M multiply-adds per image (open filters and gater), " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compact", "PLAIN", "--out", "NEW"], "has no gater: all its filters are open"),
        (["compact", "GATED", "--out", "GATED"], "is not empty. Give a new folder."),
        (["compact", "GATED", "--out", "NEW", "--images", "0"], "images must be at least 1, got 0"),
        (["compact", "nowhere", "--out", "NEW"], "does not exist"),
        (
            ["bench", "GATED", "--batch-sizes", "1,x"],
            "--batch-sizes must be integers from 1 on, such as 1,8,32, got '1,x'",
        ),
        (["bench", "GATED", "--batch-sizes", "0"], "--batch-sizes must be integers from 1 on, such as 1,8,32, got '0'"),
        (["bench", "GATED", "--rounds", "1"], "rounds must be at least 2, got 1"),
        (["bench", "GATED", "--threads", "0"], "threads must be at least 1, got 0"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str], message: str, gated: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"PLAIN": plain, "GATED": gated, "NEW": tmp_path / "new"}
    assert run([str(paths.get(argument, argument)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "new").exists()


def test_bench_times_a_run_without_a_gater(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(plain), "--out", str(tmp_path), "--rounds", "2", "--batch-sizes", "1"]
    assert run(arguments) == 0
    printed, said = capsys.readouterr()
    assert re.match(r"timing takes about \d+ (s|min)\nmeasuring batches of 1\n", said)
    results = json.loads((tmp_path / "bench.json").read_text())
    assert list(results["batches"]["1"]) == ["network", "optimised"]
    assert "one image at once: " in printed
    assert f"written: {tmp_path / 'bench.json'}" in printed.replace("\n", " ")
    assert not (tmp_path / "bench.svg").exists()


@pytest.mark.slow
def test_bench_times_all_forms_and_recommends_one(gated: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gatewise", "bench", str(gated), "--out", str(tmp_path), "--rounds", "2"]
    command += ["--batch-sizes", "1,3", "--threads", "1", "--images", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "bench.json").read_text())
    assert list(results["batches"]) == ["1", "3"]
    forms = results["batches"]["1"]
    assert {"dense", "masked", "skipped", "compacted"} <= set(forms) <= {*forms, "compacted, skipped"}
    assert all(form["low_ms"] <= form["median_ms"] <= form["high_ms"] for form in forms.values())
    assert forms["dense"]["dense_over_this"] == [1, 1, 1]
    macs = results["macs"]
    assert macs["counted"] == macs["executed"] < macs["dense"]
    assert results["environment"]["hardware"].count("1 thread of ") == 1
    assert len(results["curve"]) == 10
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")
    assert results["verdict"] in done.stdout.replace("\n", " ") or results["verdict"][:30] in done.stdout
    for size, part in zip(("1", "3"), results["verdict"].split("; "), strict=True):
        forms = results["batches"][size]
        assert part.startswith({"1": "one image", "3": "3 images"}[size])
        fastest = min(forms, key=lambda name: forms[name]["median_ms"])
        assert ("do not skip here" in part) or fastest in part
