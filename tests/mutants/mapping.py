"""Find which tests execute each symbol of the package, and write tests.json.

    python -m mutants.mapping [ARGUMENTS OF PYTEST]

Runs the default suite under coverage with a context for each test; the tests that arguments choose are added to the
map. Line by line the contexts become, for each function, the tests that execute its body. What runs when a module is
imported belongs to no test.
"""

import ast
import collections
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from coverage import Coverage, CoverageData

from . import snippet
from .plugin import FOLDER, RECORDS
from .tests_found import MAP, MOST, FoundTests, Known, exists, function_of, specific_first

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/gatewise"
SUITE = ["-m", "not slow and not gpu", "--numprocesses", "auto", "--dist", "worksteal"]
CONFIGURATION = """
[run]
data_file = {folder}/coverage
parallel = true
source_pkgs = gatewise
patch = fork, _exit
concurrency = thread
context = ${{PYTEST_CURRENT_TEST-}}
[paths]
source =
    {package}
    */src/gatewise
"""


def main(arguments: list[str]) -> int:
    """Run the tests, write the map, and return pytest's exit code."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        configuration = folder / "settings.ini"
        configuration.write_text(CONFIGURATION.format(folder=folder, package=PACKAGE))
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
        environment = {**os.environ, "PYTHONPATH": path, "COVERAGE_PROCESS_START": str(configuration), FOLDER: name}
        command = [sys.executable, "-m", "pytest", "-p", "mutants.plugin", *(arguments or SUITE)]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        coverage = Coverage(config_file=str(configuration))
        coverage.combine([name], keep=True)
        executed = by_symbol(coverage.get_data())
        seconds, fixtures = records(folder)
    found = tests_by_symbol(executed, fixtures)
    known = {
        test: Known(float(f"{seconds[test] + sum(seconds[name] for name in fixtures[test]):.2g}"), symbols)
        for test, symbols in collections.Counter(itertools.chain(*found.values())).items()
    }
    if arguments:
        before = FoundTests.load(ROOT)
        known = before.tests | known
        found = {
            key: {test for test in before.symbols.get(key, ()) if exists(ROOT, test)} | found.get(key, set())
            for key in sorted({*before.symbols, *found})
        }
    write(found, known)
    return code


def bodies(source: str) -> Iterator[tuple[str, range]]:
    """Yield each function and the lines of its body, an inner function after the one around it."""
    for name, node in snippet.symbols(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            yield name, range(node.body[0].lineno, (node.end_lineno or 0) + 1)


def by_symbol(data: CoverageData) -> dict[str, set[str]]:
    """Return by "module::symbol" the contexts in which a line of its body ran: tests and fixtures."""
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        contexts = data.contexts_by_lineno(str(file))
        owner = {line: name for name, lines in bodies(file.read_text()) for line in lines}  # the innermost
        for line, names in contexts.items():
            if line in owner:
                key = f"{file.relative_to(PACKAGE)}::{owner[line]}"
                found.setdefault(key, set()).update(filter(None, map(test_of, names)))
    return {key: tests for key, tests in found.items() if tests}


def test_of(context: str) -> str:
    """Return the test or fixture of a context: of a process that a test started it ends with "(call)"."""
    context = context.split("|")[-1] or context.split("|")[0]
    return function_of(context).rsplit(" (", 1)[0]


def records(folder: Path) -> tuple[dict[str, float], dict[str, set[str]]]:
    """Return the seconds of tests and fixtures, and the fixtures of each test, of all processes of pytest."""
    seconds: dict[str, float] = defaultdict(float)
    fixtures: dict[str, set[str]] = defaultdict(set)
    for file in folder.glob(RECORDS):
        record = json.loads(file.read_text())
        for name, value in record["seconds"].items():
            # A process sets a fixture up for itself.
            seconds[name] = max(seconds[name], value) if name.startswith("fixture ") else seconds[name] + value
        for test, names in record["fixtures"].items():
            fixtures[test].update(names)
    return seconds, fixtures


def tests_by_symbol(executed: dict[str, set[str]], fixtures: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the tests of each symbol, with those that use a fixture in place of the fixture."""
    users = defaultdict(set)
    for test, names in fixtures.items():
        for name in names:
            users[name].add(test)
    return {
        key: {test for name in names for test in users.get(name, {name}) if test in fixtures}
        for key, names in sorted(executed.items())
    }


def write(found: dict[str, set[str]], known: dict[str, Known]) -> None:
    """Write for each symbol the tests that execute it, at most 25 of them, and what is known of these tests."""
    chosen = {key: specific_first(tests, known) for key, tests in found.items() if tests}
    names = sorted({test for tests in chosen.values() for test in tests})
    number = {test: place for place, test in enumerate(names)}
    rows = [json.dumps(test) + f": [{known[test].seconds:g}, {known[test].symbols}]" for test in names]
    lists = [json.dumps(key) + ": " + json.dumps([number[test] for test in tests]) for key, tests in chosen.items()]
    MAP.write_text('{"tests": {\n' + ",\n".join(rows) + '\n}, "symbols": {\n' + ",\n".join(lists) + "\n}}\n")
    cut = sum(len(tests) > MOST for tests in found.values())
    print(f"{len(chosen)} symbols, {len(names)} tests; of {cut} symbols only {MOST} tests are kept: {MAP}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
