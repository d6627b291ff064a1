"""`gatewise bench --runtimes`: every form in every runtime, against the fastest dense one."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gatewise.cli import run
from gatewise.errors import InvalidValueError
from gatewise.exporting.runtime_bench import bench_runtimes
from gatewise.exporting.runtimes import RUNTIMES
from gatewise.graph.measure import Latency
from gatewise.training import Progress
from support.command_runs import gated, plain  # noqa: F401 - fixtures
from support.project import ROOT
from support.releases import release

PICKS = release(torch.__version__) > (2, 11)  # torch 2.11 cannot export filters that are picked on the way


def fixed_times(monkeypatch: pytest.MonkeyPatch, **milliseconds: float | list[float]) -> None:
    """Let every call be timed at 8 ms, and those that are given, by "[int8_]form_runtime", at theirs in each round."""

    def times(calls: Mapping[str, Callable[[], Any]], **_: Any) -> dict[str, Latency]:
        found: dict[str, Latency] = {}
        for name, call in calls.items():
            call()
            key = name.replace(" ", "_").removeprefix("float32_")
            given = milliseconds.get(key, 8.0)
            rounds = [value / 1e3 for value in (given if isinstance(given, list) else [given] * 3)]
            found[name] = Latency(sorted(rounds)[1], min(rounds), max(rounds), tuple(rounds))
        return found

    monkeypatch.setattr("gatewise.exporting.runtime_bench.interleaved_latency", times)


def without_files(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let no file be exported and ONNX Runtime do nothing; return the options that `export_run` gets."""
    asked: list[dict[str, Any]] = []

    def exported(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
        asked.append(options)
        return {"score": "accuracy", "float32": 0.964, "int8": 0.955, "int8_difference": 0.1, "other_gates": 0.0}

    runtime = RUNTIMES["onnxruntime"]
    idle = dataclasses.replace(runtime, ready=lambda *_: lambda _: None)
    monkeypatch.setattr("gatewise.exporting.runtime_bench.export_run", exported)
    monkeypatch.setattr("gatewise.exporting.runtime_bench.export", lambda *_, **__: {})
    monkeypatch.setitem(RUNTIMES, "onnxruntime", idle)  # type: ignore[arg-type]
    return asked


KEPT = ROOT / "tests/reliability/v0_1_0"
GATER, PLAIN = KEPT / "gater", KEPT / "comparison/runs/none/seed_0"
BOTH: dict[str, Any] = {"runtimes": ["onnxruntime"], "precisions": ["float32", "int8"], "batch_sizes": [1]}


def test_verdict_names_fastest_of_all_with_its_score_and_fastest_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = without_files(monkeypatch)
    fixed_times(monkeypatch, compact_onnxruntime=4.0, int8_masked_onnxruntime=2.0)
    found = bench_runtimes(GATER, tmp_path, **BOTH)
    assert found["verdict"] == (
        "one image: masked in int8 in ONNX Runtime is fastest (accuracy 95.50 %, in float32 96.40 %), 2.00 times as "
        "fast as the fastest in float32: compact in ONNX Runtime, 2.00 times as fast as dense in ONNX Runtime"
    )
    row = found["batches"]["1"]["int8"]["masked"]["onnxruntime"]
    assert row["dense_over_this"] == pytest.approx([4.0] * 3), "one reference for all precisions"
    assert {name for options in asked for name in options} == {"form", "int8", "constant", "data"}, "as export does"
    assert {options["constant"] for options in asked} == {None}
    fixed_times(monkeypatch, compact_onnxruntime=1.0)
    assert bench_runtimes(GATER, tmp_path, **BOTH)["verdict"] == (
        "one image in float32: deploy compact in ONNX Runtime, 8.00 times as fast as dense in ONNX Runtime (nothing in "
        "int8 is faster)"
    )


def test_int8_of_a_plain_network_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = without_files(monkeypatch)
    fixed_times(monkeypatch, int8_dense_onnxruntime=4.0)
    found = bench_runtimes(PLAIN, tmp_path, **BOTH)
    assert [options["form"] for options in asked] == ["masked", "masked"]
    assert found["scores"]["dense"]["int8"] == 0.955
    assert found["verdict"] == (
        "one image: dense in int8 in ONNX Runtime is fastest (accuracy 95.50 %, in float32 96.40 %), 2.00 times as "
        "fast as the fastest in float32: dense in ONNX Runtime"
    )


def test_ratios_are_paired_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_times(monkeypatch, dense_torch=[1.0, 2.0, 12.0], masked_torch=[1.0, 4.0, 4.0], skip_torch=9, compact_torch=9)
    found = bench_runtimes(GATER, tmp_path, runtimes=["torch"], batch_sizes=[1], images=8)
    row = found["batches"]["1"]["float32"]["masked"]["torch"]
    assert row["dense_over_this"][0] == row["dense_here_over_this"][0] == pytest.approx(1.0), "0.5 by the medians"
    assert found["verdict"] == (
        "one image in float32: deploy masked in PyTorch, 1.00 times as fast as dense in PyTorch (the gates save no "
        "time here: train a plain network)"
    )


def test_what_is_not_timed_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **options: Any) -> Any:
        attempts.append(options["form"])
        raise InvalidValueError("no such file")

    attempts: list[str] = []
    without_files(monkeypatch)
    fixed_times(monkeypatch)
    monkeypatch.setattr("gatewise.exporting.runtime_bench.export_run", fails)
    monkeypatch.setitem(RUNTIMES, "openvino", dataclasses.replace(RUNTIMES["onnxruntime"], extra=None))  # type: ignore
    arguments = ["--runtimes", "onnxruntime,openvino", "--batch-sizes", "1", "--out", str(tmp_path)]
    assert run(["bench", str(GATER), *arguments]) == 0
    shown = capsys.readouterr()
    forms = ["masked", "skip", "compact"]
    names = ", ".join(f"{form} in float32 in {name}" for form in forms for name in ("onnxruntime", "openvino"))
    assert f"{names} were not timed: no such file\n" in shown.out
    assert attempts == forms, "one file for both runtimes"
    assert "4 files and networks are made first" in shown.err
    assert "making 4 of 4: compact in float32 for onnxruntime, openvino" in shown.err


@pytest.mark.extended
def test_forms_are_compared_with_fastest_dense_one(
    gated: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_times(monkeypatch, dense_onnxruntime=4.0, compact_onnxruntime=2.0, plain_onnxruntime=1.0)
    options: dict[str, Any] = {"runtimes": ["torch", "onnxruntime"], "batch_sizes": [1], "plain": plain, "images": 8}
    found = bench_runtimes(gated, tmp_path, **options)
    rows = found["batches"]["1"]["float32"]
    assert list(rows) == ["dense", "masked", "skip", "compact", "plain"]
    both = ["torch", "onnxruntime"]
    assert {form: list(row) for form, row in rows.items()} == {
        **dict.fromkeys(rows, both),
        "skip": both if PICKS else ["torch"],
    }
    assert rows["dense"]["torch"]["dense_over_this"][0] == pytest.approx(0.5)
    assert rows["compact"]["onnxruntime"]["median_ms"] == pytest.approx(2.0)
    assert rows["compact"]["onnxruntime"]["dense_over_this"] == pytest.approx([2.0] * 3)
    assert found["verdict"] == (
        "one image in float32: deploy compact in ONNX Runtime, 2.00 times as fast as dense in ONNX Runtime"
    )
    assert json.loads((tmp_path / "bench-runtimes.json").read_text()) == found
    assert list(found["omitted"]) == ([] if PICKS else ["skip in float32 in onnxruntime"])


def test_network_is_recommended_though_nothing_is_faster_than_dense(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed_times(monkeypatch, masked_torch=10.0, skip_torch=12.0, compact_torch=12.0)
    options: dict[str, Any] = {"runtimes": ["torch"], "batch_sizes": [2], "images": 8}
    found = bench_runtimes(gated, tmp_path, **options, progress=Progress())
    assert re.search(r"timing takes about \d+ s\nmeasuring batches of 2\n", capsys.readouterr().err)
    assert found["verdict"] == (
        "2 images in float32: deploy masked in PyTorch, 0.80 times as fast as dense in PyTorch (the gates save no time "
        "here: train a plain network)"
    )


@pytest.mark.slow
def test_inserted_gates_are_not_left_out_and_their_cost_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_times(monkeypatch, dense_torch=4.0, masked_torch=5.0, dense_onnxruntime=1.0, masked_onnxruntime=1.1)
    run = ROOT / "tests/reliability/v0_1_0/gct"
    found = bench_runtimes(run, tmp_path, runtimes=["torch", "onnxruntime"], batch_sizes=[1])
    rows = found["batches"]["1"]["float32"]
    assert found["omitted"] == {}
    assert rows["masked"]["torch"]["dense_here_over_this"] == pytest.approx([0.8] * 3)
    assert rows["masked"]["torch"]["dense_over_this"] == pytest.approx([0.2] * 3)
    assert found["verdict"] == (
        "one image in float32: deploy masked in ONNX Runtime (its gates take +25 % in PyTorch, +10 % in ONNX Runtime)"
    )
    assert {"onnxruntime"} < found["environment"].keys()


@pytest.mark.slow
def test_int8_files_are_scored_on_command_line(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed_times(monkeypatch)
    arguments = ["--runtimes", "torch,onnxruntime", "--precisions", "int8", "--batch-sizes", "1", "--images", "8"]
    assert run(["bench", str(gated), *arguments, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "masked, accuracy: " in output
    assert "skip in int8 in onnxruntime was not timed: int8 needs format onnx" in output
    found = json.loads((tmp_path / "bench-runtimes.json").read_text())
    assert set(found["batches"]["1"]["int8"]["masked"]) == {"onnxruntime"}, "torch runs no int8"
    assert {"score", "float32", "int8", "other_gates"} <= found["scores"]["masked"].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ["onnx"]}, "unknown runtime 'onnx'; expected one of 'compile', 'onnxruntime', 'openvino'"),
        ({"precisions": ["int4"]}, "unknown precision 'int4'"),
        ({"runtimes": []}, "at least one runtime"),
        ({"runtimes": ["torch"], "precisions": ["int8"]}, "int8 needs one of the runtimes onnxruntime, openvino"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_wrong_arguments(gated: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        bench_runtimes(gated, tmp_path, **options)


def test_absent_runtimes_and_runs_are_found_before_anything_is_exported(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatewise.exporting.runtime_bench.export", lambda *_, **__: pytest.fail("exported"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(["bench", str(gated), "--runtimes", "onnxruntime, openvino", "--out", str(tmp_path)]) == 2
    assert "pip install 'gatewise[openvino]'" in capsys.readouterr().err
    assert run(["bench", str(gated), "--runtimes", "onnxruntime", "--plain", "nowhere", "--out", str(tmp_path)]) == 2
    assert "run folder 'nowhere' does not exist" in capsys.readouterr().err
    for option in (["--plain", str(gated)], ["--precisions", "int8"]):
        assert run(["bench", str(gated), *option]) == 2
        assert "--plain and --precisions are for --runtimes" in capsys.readouterr().err
