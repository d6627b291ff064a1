"""The command line: output is readable by scripts; a usage error is one line and exit code 2."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import gatewise as gw
from gatewise import cli
from gatewise.analysis.table import Cell, Table
from gatewise.cli import run
from gatewise.cli.app import print_table
from gatewise.comparison import run_results, table
from gatewise.data import Dataset, Images, load_dataset
from gatewise.graph import place_kind, place_names
from gatewise.graph.measure import environment
from gatewise.training import Recipe

CALLED = {"train": "gatewise.training.train", "compare": "gatewise.comparison.compare"}  # by the commands
QUICK = ["--epochs", "1", "--batch-size", "32", "--precision", "fp32"]


@functools.cache
def small() -> Dataset:
    digits = load_dataset("digits")
    parts = (Images(part.pixels[:64], part.labels[:64]) for part in (digits.train, digits.validation))
    return Dataset("digits", digits.classes, *parts, padding=1, flip=False)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a few digits as "digits", and measure latency briefly; other data is loaded as usual."""

    def load(source: str, image_size: int | None, *options: object) -> Dataset:
        return small() if (source, image_size) == ("digits", None) else load_dataset(source, image_size, *options)

    monkeypatch.setattr("gatewise.data.load.load_dataset", load)
    monkeypatch.setattr(run_results, "_ROUNDS", 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    whole = [sys.executable, "-W", "error", "-m", "gatewise", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


# Real processes


@pytest.mark.extended
def test_process_trains_with_progress_on_stderr_and_json_on_stdout(tmp_path: Path) -> None:
    result = command("train", "--gate", "se", *QUICK, "--out", "run", "--json", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "run/metrics.json").read_text())
    first, *_, last = result.stderr.splitlines()
    assert first.startswith("1,437 training, 360 validation images, 10 classes: 0, 1, ")
    assert last.startswith("se seed 0: epoch 1/1, loss ")


def test_process_reports_usage_error_in_one_line_with_code_2(tmp_path: Path) -> None:
    result = command("train", "--gate", "gcct", "--out", "run", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("gatewise: unknown gate 'gcct'")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_process_reports_failed_training_in_one_line_with_code_1(tmp_path: Path) -> None:
    result = command("train", "--lr", "1000", "--warmup", "0", *QUICK, "--out", "run", folder=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    overflow = (
        r"(the loss is (nan|inf)|the gradient of \S+ is not finite)"  # which comes first is the processor's rounding
    )
    assert re.match(f"gatewise: {overflow} at step [0-9]+ of epoch 1\\. ", result.stderr.splitlines()[-1])


# Help


COMMANDS = sorted(name for name in cli.app if not name.startswith("-"))


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"completion"}))
def test_help_of_every_command_has_valid_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run([name, "--help"]) == 0
    text, complaints = printed(capsys)
    assert complaints == ""
    example = " ".join(text.split("Example: gatewise ")[1].split("\n\n")[0].split()).split()
    assert example[0] == name
    called, _, _ = cli.app.parse_args(example, print_error=False, exit_on_error=False)
    assert called.__name__ == name
    assert f"Example: gatewise {' '.join(example)}" in text  # in one line, to be copied


def test_help_of_flag_is_text_of_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    shown = re.sub(r"--no-[a-z-]+|[│\s]", "", capsys.readouterr().out)  # some names take a second line
    documented = re.findall(r"^ {8}\w+: (.+(?:\n {12}.+)*)\.$", Recipe.__doc__ or "", flags=re.MULTILINE)
    assert len(documented) == len(dataclasses.fields(Recipe))
    assert [text for text in documented if "".join(text.split()) not in shown] == []


def test_help_of_all_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text, _ = printed(capsys)
    assert all(f"│ {name} " in text for name in COMMANDS)


def test_without_arguments_first_steps_are_commands_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    text, _ = printed(capsys)
    steps = [re.split(r"  +", line.strip())[0].split()[1:] for line in text.splitlines() if line.startswith("  ")]
    assert [step[0] for step in steps] == ["demo", "check", "compare", "explain", "predict", "export"]
    for step in steps:
        cli.app.parse_args([word.strip(",") for word in step], print_error=False, exit_on_error=False)


QUICKLY = [[], ["--help"], ["--version"], ["trian"], ["train", "--epoch", "3"], ["train", "--epochs", "1.5"]]
QUICKLY += [[name, "--help"] for name in COMMANDS] + [["completion", shell] for shell in ("bash", "zsh", "fish")]


def test_help_and_typing_mistakes_do_not_import_torch() -> None:
    code = f"""
import sys
from gatewise.cli import run
codes = [run(arguments) for arguments in {QUICKLY}]
print("\\n", codes.count(0), codes.count(2), {{"torch", "numpy"}} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f" {len(QUICKLY) - 3} 3 set()", result.stderr


def test_stored_description_is_that_of_the_code() -> None:
    stored = json.loads(Path(cli.recipe_flags.__file__).with_name("description.json").read_text())
    assert stored == json.loads(json.dumps(cli.recipe_flags.describe())), "run make docs"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_registers_a_function_of_its_script(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert run(["completion", shell]) == 0
    script, _ = printed(capsys)
    (function,) = re.findall(r"^(?:complete -F|compdef) (\w+) gatewise$", script, flags=re.MULTILINE)
    assert f"\n{function}() {{" in script
    assert all(name in script for name in COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [("gatewise com", {"compact", "compare", "completion"}), ("gatewise train --ep", {"--epochs"})],
)
def test_bash_completes(capsys: pytest.CaptureFixture[str], words: str, offered: set[str]) -> None:
    assert run(["completion", "bash"]) == 0
    asked = f'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _gatewise; echo "${{COMPREPLY[@]}}"'
    script = f"{printed(capsys)[0]}\n{asked}\n"
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == offered


@pytest.mark.parametrize(("name", "left_out"), [("train", set()), ("compare", {"gate", "seed"})])
def test_every_recipe_field_is_flag_with_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, left_out: set[str]
) -> None:
    monkeypatch.setattr(cli.app, "console", Console(width=700))  # made once for a process, with the width of its day
    assert run([name, "--help"]) == 0
    lines = printed(capsys)[0].splitlines()
    for field in dataclasses.fields(Recipe):
        flag = f"│    --{field.name.replace('_', '-')} "
        found = [line for line in lines if line.startswith(flag)]
        assert len(found) == (0 if field.name in left_out else 1), field.name
        for line in found:
            assert f"[{field.default}]" in line


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert printed(capsys)[0].strip() == environment()["gatewise"]


# Gates


def test_gates_json_matches_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gates", "--json"]) == 0
    rows = json.loads(printed(capsys)[0])
    assert [row["name"] for row in rows] == list(gw.gate_names())
    for row in rows:
        facts = gw.gate_spec(row["name"])
        expected = (facts.title, facts.place, list(facts.options), facts.paper)
        assert (row["title"], row["place"], row["options"], row["paper"]) == expected
        assert row["defaults"] == {name: option.default for name, option in facts.options.items()}
        assert row["identity_at_init"] == gw.make_gate(row["name"], 8).identity_at_init


def test_gates_table_matches_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gates"]) == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in printed(capsys)[0].splitlines() if "│" in line]
    named = {row[1]: row for row in rows if row[1]}
    assert list(named) == [*gw.gate_names(), *place_names()]
    assert [named[name][2] for name in place_names()] == [
        place_kind(name).where.replace("`", "") for name in place_names()
    ]
    assert [named[name][3] for name in ("inner", "residual_end", "context")] == ["sites=inner", "sites=residual", ""]
    for name in gw.gate_names():
        row = named[name]
        facts = gw.gate_spec(name)
        identity = "yes" if gw.make_gate(name, 8).identity_at_init else "no"
        assert row[2:5] == [facts.title, facts.place, identity]


@pytest.mark.parametrize("name", [*gw.gate_names(), "gaternet"])
def test_options_of_one_gate_have_default_and_meaning(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(["gates", name]) == 0
    text, _ = printed(capsys)
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    assert text.startswith(f"{name}: ")
    assert all(meaning for _, _, _, meaning, _ in rows)
    given = ",".join(f"{option}={default}" for _, option, default, _, _ in rows)
    if name != "gaternet":
        spec = gw.gate_spec(name)
        assert f"place: {spec.place}, " in text
        options = gw.GateChoice.parse(f"{name}:{given}").options
        assert options == {option: parameter.default for option, parameter in spec.options.items()}


def test_options_of_unknown_gate_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gates", "gtc"]) == 2
    assert "Did you mean 'gct'?" in printed(capsys)[1]
    assert run(["gates", "gct", "--json"]) == 0
    assert [row["name"] for row in json.loads(printed(capsys)[0])] == ["gct"]


@pytest.mark.parametrize("width", [60, 80])
def test_tables_of_narrow_terminals_cut_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["gates"]) == run(["gates", "gct"]) == 0
    text, _ = printed(capsys)
    assert "…" not in text
    assert all(f"│ {name} " in text for name in [*gw.gate_names(), *place_names(), "spatial_dims"])
    assert max(len(line) for line in text.splitlines() if "│" in line) <= width


def test_table_is_turned_where_it_is_too_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison in a terminal of 80 columns had a word or half of one in each line of a cell."""
    columns = ["gates", "accuracy % [95 % interval]", "difference to none, over seeds", "1 image (ms)"]
    rows = [
        [Cell("none"), Cell("85.63"), Cell("-"), Cell("2.54")],
        [Cell("gct"), Cell("86.15"), Cell("+0.52"), Cell("3.97")],
    ]
    monkeypatch.setenv("COLUMNS", "60")
    print_table(Table(columns, rows))
    lines = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in printed(capsys)[0].splitlines()]
    assert [line for line in lines if line] == [
        list(line) for line in zip(columns, *([c.text for c in row] for row in rows), strict=True)
    ]
    monkeypatch.setenv("COLUMNS", "120")
    print_table(Table(columns, rows))
    assert "│ gct   │ 86.15 " in printed(capsys)[0]


def test_gates_markdown_has_section_per_gate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gates", "--markdown"]) == 0
    heads = [line for line in printed(capsys)[0].splitlines() if line.startswith("## ")]
    assert heads[:-2] == [f"## `{name}`: {gw.gate_spec(name).title}" for name in gw.gate_names()]
    assert heads[-2].startswith("## `gaternet`")
    assert heads[-1] == "## Places"


# Training


def test_training_prints_accuracy_and_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *QUICK, "--out", "run"]) == 0
    metrics = json.loads((here / "run/metrics.json").read_text())
    out, _ = printed(capsys)
    assert out.startswith(f"accuracy {100 * metrics['accuracy']:.2f} % after 1 epoch, ")
    macs = metrics["executed_macs"] / 1e6
    assert f", {metrics['parameters']:,} parameters, {macs:.2f} M multiply-adds per image, " in out
    assert out.strip().endswith("run: run")


def recipe_of(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> Recipe:
    """Return the recipe that a command line leads to, without training anything."""
    asked: list[Recipe] = []

    def remember(recipe: Recipe, *_: Any, **__: Any) -> None:
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(CALLED[name], remember)
    assert run([name, "--out", "run", *arguments]) == 130
    return asked[0]


OTHER = {
    "data": "elsewhere",
    "model": "resnet32",
    "gate": "gct:mode=l1@inner",
    "init": "runs/none/seed_{seed}",
    "gater_init": "runs/gater/seed_{seed}",
    "teacher": "runs/none/seed_{seed}",
    "teacher_weight": 0.25,
    "teacher_temperature": 2.0,
    "epochs": 7,
    "gate_epochs": 2,
    "dense_epochs": 3,
    "seed": 3,
    "batch_size": 18,
    "lr": 0.125,
    "warmup": 0.25,
    "momentum": 0.5,
    "weight_decay": 0.0625,
    "optimizer": "adamw",
    "label_smoothing": 0.5,
    "mixup": 0.5,
    "cutmix": 0.25,
    "ema": 0.75,
    "augmentation": "shift+flip+rand-m9",
    "image_size": 24,
    "loading": "stream",
    "precision": "bf16",
    "compile": True,
    "keep_checkpoint": True,
    "metric": "balanced_accuracy",
    "channels": "gray",
    "value_range": "0,4095",
    "validation_split": "fold=0",
    "test_split": 0.25,
    "split_seed": 4,
    "group": "patient",
    "image_column": "file",
    "label_column": "kind",
    "label_delimiter": "|",
    "data_root": "photos",
    "on_broken": "skip",
}
OF_PIXELS = {
    "task": "segment",
    "crop_size": 32,
    "ignore_index": 3,
    "class_names": "road,car",
    "foreground": "car",
    "class_weights": "median_frequency",
    "mask_threshold": 128.0,
}


def test_every_flag_reaches_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*OTHER, *OF_PIXELS} == {field.name for field in dataclasses.fields(Recipe)}
    flags, of_pixels = (
        [
            text
            for name, value in values.items()
            for text in (f"--{name.replace('_', '-')}" + ("=true" if value is True else ""), str(value))
            if value is not True or text.startswith("--")
        ]
        for values in (OTHER, OF_PIXELS)
    )
    assert recipe_of(monkeypatch, "train", *flags) == Recipe(**OTHER)
    assert recipe_of(monkeypatch, "train", *of_pixels) == Recipe(**OF_PIXELS)
    positions = [flags.index(flag) for flag in ("--gate", "--seed")]
    left_out = {position + offset for position in positions for offset in (0, 1)}
    without = [text for position, text in enumerate(flags) if position not in left_out]
    assert recipe_of(monkeypatch, "compare", *without) == Recipe(**{**OTHER, "gate": "none", "seed": 0})


@pytest.mark.parametrize("name", ["train", "compare"])
def test_flags_override_file_and_file_overrides_defaults(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Recipe(epochs=3, lr=0.5, momentum=0.25).save(here / "mine.yaml")
    found = recipe_of(monkeypatch, name, "--recipe", "mine.yaml", "--epochs", "4", "--momentum", "0")
    assert found == Recipe(epochs=4, lr=0.5, momentum=0.0)


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        ({"test_split": 0.1}, {"test_split": "none"}),  # a word of its own: no test images
        ({"gate": "gct", "init": "run", "teacher": "run"}, {"gate": "none", "init": None, "teacher": None}),
        ({"image_size": 32, "lr": 0.5, "group": "patient"}, {"image_size": None, "lr": None, "group": None}),
        ({"augmentation": "flip", "class_weights": "balanced"}, {"augmentation": "none", "class_weights": "none"}),
    ],
)
def test_typed_none_is_a_value(
    here: Path, monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any], meant: dict[str, Any]
) -> None:
    Recipe(**stored).save(here / "mine.yaml")
    flags = [text for name in stored for text in (cli.recipe_flags.flag_of(name), "none")]
    assert recipe_of(monkeypatch, "train", "--recipe", "mine.yaml", *flags) == Recipe(**meant)


def test_saved_recipe_reproduces_run(here: Path) -> None:
    assert run(["train", "--gate", "gct", "--seed", "2", *QUICK, "--out", "first"]) == 0
    assert run(["train", "--recipe", "first/recipe.yaml", "--out", "again"]) == 0
    first, again = (load_file(here / name / "model.safetensors") for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_resume_skips_finished_run_and_starts_missing_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run(["train", *QUICK, "--out", "run", "--resume", "--json"]) == 0
    out, progress = printed(capsys)
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert json.loads(first) == json.loads(second)
    assert len([line for line in progress.splitlines() if ": epoch 1/1" in line]) == 1


@pytest.mark.parametrize(
    ("words", "called", "how"),
    [
        ("train --out run", "gatewise.training.train", " with --resume to continue"),
        ("compare --out run", "gatewise.comparison.compare", " to continue"),
        ("check --data digits", "gatewise.data.inventory.take_inventory", ""),
    ],
)
def test_interruption_message_says_how_to_continue(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, called: str, how: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(called, interrupt)
    assert run(words.split()) == 130
    assert printed(capsys)[1] == f"gatewise: interrupted; run the same command again{how}\n"


@pytest.mark.parametrize(
    ("flags", "gate"),
    [
        (["--gater", "light"], "gaternet:gater=light"),
        (["--sites", "residual", "--gater", "resnet20"], "gaternet:gater=resnet20,sites=residual"),
        (["--budget", "0.5", "--gate", "se"], "se+gaternet:budget=0.5"),
        (["--gate", "gaternet:budget=0.5+se", "--routes", "4"], "se+gaternet:budget=0.5,routes=4"),
        (["--gate", "gaternet:budget=0.5,routes=4", "--budget", "none", "--routes", "none"], "gaternet"),
        (["--budget", "none"], "none"),
        ([], "none"),
    ],
)
def test_gater_has_its_own_flags(monkeypatch: pytest.MonkeyPatch, flags: list[str], gate: str) -> None:
    assert recipe_of(monkeypatch, "train", *flags).gate == gate


@pytest.mark.parametrize("command", ["train", "compare"])
def test_default_workers_is_one_per_processor(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def remember(*_: Any, workers: int, **__: Any) -> None:
        asked.append(workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(CALLED[command], remember)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert run([command, "--out", "run"]) == run([command, "--out", "run", "--workers", "5"]) == 130
    assert asked == [3, 5]
    assert run([command, "--out", "run", "--workers", "-1"]) == 2
    assert "workers must be at least 0, got -1" in printed(capsys)[1]


# Comparing


@pytest.mark.extended
def test_compare_prints_its_results_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--gates", "none,se", "--seeds", "1", *QUICK, "--out", "all", "--json"]) == 0
    results = json.loads(printed(capsys)[0])
    assert results == json.loads((here / "all/results.json").read_text())
    assert not {"--workers", "--track"} & set(results["training"]["command"].split())  # both had their defaults
    assert [variant["gates"] for variant in results["variants"]] == ["none", "se"]


@pytest.mark.extended
def test_compare_prints_table_and_path_of_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--gates", "none,gct:mode=l1,eps=1e-4@inner", "--seeds", "1", *QUICK, "--out", "all"]) == 0
    out, _ = printed(capsys)
    results = json.loads((here / "all/results.json").read_text())
    for row in table(results).rows:
        (line,) = [line for line in out.splitlines() if line.startswith(f"│ {row[0].text} ")]
        assert [cell.strip() for cell in line.strip("│").split("│")] == [cell.text for cell in row]
    assert out.splitlines()[-1] == f"report: {(here / 'all/report.html').resolve()}"
    assert (here / "all/report.html").exists()


def test_compare_takes_gates_and_seeds_from_flags(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def remember(_: Recipe, gates: Any, seeds: int, out: Path, **__: Any) -> None:
        asked.append(([*map(str, gates[0])], seeds, out))
        raise KeyboardInterrupt

    monkeypatch.setattr(CALLED["compare"], remember)
    run(["compare", "--gates", "gct+se@inner", "--seeds", "4", "--out", "there"])
    assert asked == [(["gct", "se@inner"], 4, Path("there"))]


# Mistakes


def _begun(run: Path) -> None:
    """Write the files of a training that was stopped after its first step."""
    Recipe(epochs=1).save(run / "recipe.yaml")
    (run / "checkpoints" / "step_000000001").mkdir(parents=True)
    for kind in ("json", "safetensors"):
        (run / "checkpoints" / "step_000000001" / f"state.{kind}").touch()


def _a_run(folder: Path) -> None:
    _begun(folder / "there")


def _a_comparison(folder: Path) -> None:
    _begun(folder / "there/runs/none/seed_0")


def _a_file(folder: Path) -> None:
    (folder / "file").write_text("- no recipe")


def _a_file_in_a_folder(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "there/file").touch()


MISTAKES: dict[str, tuple[str, str]] = {
    "unknown command": ("trian", "Did you mean"),
    "unknown flag": ("train --epoch 3 --out there", "--epoch"),
    "flag of other programs": ("train --learning-rate 0.1 --out there", "Did you mean --lr?"),
    "resumed comparison": ("compare --resume --out there", "goes on when the same command is given again"),
    "flag of another command": ("compare --seed 1 --out there", "--seed"),
    "stray word": ("train --out there stray", "takes options only, got also stray: give images with --data stray"),
    "data without its flag": ("check my photos", "got also my photos: give images with --data my photos."),
    "two runs for one": ("evaluate a b", "takes one RUN, got also b: give images with --data b, or call it once for"),
    "two tables for one": ("judge a b", "judge takes one SOURCE, got also b: call it once for each SOURCE."),
    "a word too many": ("demo a", "demo takes options only, got also a: omit it."),
    "unknown flag among images": ("predict there a.jpg --topk 2", "Unknown option: --topk. Did you mean --top-k?"),
    "missing out": ("train", "--out"),
    "missing value": ("train --epochs --out there", "--epochs"),
    "no number": ("train --epochs three --out there", "--epochs: expected an integer, got 'three'"),
    "no whole number": ("train --epochs 2.5 --out there", "--epochs: expected an integer, got '2.5'"),
    "no whole number of seeds": ("compare --seeds 1.5 --out there", "--seeds: expected an integer, got '1.5'"),
    "no whole number of pixels": ("train --image-size 8.5 --out there", "expected an integer, got '8.5'"),
    "no rate": ("train --lr fast --out there", "--lr"),
    "rate of nothing": ("train --lr 0 --out there", "lr must be between"),
    "no epochs": ("train --epochs 0 --out there", "epochs must be at least 1, got 0"),
    "negative seed": ("train --seed -1 --out there", "seed must be at least 0, got -1"),
    "unknown gate": ("train --gate gcct --out there", "Did you mean 'gct'?"),
    "unknown gate to compare": ("compare --gates none,gcct --out there", "Did you mean 'gct'?"),
    "unknown option of a gate": ("train --gate gct:mod=l1 --out there", "Did you mean 'mode'?"),
    "unknown place": ("train --gate gct@inne --out there", "Did you mean 'inner'?"),
    "gates listed twice": ("compare --gates se,se --out there", "listed twice: se"),
    "no gates": ("compare --gates , --out there", "no gates given"),
    "no seeds": ("compare --seeds 0 --out there", "seeds must be at least 1, got 0"),
    "unknown model": ("train --model resnet2o --out there", "unknown model 'resnet2o'"),
    "unknown option of a model": ("train --model resnet20:widht=8 --out there", "'widht'"),
    "unknown option of timm's model": ("train --model resnet18:widht=8 --out there", "'widht'"),
    "unknown optimizer": ("train --optimizer sdg --out there", "Did you mean 'sgd'?"),
    "unknown precision": ("train --precision fp8 --out there", "unknown precision 'fp8'"),
    "unknown augmentation": ("train --augmentation flop --out there", "unknown augmentation 'flop'"),
    "missing data": ("train --data nowhere --out there", "'nowhere' does not exist"),
    "missing data to compare": ("compare --data nowhere --out there", "'nowhere' does not exist"),
    "misspelt name of data": ("check --data Digit", "Did you mean 'digits'?"),
    "data that is a file": ("train --data file --out there", "'file' is a file"),
    "size for digits": ("train --image-size 16 --out there", "digits has images of 8x8, got --image-size 16"),
    "missing recipe": ("train --recipe nowhere.yaml --out there", "'nowhere.yaml' does not exist"),
    "recipe that is none": ("train --recipe file --out there", "file is not a recipe"),
    "out below a file": ("train --out file/run", "gatewise: file is not a folder"),
    "comparison below a file": ("compare --gates none --seeds 1 --out file/all", "file"),
}
PREPARED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "misspelt data": (_a_file_in_a_folder, "train --data there/fill --out there", "Did you mean 'there/file'?"),
    "misspelt run": (
        _a_file_in_a_folder,
        "evaluate there/fill",
        "'there/fill' does not exist. Did you mean 'there/file'?",
    ),
    "existing run": (_a_run, "train --epochs 1 --out there", "there already contains a run"),
    "run of another recipe": (_a_run, "train --epochs 2 --out there --resume", "epochs 1 there, 2 now"),
    "comparison of another recipe": (_a_comparison, "compare --epochs 2 --out there", "epochs 1 there, 2 now"),
}


@pytest.mark.parametrize("case", [*MISTAKES, *PREPARED])
def test_usage_error_is_one_line_with_code_2(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    _a_file(here)
    prepare, line, expected = PREPARED.get(case) or (lambda _: None, *MISTAKES[case])
    prepare(here)
    assert run(line.split()) == 2
    out, err = printed(capsys)
    assert out == ""
    assert err.startswith("gatewise: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not list(here.rglob("metrics.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_usage_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here.chmod(0o500)
    assert run(["train", *QUICK, "--out", "run"]) == 2
    assert printed(capsys)[1].startswith("gatewise: ")
    here.chmod(0o700)


def test_full_disk_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(["train", *QUICK, "--out", "run"]) == 1
    said = printed(capsys)[1].splitlines()[-1]
    assert said.startswith("gatewise: run/recipe.yaml cannot be written (")
    assert "No space left on device. Free some space there, or choose another folder" in said
    assert said.endswith("No checkpoint had been written. Then give the same command again (train: with --resume).")


def test_internal_error_is_not_reported_as_usage_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CALLED["train"], broken)
    with pytest.raises(ZeroDivisionError):
        run(["train", "--out", "run"])


@pytest.mark.parametrize(
    ("line", "paths", "options"),
    [
        (
            "predict --json run --top-k 2 a.jpg - --out masks b.jpg -- --c.jpg",
            {"images": ["a.jpg", "-", "b.jpg", "--c.jpg"]},
            {"top_k": 2, "out": Path("masks"), "json_output": True},
        ),
        (
            "explain a --out x.html b --data photos c",
            {"runs": ["a", "b", "c"]},
            {"out": Path("x.html"), "data": "photos"},
        ),
    ],
)
def test_options_may_stand_between_paths(
    here: Path, line: str, paths: dict[str, list[str]], options: dict[str, Any]
) -> None:
    (here / "--c.jpg").touch()
    _, bound, _ = cli.app.parse_args(line.split(), print_error=False, exit_on_error=False)
    expected = {name: tuple(map(Path, given)) for name, given in paths.items()} | options
    assert {name: bound.arguments[name] for name in expected} == expected


@pytest.mark.parametrize(("line", "name"), [("predict run", "IMAGES"), ("explain --out x.html", "RUNS")])
def test_missing_paths_are_named(capsys: pytest.CaptureFixture[str], line: str, name: str) -> None:
    assert run(line.split()) == 2
    assert capsys.readouterr().err == f"gatewise: {name} is missing.\n"


def test_missing_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "somewhere"]) == 2
    assert capsys.readouterr().err == "gatewise: --out is missing.\n"
    assert run(["export", "somewhere", "--out"]) == 2
    assert "requires an argument" in capsys.readouterr().err


def test_closed_pipe_of_reader_is_silent() -> None:
    command = f"{sys.executable} -m gatewise gates --markdown | head -1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("#")
    assert result.stderr == ""


@pytest.mark.parametrize("more", [[], ["--runtimes", "torch"]])
def test_file_is_no_run_to_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"")
    assert run(["bench", str(file), *more]) == 2
    assert f"'{file}' is not a run folder" in capsys.readouterr().err


def test_folder_without_run_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    assert run(["predict", str(tmp_path), str(tmp_path / "x.png")]) == 2
    assert "is not a run folder: it has no config.json" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").touch()
    assert run(["predict", str(tmp_path), str(tmp_path / "x.png")]) == 2
    assert "the run has not finished. Resume it" in capsys.readouterr().err
    (tmp_path / "results.json").touch()
    assert run(["predict", str(tmp_path), str(tmp_path / "x.png")]) == 2
    assert "holds a comparison; give its runs, for example" in capsys.readouterr().err
    assert run(["predict", "no.onnx", str(tmp_path / "x.png")]) == 2
    assert "run folder or ONNX file 'no.onnx' does not exist" in capsys.readouterr().err
