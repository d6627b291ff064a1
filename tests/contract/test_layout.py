"""Where code and tests stand: few folders and layers; tests in the folder of what they test, none imports another."""

import ast
import re
import tomllib
from collections.abc import Iterator

from support.project import ROOT

TESTS = ROOT / "tests"
MODULES = {"conftest", *(file.stem for file in TESTS.rglob("test_*.py"))}
FOLDERS = {"unit", "contract", "integration", "reliability"}
CODE = sorted(file for folder in (TESTS, ROOT / "tools") for file in folder.rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names of all that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def of_tests(source: str) -> list[str]:
    """Return the imports of a module that lead to a test, or to the file with pytest's fixtures."""
    return [name for name in imported(ast.parse(source)) if not MODULES.isdisjoint(name.split("."))]


def test_none_imports_from_a_test() -> None:
    found = {str(file.relative_to(ROOT)): of_tests(file.read_text()) for file in CODE}
    assert len(found) > 100
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_imports_of_tests_are_seen() -> None:
    lines = ("import test_layout", "from unit.gates.test_spec import a", "from conftest import b", "import support")
    assert of_tests("\n".join(lines)) == ["test_layout", "unit.gates.test_spec.a", "conftest.b"]


def test_tests_stand_in_the_folder_of_their_kind() -> None:
    folders = {file.relative_to(TESTS).parts[0] for file in TESTS.rglob("test_*.py")}
    assert folders == FOLDERS


def test_unit_mirrors_the_package() -> None:
    folders = {folder.name for folder in (TESTS / "unit").iterdir() if folder.name != "__pycache__"}
    package = {file.name for file in (ROOT / "src/gatewise").iterdir() if file.is_dir()}
    assert folders <= package


def test_package_has_few_entries_and_layers() -> None:
    entries = {file.name for file in (ROOT / "src/gatewise").iterdir()} - {"__pycache__", "__init__.py", "__init__.pyi"}
    (layers,) = (
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    listed = {name for layer in layers for name in re.split(" [|:] ", layer)}
    assert listed == {entry.removesuffix(".py") for entry in entries}
    assert len(entries) <= 16
    assert len(layers) <= 10
