"""Plant one small bug at a time in a copy of the package, and see the test that should catch it fail.

    python tests/planted_bugs.py [WORD ...]       only bugs whose name contains one of the words

Ends with exit code 1 if a bug survives, or if a bug can no longer be planted because the code has changed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from planted import BUGS, Bug

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """What became of one planted bug."""

    bug: Bug
    caught: bool
    reason: str


def plant(bug: Bug, folder: Path) -> Outcome:
    """Run the bug's tests in `folder`, a copy of the project, with the bug in it, and take it out again."""
    source = folder / "src/gatewise" / bug.file
    text = source.read_text()
    if text.count(bug.old) != 1:
        return Outcome(bug, False, f"cannot be planted: {bug.file} holds its text {text.count(bug.old)} times")
    source.write_text(text.replace(bug.old, bug.new))
    try:
        environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            bug.test,
            f"tests/{bug.test_file}",
        ]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    finally:
        source.write_text(text)
    if result.returncode == 1:
        return Outcome(bug, True, result.stdout.strip().splitlines()[-1])
    return Outcome(bug, False, {0: "survived", 5: "no such test"}.get(result.returncode, result.stdout[-500:]))


def main(words: list[str]) -> int:
    """Plant the chosen bugs and return the exit code."""
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        outcomes = []
        for bug in chosen:
            outcomes.append(plant(bug, folder))
            print(f"{'caught  ' if outcomes[-1].caught else 'SURVIVED'} {bug.name}: {outcomes[-1].reason}", flush=True)
    survived = [outcome for outcome in outcomes if not outcome.caught]
    print(f"{len(outcomes) - len(survived)} of {len(outcomes)} bugs caught")
    return 1 if survived or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
