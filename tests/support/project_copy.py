"""A copy of the project with examples of CONTRIBUTING.md as new files."""

import json
import os
import re
import shutil
from pathlib import Path

from support.fresh import python
from support.project import ROOT

_COMMANDS = """
import json, sys
from gatewise.cli import run
for command in json.loads(sys.argv[1]):
    if code := run(command):
        sys.exit(code)
"""


def page() -> str:
    """Return CONTRIBUTING.md."""
    return (ROOT / "CONTRIBUTING.md").read_text()


def example_in(of: str) -> tuple[str, str]:
    """Return path and text of the page's only example of a file in the folder `of` of the source."""
    pattern = rf"```python\n# (src/gatewise/{of}/\w+\.py)\n(.*?)```"
    (example,) = re.findall(pattern, page(), flags=re.DOTALL)
    return example


def copy_with_example(folder: Path, of: str) -> None:
    """Copy the project to `folder`, with the page's only example of a file in the folder `of` of the source."""
    for part in ("src", "tests", "tools", "benchmarks"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    path, text = example_in(of)
    (folder / path).write_text(text)


def run(copy: Path, *command: str, code: int = 0) -> str:
    """Run a command that imports the copy, and return what it printed; its errors, if it is to fail with `code`."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    result = python(*command, cwd=copy, environment=environment)
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stderr if code else result.stdout


def run_commands(copy: Path, *commands: list[str], code: int = 0) -> str:
    """Run commands of the command line in one process that imports the copy, until one fails; see `run`."""
    return run(copy, "-c", _COMMANDS, json.dumps(commands), code=code)
