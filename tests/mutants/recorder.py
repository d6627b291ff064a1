"""A pytest plugin for one run on a mutant: it orders the tests, and records which one runs and which one fails."""

import sys
from pathlib import Path

import pytest

from .tests_found import function_of

SKIPPED = 69  # the exit code of a run in which every test was skipped


class Recorder:
    """Keep the last started or failed test in the file `report`.

    Args:
        report: where the identifier is written, for the process that waits.
        package: the folder that gatewise must be imported from.
        first: tests, functions or one set of their parameters, in the order in which they run.
        without: tests that are not run.
        alone: whether only what `first` names runs, and no other parameters of the same functions.
    """

    def __init__(self, report: Path, package: Path, first: list[str], without: set[str], *, alone: bool) -> None:
        self.report, self.package, self.first, self.without, self.alone = report, package, first, without, alone
        self.failed = False
        self.passed = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Order the tests; slow parameters run only if they are named, or if a function has no others."""
        exact = {test: number for number, test in enumerate(self.first)}
        functions = {function_of(test): len(self.first) + number for number, test in enumerate(self.first)}
        quick = {function_of(item.nodeid) for item in items if not _is_slow(item)}

        def place(item: pytest.Item) -> int:
            return exact.get(item.nodeid, functions.get(function_of(item.nodeid), 2 * len(functions)))

        def is_run(item: pytest.Item) -> bool:
            if item.nodeid in exact or item.nodeid in self.without or self.alone:
                return item.nodeid in exact and item.nodeid not in self.without
            return not (_is_slow(item) and function_of(item.nodeid) in quick)

        items[:] = sorted(filter(is_run, items), key=place)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record the test that begins."""
        if not self.failed:
            self.report.write_text(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the test that failed, or none at the end of a run in which every test was skipped."""
        self.passed += report.passed and report.when == "call"
        if report.failed and not self.failed:
            self.failed = True
            self.report.write_text(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Set a different exit code for a run in which tests were skipped and none passed."""
        ran = session.testscollected and not session.config.option.collectonly
        if ran and not self.passed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = SKIPPED

    def pytest_collection_finish(self) -> None:
        """Check that the copy is tested and not an installed package."""
        gatewise = sys.modules.get("gatewise")
        if gatewise is not None and not str(gatewise.__file__).startswith(str(self.package)):
            raise RuntimeError(f"gatewise was imported from {gatewise.__file__}, expected {self.package}")


def _is_slow(item: pytest.Item) -> bool:
    return any(item.iter_markers("slow")) or any(item.iter_markers("gpu"))
