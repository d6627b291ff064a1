"""Corrupt files and hostile values, drawn by hypothesis and by the fuzzer: they raise our errors and do no harm."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gatewise as gw
from gatewise.core._validation import safe_repr
from gatewise.core.schema import checked_details
from gatewise.errors import GatewiseError
from gatewise.gates.spec import format_gates, parse_gates, parse_gates_list, parse_value
from gatewise.training import Recipe
from support.fuzzing import TARGETS
from support.fuzzing.base import make as make_files
from support.fuzzing.box import Box
from support.fuzzing.pool import Worker, environment
from support.fuzzing.worker import make
from support.project import ROOT
from tools.fuzz import fuzz

PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=10), inside, max_size=4),
    max_leaves=12,
)
FIELDS = list(Recipe.__dataclass_fields__)


def outcome(call: Callable[[Any], Any], value: Any) -> str:
    """Return the result of a call or the text of its GatewiseError; other errors are raised."""
    try:
        return f"taken: {call(value)!r}"
    except GatewiseError as error:
        return str(error).strip()


@settings(max_examples=200)
@given(st.text(alphabet=st.sampled_from("gctsenl:=,+@/.-_ 019x\n\0é"), max_size=40))
def test_every_text_is_spec_or_rejected(text: str) -> None:
    for read in (gw.ModelSpec.parse, gw.GateChoice.parse, parse_gates, parse_gates_list):
        assert outcome(read, text)
    parse_value(text)


@given(st.sampled_from(["none", "se", "gct:mode=l1@inner", "gct+se@stage_end", "ge:map_size=7x8,learned=true"]))
def test_parsed_gates_round_trip(text: str) -> None:
    assert parse_gates(format_gates(parse_gates(text))) == parse_gates(text)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), PLAIN, max_size=3))
def test_every_mapping_is_recipe_or_rejected(values: dict[str, Any]) -> None:
    assert outcome(Recipe.from_dict, values)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_every_file_is_recipe_or_rejected_with_its_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    try:
        Recipe.load(file)
    except GatewiseError as error:
        message = str(error)
    else:
        message = str(file)
    assert "mine.yaml" in message
    assert file.read_bytes() == content


@settings(max_examples=100)
@given(PLAIN)
def test_every_config_is_accepted_or_rejected_with_its_file(values: Any) -> None:
    config = {"mean": values, "std": [1.0], "image_size": values, "in_chans": values}
    with pytest.raises(GatewiseError, match=r"^config\.json: .*Restore the file\.$"):
        checked_details(Path("config.json"), config)


@settings(max_examples=100)
@given(PLAIN)
def test_safe_repr_is_one_bounded_line(values: Any) -> None:
    text = safe_repr(values)
    assert len(text) <= 403
    assert "\n" not in text


def test_safe_repr_stops_at_third_level() -> None:
    """A few kilobytes of YAML can name a list of lists with billions of entries."""
    assert safe_repr([[[[["x"]]]]]) == "[[[[...]]]]"
    assert safe_repr({"a": {"b": {"c": {"d": 1}}}}) == "{'a': {'b': {'c': {...}}}}"


# The fuzzer


@pytest.mark.extended
def test_100_inputs_do_no_harm(tmp_path: Path) -> None:
    make_files(tmp_path / "base", exported=False)
    found = fuzz(100, 0, seed=1, base=tmp_path / "base")
    assert found["failures"] == []
    assert found["inputs"] >= 100
    assert found["outcomes"]["rejected"] > 50


@pytest.mark.slow
def test_more_inputs_and_commands_do_no_harm() -> None:
    found = fuzz(3000, 30, seed=2, workers=2)
    assert found["failures"] == []
    assert (found["commands"], set(found["targets"])) == (30, {*TARGETS, "command"})


def a_box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box", tmp_path, "seed")


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (lambda box: box.canary.write_text("x"), "executed"),
        (lambda box: (box.inputs / "file").write_text("other"), "files"),
        (lambda box: (box.home / "new").write_text("x"), "files"),
        (lambda box: (box.inputs / "file").unlink(), "files"),
        (lambda _: {}["x"], "KeyError"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["executed", "changed", "written elsewhere", "removed", "traceback", "another traceback"],
)
def test_fuzzer_detects_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Any, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    box = a_box(tmp_path)
    (box.inputs / "file").write_text("x")
    found = make(box, lambda box: lambda: harm(box))
    assert (found["outcome"], found["kind"]) == ("failed", kind)


def test_fuzzer_allows_writing_to_requested_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    box = a_box(tmp_path)
    assert make(box, lambda box: box.out.mkdir)["outcome"] == "accepted"


WORKER = """
import os, sys, time
from support.fuzzing import TARGETS
from support.fuzzing.target import Target
from support.fuzzing import worker
def hang(box): return lambda: time.sleep(60)
def die(box): return lambda: os._exit(3)
def grow(box): return lambda: b"x" * (300 << 20)
for way in (hang, die, grow):
    TARGETS[way.__name__] = Target(way.__name__, way, 1)
from pathlib import Path
worker.main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hang", "die"])
def test_hanging_dead_or_growing_worker_is_reported_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    whole = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return whole([sys.executable, "-c", WORKER, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    worker = Worker(tmp_path / "worker", tmp_path, limit_s=0.5 if way == "hang" else 60.0, most_bytes=100 << 20)
    try:
        kinds = [worker.make(way, f"0/{way}/0")["kind"]]
        worker.limit_s = 60.0
        kinds.append(worker.make("grow", "0/grow/0")["kind"])
    finally:
        worker.stop()
    assert kinds == [{"hang": "hang", "die": "died"}[way], "memory"]
    assert worker.replaced == 1


def test_published_record_has_promised_number_of_inputs() -> None:
    file = ROOT / "docs/results/reliability/fuzz.json"
    if not file.exists():
        pytest.skip("no run is recorded yet: make fuzz")
    record = json.loads(file.read_text())
    assert record["inputs"] >= 10_000
    assert record["commands"] >= 200
    assert record["failures"] == []
    assert set(record["targets"]) == {*TARGETS, "command"}
    assert environment()["OMP_NUM_THREADS"] == "1"
