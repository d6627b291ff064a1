"""Draw mutants by the hash of a commit: each commit tries others, and the same commit tries the same ones."""

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .mutant import Mutant

COMMITS = 50
PACKAGE = "src/gatewise"


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def commit(root: Path) -> str:
    """Return the hash of the commit that is checked out; "" outside of a repository."""
    return _git(root, "rev-parse", "HEAD")


def changed_modules(root: Path) -> set[str]:
    """Return the modules that the last 50 commits changed."""
    listed = _git(root, "log", f"-{COMMITS}", "--format=", "--name-only", "--relative", "--", PACKAGE)
    return {line.removeprefix(f"{PACKAGE}/") for line in listed.splitlines()}


def drawn(mutants: Iterable[Mutant], commit: str, changed: set[str]) -> list[Mutant]:
    """Return the mutants in the order of the draw: those of changed modules, then the others."""

    def key(mutant: Mutant) -> tuple[bool, bytes]:
        return mutant.module not in changed, hashlib.sha256(f"{commit} {mutant.name}".encode()).digest()

    return sorted(mutants, key=key)
