"""A copy of the project in which one worker inserts mutants and runs tests, each run in a forked child."""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from .mutant import Mutant
from .recorder import SKIPPED, Recorder
from .tests_found import function_of

COPIED = ("src", "tests")
_SUBREAPER = 36  # prctl: orphans of our children become our children


@dataclass(frozen=True)
class Result:
    """How a run ended: pytest's exit code, minus a signal's number, or None after a timeout."""

    code: int | None
    test: str  # that failed, or ran last

    @property
    def passed(self) -> bool:
        """Return whether nothing failed; there may have been nothing to run."""
        return self.code in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED, SKIPPED}

    def __str__(self) -> str:
        if self.code == pytest.ExitCode.TESTS_FAILED:
            return self.test
        if self.code is None:
            return f"hangs in {self.test or 'the imports'}"
        if self.code < 0:
            return f"{signal.Signals(-self.code).name} in {self.test or 'the imports'}"
        return "the tests cannot be imported"


class Slot:
    """The copy in `folder` of the project at `root`; next to src and tests there are links to everything else."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder, self.project = root, folder, folder / root.name
        self.project.mkdir(parents=True)
        for part in COPIED:
            shutil.copytree(root / part, self.project / part, symlinks=True)
        for other in root.iterdir():
            if other.name not in COPIED and not other.name.startswith("."):
                (self.project / other.name).symlink_to(other)
        self.package = self.project / "src/gatewise"
        self.log = folder / "log.txt"

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """Insert a mutant into the copy, and remove it afterwards."""
        file = self.package / mutant.module
        times, content = file.stat(), file.read_bytes()
        file.write_text(mutant.mutated(self.package))
        self._forget_compiled(file)
        try:
            yield
        finally:
            file.write_bytes(content)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            self._forget_compiled(file)

    def _forget_compiled(self, file: Path) -> None:
        """Remove bytecode: only its seconds and size are compared."""
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()

    def run(
        self,
        tests: list[str],
        limit: float,
        *,
        without: set[str] | None = None,
        alone: bool = False,
        collect_only: bool = False,
    ) -> Result:
        """Run tests in a forked child and wait for at most `limit` seconds."""
        report = self.folder / "report.txt"
        report.write_text("")
        recorder = Recorder(report, self.project, tests, without or set(), alone=alone)
        child = os.fork()
        if child == 0:
            self._be_child(recorder, ["--collect-only"] if collect_only else [])
        try:
            code = _wait(child, limit)
        finally:
            _end_descendants()
        return Result(code, report.read_text())

    def last_lines(self, count: int = 30) -> str:
        """Return the end of what the last run printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def _be_child(self, recorder: Recorder, more: list[str]) -> NoReturn:
        code = 70
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.setsid()
            code = int(pytest.main(self._prepare(recorder.first) + more, plugins=[recorder]))
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _prepare(self, tests: list[str]) -> list[str]:
        """Set up this process as if it was started in the copy; return the arguments of pytest."""
        os.chdir(self.project)
        os.environ["PYTHONPATH"] = str(self.project / "src")
        originals = {"", *map(str, (self.root, self.root / "src", self.root / "tests"))}
        sys.path[:] = [str(self.project / "src"), *(entry for entry in sys.path if entry not in originals)]
        main = sys.modules["__main__"]
        main.__spec__ = None  # processes that tests spawn must not import it
        vars(main).pop("__file__", None)
        functions = dict.fromkeys(function_of(test) for test in tests)
        quiet = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        return [*quiet, f"--basetemp={self.folder / 'tmp'}", *functions]


def adopt_orphans() -> None:
    """Make this process the parent of the orphans of its children, so that they can be ended."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _wait(child: int, limit: float) -> int | None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def _end_descendants() -> None:
    while descendants := psutil.Process().children(recursive=True):
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
