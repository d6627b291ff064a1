"""Choose the tests of a mutant: the one that caught it last, then those that execute its symbol.

`tests.json` is written by `mutants.mapping`; `caught_by.json` holds, by name of the mutant, the tests that caught it.
"""

import ast
import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import snippet
from .mutant import Mutant

HERE = Path(__file__).parent
MAP, MEMORY = HERE / "tests.json", HERE / "caught_by.json"
MOST = 25  # tests of one symbol


def function_of(test: str) -> str:
    """Return a test's identifier without its parameters."""
    return test.split("[", 1)[0]


@dataclass(frozen=True)
class Known:
    """A test: its seconds including fixtures, and the number of symbols that it executes."""

    seconds: float
    symbols: int

    @property
    def cost(self) -> float:
        """Return a number that is small for tests that are quick and execute little else."""
        return self.symbols * (1 + self.seconds)


def specific_first(tests: Iterable[str], known: Mapping[str, Known]) -> list[str]:
    """Order tests: the cheapest of each file, then the second cheapest of each, and so on; at most 25."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for test in sorted(set(tests), key=lambda test: (known[test].cost, test)):
        by_file[test.split("::")[0]].append(test)
    turns = [(turn, known[test].cost, test) for rows in by_file.values() for turn, test in enumerate(rows)]
    return [test for *_, test in sorted(turns)][:MOST]


@dataclass
class FoundTests:
    """The map of tests and the memory of catches, for the project in the folder `root`."""

    root: Path
    tests: dict[str, Known] = field(default_factory=dict)
    symbols: dict[str, list[str]] = field(default_factory=dict)  # "module::symbol"
    caught_by: dict[str, list[str]] = field(default_factory=dict)  # by name of the mutant

    @classmethod
    def load(cls, root: Path) -> "FoundTests":
        """Read the map and the memory, without tests that no longer exist."""
        written = json.loads(MAP.read_text()) if MAP.exists() else {"tests": {}, "symbols": {}}
        tests = {name: Known(*values) for name, values in written["tests"].items()}
        names = list(tests)
        symbols = {key: [names[number] for number in numbers] for key, numbers in written["symbols"].items()}
        return cls(root, tests, symbols, json.loads(MEMORY.read_text()) if MEMORY.exists() else {})

    def remembered(self, mutant: Mutant) -> list[str]:
        """Return the tests that caught a mutant last and still exist."""
        return [test for test in self.caught_by.get(mutant.name, []) if exists(self.root, test)]

    def remember(self, mutant: Mutant, test: str) -> None:
        """Record the test that caught a mutant, and write the memory if it changed."""
        if self.caught_by.get(mutant.name) != [test]:
            self.caught_by[mutant.name] = [test]
            MEMORY.write_text(json.dumps(self.caught_by, indent=0, sort_keys=True, ensure_ascii=False) + "\n")

    def forget_all_but(self, names: set[str]) -> None:
        """Remove mutants from the memory that are no longer listed."""
        self.caught_by = {name: tests for name, tests in self.caught_by.items() if name in names}

    def executing(self, mutant: Mutant) -> list[str]:
        """Return tests that execute a mutant's symbol; else of its module, else of the modules that import that."""
        module = str(Path(mutant.module).with_suffix(".py"))
        tests = self._of(module, mutant.symbol) or self._of(module, "")
        seen, nearby = {module}, [module]
        while nearby and not tests:
            nearby = [importer for known in nearby for importer in self._importers(known) if importer not in seen]
            seen.update(nearby)
            tests = [test for importer in nearby for test in self._of(importer, "")]
        return [test for test in specific_first(tests, self.tests) if exists(self.root, test)]

    def seconds(self, tests: list[str]) -> float | None:
        """Return how long tests take, or None if one is unknown."""
        functions = {function_of(test) for test in tests}
        return sum(self.tests[test].seconds for test in functions) if functions <= self.tests.keys() else None

    def _of(self, module: str, symbol: str) -> list[str]:
        prefix = f"{module}::{symbol}"
        keys = [key for key in self.symbols if key == prefix or key.startswith(f"{prefix}." if symbol else prefix)]
        return [test for key in keys for test in self.symbols[key]]

    def _importers(self, module: str) -> list[str]:
        name = module.removesuffix(".py").removesuffix("/__init__").split("/")[-1]
        package = self.root / "src/gatewise"
        line = re.compile(rf"^\s*(from|import)\b[^#\n]*\b{name}\b|^\s+{name},$", re.MULTILINE)
        found = (file for file in sorted(package.rglob("*.py")) if line.search(file.read_text()))
        return [str(file.relative_to(package)) for file in found]


def exists(root: Path, test: str) -> bool:
    """Return whether the function of a test, or the definition with a doctest, is still in its file."""
    file, _, name = function_of(test).partition("::")
    if not (root / file).is_file():
        return False
    dotted = file.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name == dotted or name.removeprefix(f"{dotted}.").replace("::", ".") in _definitions(root / file)


@functools.cache
def _definitions(file: Path) -> set[str]:
    return {name for name, _ in snippet.symbols(ast.parse(file.read_text()))}
