"""Collect the situations that tests are marked with: `@pytest.mark.situation("kind")` or `("kind: member")`.

The parameters' ids of a test are the members of its kind. A test without parameters is named in the mark, or by its own
name. pytest itself collects the ids, in a process of its own, with this module as its plugin. Files that are skipped as
a whole where an optional package is missing are read without running them, so that the page is the same everywhere;
there a parametrized test counts once.
"""

import ast
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MARK = "mark.situation("
_OUT = "GATEWISE_SITUATIONS"  # environment variable with the file that the plugin writes


def situations() -> dict[str, list[str]]:
    """Return the kinds of situations with the tested members of each, in alphabetical order."""
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if _MARK in file.read_text()]
    optional = [file for file in files if _needs_package(file)]
    tests: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for mark, test, parameters in [
        *(found for file in optional for found in _read(file)),
        *_collected([file for file in files if file not in optional]),
    ]:
        tests.setdefault((mark, test), set()).add(tuple(parameters))
    kinds: dict[str, set[str]] = {}
    for (mark, test), parameters in tests.items():
        kind, members = described(mark, test, parameters)
        kinds.setdefault(kind, set()).update(members)
    return {kind: sorted(kinds[kind]) for kind in sorted(kinds)}


def described(mark: str, test: str, parameters: set[tuple[str, ...]]) -> tuple[str, list[str]]:
    """Return kind and members of one test, from the ids of its parameters.

    >>> described("masks: soft edges", "test_soft_masks", {()}), described("masks", "test_soft_masks", {()})
    (('Masks', ['soft edges']), ('Masks', ['soft masks']))
    >>> described("files with a prefix", "test_prefix", {("module.",), ("ema",)})
    ('Files with a prefix', ['ema', 'module.'])

    If all combinations of several parameters are tested, each is listed once:

    >>> described("layers", "test_layers", {("gct", "copied"), ("gct", "frozen"), ("se", "copied"), ("se", "frozen")})
    ('Layers', ['copied, frozen (each with gct, se)'])
    """
    kind, _, member = mark.rstrip(".").partition(": ")
    kind = kind[:1].upper() + kind[1:]
    if parameters == {()}:
        return kind, [member or test.removeprefix("test_").replace("_", " ")]
    columns = sorted((sorted(set(column)) for column in zip(*parameters, strict=True)), key=len, reverse=True)
    if len(columns) > 1 and math.prod(map(len, columns)) == len(parameters):
        first, *others = sorted(", ".join(column) for column in columns)
        return kind, [f"{first} (each with {'; '.join(others)})"]
    return kind, sorted(", ".join(each) for each in parameters)


def pytest_collection_finish(session: Any) -> None:
    """Write mark, name and ids of the parameters of each collected test."""
    found = [
        (mark.args[0], item.originalname, item.callspec._idlist if hasattr(item, "callspec") else [])
        for item in session.items
        for mark in item.iter_markers("situation")
    ]
    Path(os.environ[_OUT]).write_text(json.dumps(found))


def _collected(files: list[Path]) -> list[tuple[str, str, list[str]]]:
    if not files:
        return []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "situations.json")
        options = ["--collect-only", "-q", "-m", "situation", "-p", "tools.situations", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, _OUT: str(out), "PYTHONPATH": paths}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the situations of the tests cannot be collected:\n{done.stdout[-2000:]}{done.stderr}")
        return json.loads(out.read_text())


def _needs_package(file: Path) -> bool:
    """Return whether a file of tests is skipped as a whole where a package is missing."""
    calls = (part for node in ast.parse(file.read_text()).body if not _is_test(node) for part in ast.walk(node))
    return any(isinstance(part, ast.Attribute) and part.attr == "importorskip" for part in calls)


def _read(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield mark and name of each marked test of a file, without running it."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and _MARK in f"{ast.unparse(mark)}":
                    yield ast.literal_eval(mark.args[0]), node.name, []


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)
