"""A copy of the package with an example of CONTRIBUTING.md in it, and commands that run with the copy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.project import ROOT

_COMMANDS = """
import json, sys
from gatewise.cli import run
for command in json.loads(sys.argv[1]):
    code = run(command)
    if code:
        sys.exit(code)
"""


def example_in(folder: str) -> tuple[str, str]:
    """Return the path and the content of CONTRIBUTING.md's example of a new file in a folder of the package."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(rf"```python\n# (src/gatewise/{folder}/\w+\.py)\n(.*?)```", page, flags=re.DOTALL)
    return example


def copy_with_example(root: Path, folder: str) -> Path:
    """Copy the package to `root` and add the example: one new file, nothing else."""
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    name, content = example_in(folder)
    assert not (root / name).exists()
    (root / name).write_text(content)
    return root


def run_commands(root: Path, *commands: list[str], code: int = 0, path: str = "") -> str:
    """Run commands of the command line in one process that imports the package from `root`/src.

    Args:
        root: folder to run in.
        commands: the words of each command; the first that fails ends the process.
        code: expected exit code.
        path: further folders to import from.

    Returns:
        What was printed, errors included.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "src"), path]))}
    command = [sys.executable, "-c", _COMMANDS, json.dumps(commands)]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr
