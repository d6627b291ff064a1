"""The mutants' machinery: changes to sources, choice of tests, output and exit codes of runs."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import (
    DoesNotApplyError,
    Mutant,
    catalogue,
    draw,
    drop_call,
    flip,
    mapping,
    off_by_one,
    remove,
    replace,
    replace_text,
    swap,
    tests_found,
)
from mutants.tests_found import FoundTests, Known
from support.project import ROOT

SOURCE = '''
"""A module."""
import functools

LIMIT = 3


class Box:
    """A box."""

    @functools.cache
    def area(self, a, b=1):
        """Return the area.

        >>> Box().area(2, 3)
        6
        """
        if a < b and not self.closed:  # a comment
            a = torch.relu(
                a.detach(),
            )
        for x in range(a):
            self.add(x, key=b)
            self.add(x, key=b)
        return f"{a + 1}" if a else None


def area(a):
    if a < 2: return a
    return a
'''


def mutated(folder: Path, symbol: str, change: object, source: str = SOURCE) -> str:
    (folder / "module.py").write_text(source)
    return Mutant("name", "module.py", symbol, change).mutated(folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        (flip("a < b"), "a < b and", "a >= b and"),
        (flip("a < b and not self.closed"), "a < b and not", "a < b or not"),
        (flip("not self.closed"), "not self.closed", "self.closed"),
        (flip("a + 1"), "a + 1", "a - 1"),
        (off_by_one("a < b"), "a < b and", "a <= b and"),
        (off_by_one("a + 1"), "a + 1", "a"),
        (off_by_one("range(a)"), "range(a)", "range(a) + 1"),
        (swap("a + 1"), "a + 1", "1 + a"),
        (swap("f'{a + 1}' if a else None"), 'f"{a + 1}" if a else None', 'None if a else f"{a + 1}"'),
        (drop_call("detach"), "a.detach()", "a"),
        (drop_call("relu"), "torch.relu(\n                a.detach(),\n            )", "a.detach()"),
        (drop_call("range(a)"), "range(a)", "a"),
        (remove("@functools.cache"), "    @functools.cache\n", ""),
        (remove("self.add(x, key=b)", nth=2), "            self.add(x, key=b)\n        return", "        return"),
        (remove("for x in range(a): ..."), SOURCE[SOURCE.index("        for") : SOURCE.index("        return f")], ""),
        (replace("key=b", "key=a", nth=1), "key=b)", "key=a)"),
        (remove("key=b", nth=1), "x, key=b)", "x)"),
        (replace("for x in range(a): ...", "for x in range(b): ..."), "range(a)", "range(b)"),
        (replace("if a < b and not self.closed: ...", "..."), "if a < b and not self.closed:", "if True:"),
        (replace("a.detach()", "a.detach(); print(a)"), None, None),
        (replace_text("A module.", "A text."), "A module.", "A text."),
    ],
    ids=str,
)
def test_change_is_made_at_its_old_code(tmp_path: Path, change: object, old: str | None, new: str) -> None:
    if old is None:
        with pytest.raises(DoesNotApplyError, match="0 times"):  # an expression inside another is no statement
            mutated(tmp_path, "Box.area", change)
        return
    wanted = ast.parse(SOURCE.replace(old, new, 1))
    if new == "if True:":
        function = wanted.body[3].body[1]  # type: ignore[attr-defined]
        function.body[1:2] = function.body[1].body
    assert ast.dump(ast.parse(mutated(tmp_path, "Box.area", change))) == ast.dump(wanted)
    assert ast.dump(wanted) != ast.dump(ast.parse(SOURCE))


def test_other_lines_are_unchanged(tmp_path: Path) -> None:
    before, after = SOURCE.splitlines(), mutated(tmp_path, "Box.area", drop_call("relu")).splitlines()
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 3
    assert after[before.index("        if a < b and not self.closed:  # a comment") + 1].strip() == "a = a.detach()"


def test_layout_comments_quotes_and_moves_do_not_matter(tmp_path: Path) -> None:
    module = ast.parse(SOURCE)
    module.body.reverse()
    elsewhere = ast.unparse(module)  # without comments, in one line where SOURCE has three
    for change in (
        flip("a<b"),
        drop_call("relu"),
        replace("torch . relu(a.detach( ))", "a"),
        remove('return f"{a + 1}" if a else None'),
    ):
        here, there = (mutated(tmp_path, "Box.area", change, source) for source in (SOURCE, elsewhere))
        assert sorted(map(ast.dump, ast.parse(here).body)) == sorted(map(ast.dump, ast.parse(there).body))
        assert ast.dump(ast.parse(here)) != ast.dump(ast.parse(SOURCE))


@pytest.mark.parametrize(
    ("symbol", "change", "reason"),
    [
        ("Box.area", remove("self.add(x, key=b)"), "the old code stands 2 times in Box.area"),
        ("Box.area", replace("self.add(x, key=b)", "pass", nth=3), "stands 2 times"),
        ("Box.area", flip("a < 2"), "the old code stands 0 times"),
        ("", flip("a < 2"), "stands 0 times in module.py"),
        ("Box.width", flip("a < 2"), "module.py has no Box.width"),
        ("area", replace("a < 2", "a  <  2"), "it changes nothing"),
        ("", replace_text("area", "x"), "stands 4 times in the file"),
    ],
)
def test_code_that_is_not_unique_does_not_apply(tmp_path: Path, symbol: str, change: object, reason: str) -> None:
    with pytest.raises(DoesNotApplyError, match=reason):
        mutated(tmp_path, symbol, change)


def test_missing_module_does_not_apply(tmp_path: Path) -> None:
    mutant = Mutant("name", "gone.py", "f", flip("a < 2"))
    assert catalogue.not_applicable([mutant], tmp_path) == {mutant: "there is no gone.py"}


@pytest.mark.parametrize("change", [flip("a.b"), swap("f(a)"), drop_call("a + b")], ids=str)
def test_operator_error_names_expected_code(tmp_path: Path, change: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        mutated(tmp_path, "area", change)


def test_draw_depends_on_commit_and_changed_modules_come_first() -> None:
    mutants = [Mutant(str(number), f"{number % 4}.py", "", flip("a < b")) for number in range(40)]
    first = draw.drawn(mutants, "abc", {"1.py", "2.py"})
    assert first == draw.drawn(reversed(mutants), "abc", {"1.py", "2.py"})
    assert first != draw.drawn(mutants, "abe", {"1.py", "2.py"})
    assert {mutant.module for mutant in first[:20]} == {"1.py", "2.py"}
    assert sorted(first, key=mutants.index) == mutants


def test_tests_are_chosen_by_symbol_module_then_importers(tmp_path: Path) -> None:
    package = tmp_path / "src/gatewise"
    package.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("def test_1(): ...\ndef test_2(): ...\ndef test_3(): ...\n")
    (package / "user.py").write_text("from gatewise.kernel import run\n")
    one, two, three, gone = (f"tests/test_a.py::test_{name}" for name in ("1", "2", "3", "gone"))
    known = {one: Known(9.0, 5), two: Known(0.1, 5), three: Known(0.1, 2), gone: Known(0.1, 1)}
    symbols = {"a.py::A.f": [one, two], "a.py::A.g": [three], "a.py::AB": [gone], "user.py::f": [three]}
    found = FoundTests(tmp_path, known, symbols)

    def executing(module: str, symbol: str) -> list[str]:
        return found.executing(Mutant("name", module, symbol, flip("a < b")))

    assert executing("a.py", "A.f") == [two, one]  # the quicker one first
    assert executing("a.py", "A") == executing("a.py", "") == executing("a.py", "new") == [three, two, one]
    assert executing("kernel.py", "run") == [three]
    assert executing("a.html", "") == [three, two, one]
    assert executing("unknown.py", "") == []


def test_each_test_file_takes_turns() -> None:
    tests = [f"tests/test_{file}.py::test_{number}" for file in "ab" for number in range(30)]
    known = {test: Known(1.0, 1 + ("_b" in test)) for test in tests}
    chosen = tests_found.specific_first(tests, known)
    assert len(chosen) == tests_found.MOST
    assert [sum(f"test_{file}.py" in test for test in chosen) for file in "ab"] == [13, 12]


@pytest.mark.parametrize(
    ("context", "test"),
    [
        ("", ""),
        ("tests/test_a.py::test_1", "tests/test_a.py::test_1"),
        ("tests/test_a.py::test_1[x (y)] (call)", "tests/test_a.py::test_1"),
        ("tests/test_a.py::test_1 (setup)|tests/test_a.py::test_1", "tests/test_a.py::test_1"),
        ("tests/test_a.py::test_1 (setup)|", "tests/test_a.py::test_1"),
        ("fixture tests/test_a.py::box", "fixture tests/test_a.py::box"),
    ],
)
def test_context_names_its_test(context: str, test: str) -> None:
    assert mapping.test_of(context) == test


MODULE = """
import os, time

def caught(a):
    return a + 1

def survives(a):
    return a + 2

def crashes(a):
    return a + 3

def hangs(a):
    return a + 4

def unsound(a):
    return a + 5

def broken():
    return 6

def in_process():
    return 7

def skipped():
    return 8

SIX = broken()
"""
TESTS = """
import functools, subprocess, sys
import pytest
from gatewise import module

@pytest.fixture(scope="module")
def box(): return module.caught(1)
@functools.cache
def kept(): return module.crashes(1)

def test_caught(box): assert box == 2
def test_caught_too(box): assert box == 2
def test_survives(): module.survives(1)
@pytest.mark.parametrize("a", [0, 1, 2])
def test_crashes(a): assert kept() == 4
def test_crashes_too(): assert kept() == 4
def test_hangs(): assert module.hangs(1) == 5
def test_unsound(): assert module.unsound(1) == 0
def test_broken(): assert module.broken() == 6
def test_skipped():
    module.skipped()
    pytest.skip("here")
def test_in_process():
    code = "from gatewise import module; assert module.in_process() == 7"
    subprocess.run([sys.executable, "-c", code], check=True)
"""
CHANGES = """
from mutants import replace
CHANGES = {"module.py": {
    "caught": {"seen": replace("a + 1", "a")},
    "survives": {"unseen": replace("a + 2", "a")},
    "crashes": {"crashing": replace("a + 3", "os.abort()")},
    "hangs": {"hanging": replace("a + 4", "time.sleep(99)")},
    "unsound": {"unsure": replace("a + 5", "a")},
    "broken": {"not importable": replace("6", "1 / 0")},
    "in_process": {"seen by a process": replace("7", "8")},
    "skipped": {"skipped": replace("8", "9")},
    "gone": {"old": replace("7", "8")},
}}
"""
QUICK = "GRACE = UNKNOWN = 8.0\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project with this machinery, a package of one module, its tests and mutants, without anything to warm."""
    root = tmp_path_factory.mktemp("mutants") / "project"
    machinery = ROOT / "tests/mutants"
    shutil.copytree(machinery, root / "tests/mutants", ignore=shutil.ignore_patterns("list", "*.json", "__pycache__"))
    package, listed = root / "src/gatewise", root / "tests/mutants/list"
    for folder in (package, listed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (package / "module.py").write_text(MODULE)
    (root / "tests/test_module.py").write_text(TESTS)
    (listed / "area.py").write_text(CHANGES)
    (root / "tests/mutants/warm.py").write_text("def warm_up(): ...\n")
    runner = root / "tests/mutants/runner.py"
    runner.write_text(runner.read_text() + QUICK)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow", "gpu"]\n')
    return root


def python(project: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project / "tests")])}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mapped(project: Path) -> Path:
    done = python(project, "mutants.mapping", "tests/test_module.py", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 1, done.stdout + done.stderr  # test_unsound fails
    return project


@pytest.fixture(scope="module")
def whole(mapped: Path) -> subprocess.CompletedProcess[str]:
    return python(mapped, "mutants")


def map_of(project: Path) -> dict[str, list[str]]:
    written = json.loads((project / "tests/mutants/tests.json").read_text())
    names = list(written["tests"])
    return {key: [names[number] for number in numbers] for key, numbers in written["symbols"].items()}


@pytest.mark.extended
def test_map_has_processes_fixtures_and_caches_but_no_imports(mapped: Path) -> None:
    found = {
        key.partition("::")[2]: {test.partition("::")[2] for test in tests} for key, tests in map_of(mapped).items()
    }
    assert found == {
        "caught": {"test_caught", "test_caught_too"},
        "survives": {"test_survives"},
        "crashes": {"test_crashes", "test_crashes_too"},
        "hangs": {"test_hangs"},
        "unsound": {"test_unsound"},
        "skipped": {"test_skipped"},
        "broken": {"test_broken", "test_in_process"},  # a process that a test starts imports for that test
        "in_process": {"test_in_process"},
    }


@pytest.mark.extended
def test_chosen_tests_are_added_to_map(mapped: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(mapped, project)
    with (project / "src/gatewise/module.py").open("a") as file:
        file.write("\ndef new(a): return a\n")
    tests = (project / "tests/test_module.py").read_text().replace("def test_hangs():", "def test_still_hangs():")
    (project / "tests/test_module.py").write_text(tests)
    (project / "tests/test_new.py").write_text(
        "from gatewise import module\ndef test_new(): assert module.new(2) == 2\n"
    )
    done = python(project, "mutants.mapping", "tests/test_new.py", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = map(map_of, (mapped, project))
    gone = before.pop("module.py::hangs")
    assert after == {**before, "module.py::new": ["tests/test_new.py::test_new"]}, f"{gone} no longer exists"


@pytest.mark.extended
def test_run_prints_mutants_survivors_and_summary_line(whole: subprocess.CompletedProcess[str]) -> None:
    lines = whole.stdout.splitlines()
    assert whole.returncode == 1, whole.stderr
    assert lines[-1] == "mutants: 8 run, 5 caught, 3 survived, 1 do not apply"
    said = {line.split(": ", 1)[1].split(" | ")[0]: line for line in lines if " | " in line}
    assert {name for name, line in said.items() if line.startswith("SURVIVED")} == {"unseen", "unsure", "skipped"}
    assert "| tests/test_module.py::test_caught" in said["seen"]
    assert "| SIGABRT in tests/test_module.py::test_crashes" in said["crashing"]
    assert said["hanging"].endswith("| hangs in tests/test_module.py::test_hangs")
    assert said["not importable"].endswith("| the tests cannot be imported")
    assert said["unseen"].endswith("| none of 1 tests fails")
    assert said["skipped"].endswith("none of 1 tests fails; they are skipped here")
    assert "without the mutant fails too: tests/test_module.py::test_unsound" in said["unsure"]
    assert "survived: module.py survives: unseen ('a + 2' becomes 'a'): none of 1 tests fails" in lines
    assert "does not apply  module.py gone: old: module.py has no gone" in lines
    assert "1 of 9 mutants do not apply, more than 5%: fix or remove them" in lines


def test_catching_test_is_remembered_and_sources_are_unchanged(
    mapped: Path, whole: subprocess.CompletedProcess[str]
) -> None:
    remembered = json.loads((mapped / "tests/mutants/caught_by.json").read_text())
    assert remembered["hanging"] == ["tests/test_module.py::test_hangs"]
    assert remembered.keys() == {"hanging", "crashing", "seen", "seen by a process"}  # imports fail in no test
    assert (mapped / "src/gatewise/module.py").read_text() == MODULE


@pytest.mark.extended
def test_exit_code_reports_survivors_and_over_5_percent_not_applied(mapped: Path) -> None:
    listed = mapped / "tests/mutants/list/area.py"
    for others, code in ((19, 0), (18, 1)):
        caught = ", ".join(f'"{number}": replace("a + 1", "{number}")' for number in range(others))
        entries = f'{{"caught": {{{caught}}}, "gone": {{"lost": replace("1", "2")}}}}'
        listed.write_text(f'from mutants import replace\nCHANGES = {{"module.py": {entries}}}\n')
        done = python(mapped, "mutants", "--check")
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "mutants: 0 run, 0 caught, 0 survived, 1 do not apply"
    listed.write_text(CHANGES.replace('"gone": {"old": replace("7", "8")},', ""))
    done = python(mapped, "mutants", "--only", "caught")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        "mutants: 1 run, 1 caught, 0 survived, 0 do not apply",
    )
    done = python(mapped, "mutants", "-n", "2")
    assert "sample: at least 2 of 8 mutants, drawn by commit" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("mutants: 2 run, ")
    listed.write_text(CHANGES)


def test_list_applies_and_names_are_unique() -> None:
    mutants = catalogue.all_mutants()
    assert len(catalogue.not_applicable(mutants, ROOT / "src/gatewise")) <= 0.05 * len(mutants)
