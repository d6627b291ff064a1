"""Python in a fresh process without its most expensive step: the processes are forks of one that has imported torch."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SERVER = """
import json, os, runpy, sys

import torch  # and nothing of gatewise

torch.set_num_threads(1)
paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
plain = [path for path in sys.path if path not in ("", *paths)]
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        break  # so that it ends like any other process
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

for stream, name in enumerate((os.devnull, asked["out"], asked["err"])):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT if stream else os.O_RDONLY), stream)
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["environment"])
kind, rest = asked["command"][0], asked["command"][1:]
sys.path[:] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *plain]
if "coverage" in sys.modules and (coverage := sys.modules["coverage"].Coverage.current()):
    coverage.switch_context(os.environ.get("PYTEST_CURRENT_TEST", ""))
if kind == "-c":
    sys.argv = ["-c", *rest[1:]]
    exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
elif kind == "-m":
    sys.argv = rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = [kind, *rest]
    sys.path[0] = os.path.dirname(os.path.abspath(kind))
    runpy.run_path(kind, run_name="__main__")
"""


@functools.cache
def _server(_: int) -> subprocess.Popen[str]:
    """Start the process that forks, one for each process of pytest."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.communicate)
    return server


def python(
    *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python COMMAND`: -c CODE, -m MODULE or FILE, with arguments; return what it printed and its exit code."""
    server = _server(os.getpid())
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"command": command, "cwd": str(cwd or Path.cwd()), "out": str(out), "err": str(err)}
        asked["environment"] = dict(os.environ if environment is None else environment)
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
