"""Run mutants in two workers that were forked from one warm process."""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .mutant import Mutant
from .recorder import SKIPPED
from .slot import Result, Slot, adopt_orphans
from .tests_found import FoundTests

UNKNOWN = 300.0  # seconds for tests whose duration is not known
GRACE, TIMES = 60.0, 10  # seconds for all others, and times what they take without a mutant
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mutant and the evidence for it."""

    caught: bool
    reason: str
    seconds: float
    test: str = ""  # that failed


@dataclass
class Judge:
    """Runs tests on mutants in one slot; a failure counts only if the test passes without the mutant."""

    slot: Slot
    found: FoundTests
    passes: dict[str, bool] = field(default_factory=dict)  # without a mutant

    def judge(self, mutant: Mutant) -> Outcome:
        """Run the tests that caught a mutant last, then those that execute its symbol, until one fails."""
        begin = time.monotonic()
        remembered = self.found.remembered(mutant)
        doubts: list[str] = []
        ran = 0
        for tests in (remembered, [test for test in self.found.executing(mutant) if test not in remembered]):
            result = self._failure(mutant, tests, doubts) if tests else None
            if result:
                return Outcome(True, str(result), time.monotonic() - begin, result.test)
            ran += len(tests)
        reason = f"none of {ran} tests fails" if ran else "no test is known that executes it"
        return Outcome(False, "; ".join([reason, *doubts]), time.monotonic() - begin)

    def _failure(self, mutant: Mutant, tests: list[str], doubts: list[str]) -> Result | None:
        """Return how tests fail on a mutant and not without it, or None."""
        limit = self._limit(tests)
        while True:
            with self.slot.planted(mutant):
                result = self.slot.run(tests, limit, without={test for test, fine in self.passes.items() if not fine})
            if result.passed:
                doubts.extend(["they are skipped here"] if result.code == SKIPPED else [])
                return None
            if self._passes_without(result, tests):
                return result
            doubts.append(f"without the mutant fails too: {result.test or tests[0]}\n{self.slot.last_lines()}")
            if not result.test:
                return None

    def _passes_without(self, result: Result, tests: list[str]) -> bool:
        """Return whether the test that failed passes without the mutant, or the tests can be imported.

        A second failure without the mutant is needed to blame the test: processes that it starts may fail by chance.
        """
        key = result.test or " ".join(tests)
        if key not in self.passes:
            run = [result.test] if result.test else tests
            clean = (
                self.slot.run(run, self._limit(run), alone=bool(result.test), collect_only=not result.test)
                for _ in range(2)
            )
            self.passes[key] = any(again.code == 0 for again in clean)
        return self.passes[key]

    def _limit(self, tests: list[str]) -> float:
        seconds = self.found.seconds(tests)
        return UNKNOWN if seconds is None else GRACE + TIMES * seconds


@dataclass
class Limits:
    """When to stop: after all mutants, or after at least `least` of them and `seconds` seconds."""

    least: int
    seconds: float


def run(
    mutants: list[Mutant], listed: list[Mutant], root: Path, limits: Limits, workers: int
) -> Iterator[tuple[Mutant, Outcome]]:
    """Run mutants in order; yield the outcome of each.

    Args:
        mutants: those to run.
        listed: all mutants; the catches of others are forgotten.
        root: the project.
        limits: when to stop.
        workers: how many processes run mutants at the same time.
    """
    found = FoundTests.load(root)
    found.forget_all_but({mutant.name for mutant in listed})
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        outcomes, number = _FORK.SimpleQueue(), _FORK.Value("i", 0)
        work = (mutants, number, limits, time.monotonic(), outcomes)
        processes = [
            _FORK.Process(target=_work, args=(root, Path(folder) / str(slot), found, *work)) for slot in range(workers)
        ]
        for process in processes:
            process.start()
        try:
            for place, outcome in _outcomes(outcomes, processes):
                if outcome.test:
                    found.remember(mutants[place], outcome.test)
                yield mutants[place], outcome
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _outcomes(outcomes: Any, processes: list[Any]) -> Iterator[tuple[int, Outcome]]:
    """Yield the results of the workers until all are done."""
    done = 0
    while done < len(processes):
        while outcomes.empty():
            if any(process.exitcode for process in processes):
                raise RuntimeError("a worker died; its error stands above")
            time.sleep(0.05)
        outcome = outcomes.get()
        if outcome is None:
            done += 1
        else:
            yield outcome


def _work(
    root: Path,
    folder: Path,
    found: FoundTests,
    mutants: list[Mutant],
    number: Any,
    limits: Limits,
    begin: float,
    outcomes: Any,
) -> None:
    """Take mutants in turn with the other workers."""
    adopt_orphans()
    judge = Judge(Slot(root, folder), found)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            with number.get_lock():
                mine = number.value
                number.value += 1
            enough = mine >= limits.least and time.monotonic() - begin > limits.seconds
            if mine >= len(mutants) or enough:
                break
            outcomes.put((mine, judge.judge(mutants[mine])))
        outcomes.put(None)
