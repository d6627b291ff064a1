"""Comparing what any command trains, with a script that writes what timm's train.py writes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gatewise.cli import run as cli
from gatewise.comparison import compare_command
from gatewise.comparison.score_files import ScoreFile
from gatewise.comparison.script_runs import ScriptRun
from gatewise.errors import DataError, InvalidValueError, TrainingError

# timm's train.py writes OUTPUT/DATE-MODEL-SIZE/summary.csv with a row for each epoch.
SCRIPT = """
import argparse, pathlib, sys
parser = argparse.ArgumentParser()
for name in ("--model", "--output"):
    parser.add_argument(name)
parser.add_argument("--seed", type=int)
options = parser.parse_args()
print("training", options.model)
if options.model == "broken" and options.seed == 1:
    sys.exit("CUDA out of memory; try a smaller batch")
folder = pathlib.Path(options.output, f"20260101-{options.model}-224")
folder.mkdir(parents=True)
top1 = [60, 71, 70][options.seed] + {"gct": 2 + 0.1 * options.seed, "nan": float("nan")}.get(options.model, 0)
rows = [f"{epoch},{2.0 - epoch},{top1 + gain}" for epoch, gain in enumerate((-20, 1, 0))]
(folder / "summary.csv").write_text("\\n".join(["epoch,eval_loss,eval_top1", *rows]) + "\\n")
with open(pathlib.Path(sys.argv[0]).with_name("calls.txt"), "a") as calls:
    calls.write(f"{options.model} {options.seed}\\n")
"""
TOP1 = "summary.csv:eval_top1:last"


@pytest.fixture
def command(tmp_path: Path) -> str:
    script = tmp_path / "my scripts/train.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    words = [sys.executable, str(script)]
    return f"{shlex.join(words)} --model {{gates}} --seed {{seed}} --output {{out}}"


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "my scripts/calls.txt").read_text().splitlines()


def row(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["variants"] if row["gates"] == name)


def test_each_label_and_seed_is_trained_once_and_judged(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = compare_command(command, ["resnet50", "gct"], 3, out, score_from=TOP1, unit="%")
    assert calls(tmp_path) == ["resnet50 0", "gct 0", "resnet50 1", "gct 1", "resnet50 2", "gct 2"]
    assert results["baseline"] == "resnet50"
    assert row(results, "gct")["score"]["values"] == pytest.approx([62, 73.1, 72.2])
    assert row(results, "gct")["difference"]["mean"] == pytest.approx(2.1)
    assert row(results, "gct")["verdict"] == "better"
    assert results["summary"][0].startswith("Use gct: its eval_top1 is 2.10 points higher than that of resnet50")
    assert json.loads((out / "results.json").read_text()) == results
    assert results["summary"][0] in (out / "report.html").read_text()
    assert compare_command(command, ["resnet50", "gct"], 3, out, score_from=TOP1, unit="%") == results
    assert len(calls(tmp_path)) == 6


def test_another_score_of_the_same_trainings(command: str, tmp_path: Path) -> None:
    compare_command(command, ["none", "gct"], 2, tmp_path / "out", score_from=TOP1)
    best = compare_command(command, ["gct", "none"], 2, tmp_path / "out", score_from="summary.csv:eval_top1:best")
    assert best["baseline"] == "none"
    assert row(best, "none")["score"]["values"] == [61, 72]
    loss = compare_command(
        command, ["none", "gct"], 2, tmp_path / "out", score_from="*/summ*.csv:eval_loss:best", lower_is_better=True
    )
    assert row(loss, "none")["score"]["values"] == [0, 0]
    assert len(calls(tmp_path)) == 4


def test_failed_command_shows_its_last_lines_and_others_go_on(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--command", command, "--score-from", TOP1, "--seeds", "2", "--out", str(tmp_path / "out")]
    assert cli(["compare", "--gates", "none,broken,gct,nan", *flags]) == 1
    printed = capsys.readouterr()
    assert "ended with exit code 1: training broken / CUDA out of memory; try a smaller batch (" in printed.err
    assert "failed and missing from the table: " in printed.err.splitlines()[-1]
    assert "broken, seed 1: the command ended with" in printed.err.splitlines()[-1]
    assert "nan, seed 0: eval_top1 is nan" in printed.err.splitlines()[-1]
    assert printed.out.index("Use gct") < printed.out.index("verdict (Holm)")
    assert len(calls(tmp_path)) == 7
    cli(["compare", "--gates", "none,broken,gct,nan", *flags])
    assert len(calls(tmp_path)) == 7, "what has succeeded is not repeated"
    with pytest.raises(TrainingError, match="broken, seed 1"):
        compare_command(command, ["broken", "none"], 2, tmp_path / "out", score_from=TOP1, baseline="broken")


ANY = """
import pathlib, sys
label, seed, out = sys.argv[1:]
rows = {rows}[label]
if rows is not None:
    lines = ["epoch,top1", *(f"{{epoch}},{{top1}}" for epoch, top1 in enumerate(rows))]
    pathlib.Path(out, "s.csv").write_text("\\n".join(lines))
"""


def script(tmp_path: Path, rows: str) -> str:
    """Return a command that writes scores of epochs, an expression of `seed`, by label; None writes no file."""
    file = tmp_path / "any.py"
    file.write_text(ANY.format(rows=rows).replace("sys.argv[1:]", "sys.argv[1:]; seed = int(seed)"))
    return f"{shlex.join([sys.executable, str(file)])} {{gates}} {{seed}} {{out}}"


def test_training_without_a_score_is_left_out(tmp_path: Path) -> None:
    made = script(tmp_path, '{"a": [70 + seed], "b": None if seed == 1 else [71], "c": [72 + 2 * seed]}')
    results = compare_command(made, ["a", "b", "c"], 3, tmp_path / "out", score_from="s.csv:top1")
    assert [variant["gates"] for variant in results["variants"]] == ["a", "c"]
    folder = tmp_path / "out/runs/b/seed_1"
    assert "seed 1: " in results["failed"]["b"]
    assert results["failed"]["b"].endswith(f"To train it again, delete {folder}.")
    with pytest.raises(DataError, match=r"has no column 'top5'.*To train it again, delete .*a/seed_0"):
        compare_command(made, ["a", "b", "c"], 3, tmp_path / "out", score_from="s.csv:top5")


def test_score_of_an_earlier_epoch_is_said(tmp_path: Path) -> None:
    made = script(tmp_path, '{"a": [50, 70 + seed], "b": [51, "" if seed == 1 else 72]}')
    results = compare_command(made, ["a", "b"], 3, tmp_path / "out", score_from="s.csv:top1:last")
    assert row(results, "b")["score"]["values"] == [72, 51, 72]
    assert results["notes"] == [
        "b/seed_1 has 1 row without top1 at the end, most trainings have 0; its score may be that of an earlier epoch"
    ]
    best = compare_command(made, ["a", "b"], 3, tmp_path / "out", score_from="s.csv:top1:best")
    assert best["notes"] == []


def test_last_score_counts_if_an_earlier_one_is_no_number(tmp_path: Path) -> None:
    made = script(tmp_path, '{"a": ["nan", 70 + seed], "b": [50, 71]}')
    results = compare_command(made, ["a", "b"], 2, tmp_path / "out", score_from="s.csv:top1:last")
    assert row(results, "a")["score"]["values"] == [70, 71]


def test_score_outside_of_percent_is_an_error(tmp_path: Path) -> None:
    made = script(tmp_path, '{"a": [7000 + seed], "b": [7100]}')
    with pytest.raises(DataError, match="expected a top1 from 0 to 100 %, got 7000"):
        compare_command(made, ["a", "b"], 2, tmp_path / "out", score_from="s.csv:top1", unit="%")


def test_runs_of_gatewise_are_not_mixed_with_a_command(command: str, tmp_path: Path) -> None:
    run = tmp_path / "out/runs/none/seed_0"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text("{}")
    with pytest.raises(InvalidValueError, match=r"out contains runs of gatewise.*none/seed_0\. Choose another --out"):
        compare_command(command, ["none", "gct"], 2, tmp_path / "out", score_from=TOP1)
    assert list(run.iterdir()) == [run / "metrics.json"]


def test_advice_repeats_the_command_with_a_smaller_difference(tmp_path: Path) -> None:
    made = script(tmp_path, '{"a": [70 + 3 * seed % 4], "b": [71 + seed % 2]}')
    results = compare_command(
        made, ["a", "b"], 3, tmp_path / "out", score_from="s.csv:top1", detect=0.9, unit="%",
        written_as="gatewise compare --detect 0.9 --seeds=3 --out out",
    )  # fmt: skip
    assert results["seeds"] == 3
    said = " ".join(results["summary"])
    assert "A difference of 0.9 points (--detect) cannot be seen with 3 seeds, the most that --seeds allows." in said
    found = re.search(r"train (\d+) seeds: (.*?) --out out", said)
    assert found is not None
    assert found[2] == f"gatewise compare --detect 0.5 --seeds {found[1]}"


def test_seeds_are_added_until_the_difference_can_be_detected(command: str, tmp_path: Path) -> None:
    results = compare_command(command, ["none", "gct"], 3, tmp_path / "out", score_from=TOP1, detect=1000)
    assert results["detect"] == {"points": 1000, "most_seeds": 3}
    assert results["seeds"] == 3
    assert results["level"] < 0.05


@pytest.mark.parametrize(
    ("template", "labels", "options", "error"),
    [
        ("train {gates} {out}", ["a"], {}, "--command has no {seed}; expected a command such as"),
        ("train {seed} {out}", ["a", "b"], {}, "--command has no {gates}"),
        ("train {gates} {seed}", ["a", "b"], {}, "--command has no {out}"),
        ("train '{gates} {seed} {out}", ["a", "b"], {}, "cannot be split into words: No closing quotation"),
        ("train {gates} {seed} {out}", ["a b", "a-b"], {}, "expected different labels as gates, got a b, a-b"),
        ("train {gates} {seed} {out}", ["a"], {"baseline": "c"}, "unknown baseline 'c'"),
        ("train {gates} {seed} {out}", ["a"], {"score_from": "summary.csv"}, "--score-from takes FILE:COLUMN:last"),
        ("train {gates} {seed} {out}", ["a"], {"score_from": "s.csv:top1:first"}, "last part of --score-from 'first'"),
        ("train {gates} {seed} {out}", ["a"], {"score_from": "../s.csv:top1"}, "takes a file below {out}"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    tmp_path: Path, template: str, labels: list[str], options: dict[str, Any], error: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        compare_command(template, labels, 1, tmp_path / "out", **{"score_from": TOP1, **options})
    assert error in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_command_that_cannot_start_and_other_command_in_the_folder(command: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the command cannot be started: no-such-program"):
        compare_command("no-such-program {gates} {seed} {out}", ["a"], 1, tmp_path / "out", score_from=TOP1)
    compare_command(command, ["a"], 1, tmp_path / "out", score_from=TOP1)
    with pytest.raises(InvalidValueError, match="contains a run of another command"):
        compare_command(f"{command} --lr 1", ["a"], 1, tmp_path / "out", score_from=TOP1)


def test_no_shell_interprets_the_command(tmp_path: Path) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[2], 's.json').write_text('{\"x\": ' + str(len(sys.argv)) + '}')"
    command = f"{shlex.join([sys.executable, '-c', code])} '{{gates}}; touch {tmp_path}/hacked' {{out}} $HOME {{seed}}"
    results = compare_command(command, ["a & b"], 1, tmp_path / "out", score_from="s.json:x")
    assert row(results, "a & b")["score"]["values"] == [5]
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--command", "x"], "--command and --score-from go together"),
        (["--score-from", TOP1], "--command and --score-from go together"),
        (["--command", "x", "--score-from", TOP1, "--epochs", "3"], "--epochs is not for --command"),
        (["--command", "x", "--score-from", TOP1, "--recipe", "r.yaml"], "--recipe is not for --command"),
        (["--command", "x", "--score-from", TOP1, "--rivals", "macs"], "--rivals is not for --command"),
        (["--command", "x", "--score-from", TOP1, "--corruptions"], "--corruptions is not for --command"),
        (["--command", "x", "--score-from", TOP1, "--workers", "0"], "--workers is not for --command"),
        (["--command", "x", "--score-from", TOP1, "--track", "tensorboard"], "--track is not for --command"),
        (["--baseline", "se"], "--baseline is for --command"),
        (["--unit", "%"], "--unit is for --command"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["compare", *flags, "--out", str(tmp_path / "out")]) == 2
    assert error in capsys.readouterr().err


TRAINED = """
import signal, sys
from pathlib import Path
from gatewise.comparison.script_runs import ScriptRun
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
ScriptRun(sys.argv[1], "a", 0).train(Path(sys.argv[2]))
"""


class Started:
    """A process of ours, and the command that it has started, which writes its own number and waits."""

    def __init__(self, folder: Path, first: str = "") -> None:
        code = f"import os, pathlib, signal, sys, time; {first}"
        code += "pathlib.Path(sys.argv[1], 'pid').write_text(f'{os.getpid()}.'); time.sleep(20)"
        self.command = f"{shlex.join([sys.executable, '-c', code])} {{out}} {{seed}}"
        words = [sys.executable, "-c", TRAINED, self.command, str(folder)]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        pid = folder / "output/pid"
        while not pid.exists() or not pid.read_text().endswith("."):
            assert self.process.poll() is None
            time.sleep(0.05)
        self.pid = int(pid.read_text()[:-1])

    def is_running(self) -> bool:
        """Return whether the command runs; one that has ended may still be known to the system."""
        state = Path(f"/proc/{self.pid}/stat")
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_command(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "runs/a/seed_0"
    started = Started(folder)
    started.process.send_signal(number)
    _, error = started.process.communicate(timeout=60)
    assert "Interrupted: stopped in a, seed 0; run the same command again" in error
    assert not started.is_running()
    assert not (folder / "command.json").exists()


def test_second_signal_kills_a_command_that_does_not_end(tmp_path: Path) -> None:
    started = Started(tmp_path / "runs/a/seed_0", "signal.signal(signal.SIGTERM, signal.SIG_IGN); ")
    while started.process.poll() is None:
        started.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    started.process.communicate(timeout=60)
    assert not started.is_running()


def test_command_that_outlived_us_is_not_joined_by_a_second(tmp_path: Path) -> None:
    folder = tmp_path / "runs/a/seed_0"
    started = Started(folder)
    started.process.kill()
    started.process.communicate(timeout=60)
    assert started.is_running()
    with pytest.raises(TrainingError, match=r"an earlier start of the command still runs in .*seed_0\. Stop it"):
        ScriptRun(started.command, "a", 0).train(folder)
    assert (folder / "output/pid").exists()
    os.kill(started.pid, signal.SIGKILL)
    while started.is_running():
        time.sleep(0.05)
    ScriptRun(f"{sys.executable} -c 0 {{out}} {{seed}}", "a", 0).train(folder)
    assert (folder / "command.json").exists()


def test_run_that_was_interrupted_starts_with_an_empty_folder(command: str, tmp_path: Path) -> None:
    left = tmp_path / "out/runs/a/seed_0/output/20250101/summary.csv"
    left.parent.mkdir(parents=True)
    left.write_text("epoch,eval_top1\n0,5\n")
    results = compare_command(command, ["a"], 1, tmp_path / "out", score_from=TOP1)
    assert row(results, "a")["score"]["values"] == [60]


# Score files


def test_score_of_json(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/r.json").write_text(json.dumps({"val": {"top1": [1, 3, 2]}, "all": [{"f1": 0.5}]}))
    read = {text: ScoreFile.parse(f"r.json:{text}").read(tmp_path, higher_is_better=True) for text in (
        "val.top1", "val.top1:max", "val.top1:min", "val.top1:best", "all.0.f1"
    )}  # fmt: skip
    assert list(read.values()) == [2, 3, 1, 3, 0.5]
    with pytest.raises(DataError, match=r"has no entry 'val\.top5': no 'top5' among top1"):
        ScoreFile.parse("r.json:val.top5").read(tmp_path, higher_is_better=True)


@pytest.mark.parametrize("name", ["metrics.json", "scalars.json", "log.txt", "log.jsonl"])
def test_score_of_json_lines_whatever_the_name(tmp_path: Path, name: str) -> None:
    """Logs of Detectron2 and mmengine are called .json, those of DeiT .txt."""
    (tmp_path / name).write_text('{"epoch": 0, "val.acc": 5}\n{"loss": 1.0}\n{"epoch": 1, "val.acc": 4}\n')
    assert ScoreFile.parse(f"{name}:val.acc").read(tmp_path, higher_is_better=True) == 4
    assert ScoreFile.parse(f"{name}:val.acc:best").read(tmp_path, higher_is_better=True) == 5
    with pytest.raises(DataError, match=r"has no column 'top5'; its columns are epoch, val\.acc"):
        ScoreFile.parse(f"{name}:top5").read(tmp_path, higher_is_better=True)
    (tmp_path / name).write_text('{"epoch": 0, "val.acc": 5}\n')
    assert ScoreFile.parse(f"{name}:val.acc").read(tmp_path, higher_is_better=True) == 5, "after one epoch"


@pytest.mark.parametrize("named", ["state.json", "./state.json"])
def test_score_file_in_the_output_folder_wins_over_those_below(tmp_path: Path, named: str) -> None:
    """trainer_state.json next to checkpoint-10/trainer_state.json could not be named."""
    for folder, score in ((tmp_path, 5), (tmp_path / "checkpoint-10", 4)):
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text(f'{{"best": {score}}}')
    assert ScoreFile.parse(f"{named}:best").read(tmp_path, higher_is_better=True) == 5


def test_score_file_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(DataError, match=r"expected one file s\.csv, found none among log\.txt"):
        ScoreFile.parse("s.csv:a").read(tmp_path, higher_is_better=True)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.csv").write_text("epoch,top1\n0,5\n1,\n")
    with pytest.raises(DataError, match=r"expected one file s\.csv, found 2: a/s\.csv, b/s\.csv"):
        ScoreFile.parse("s.csv:top1").read(tmp_path, higher_is_better=True)
    assert ScoreFile.parse("a/s.csv:top1").read(tmp_path, higher_is_better=True) == 5
    with pytest.raises(DataError, match=r"has no column 'top5'; its columns are epoch, top1"):
        ScoreFile.parse("a/s.csv:top5").read(tmp_path, higher_is_better=True)
