"""A copy of the project with examples of CONTRIBUTING.md as new files."""

import os
import re
import shutil
from pathlib import Path

from support.fresh import python
from support.project import ROOT


def page() -> str:
    """Return CONTRIBUTING.md."""
    return (ROOT / "CONTRIBUTING.md").read_text()


def copy_with_example(folder: Path, of: str) -> None:
    """Copy the project to `folder`, with the page's only example of a file in the folder `of` of the source."""
    for part in ("src", "tests", "tools", "benchmarks"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    pattern = rf"```python\n# (src/gatewise/{of}/\w+\.py)\n(.*?)```"
    ((path, text),) = re.findall(pattern, page(), flags=re.DOTALL)
    (folder / path).write_text(text)


def run(copy: Path, *command: str) -> str:
    """Run a command that imports the copy, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    result = python(*command, cwd=copy, environment=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout
