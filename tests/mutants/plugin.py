"""A pytest plugin for `mutants.mapping`: coverage's context is the test that runs, or the fixture that is set up.

What a fixture of a class, a module or the session executes belongs to all tests that use it, not to the first alone.
What tests keep with functools.cache is computed again by each test function.
"""

import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from coverage import Coverage

from .tests_found import function_of

FOLDER = "GATEWISE_TESTS_MAP"  # the environment variable with the folder for the results
CURRENT = "PYTEST_CURRENT_TEST"  # the configuration of coverage reads it in processes that tests start
RECORDS = "*.record.json"
TESTS = Path(__file__).parents[1]


class Contexts:
    """Switches coverage's context, and records the seconds of tests and fixtures and which test uses which fixture."""

    def __init__(self) -> None:
        self.context = ""
        self.seconds: dict[str, float] = defaultdict(float)
        self.fixtures: dict[str, set[str]] = defaultdict(set)  # of wide scope, by test
        self.inside = 0.0  # seconds of wide fixtures in the running test
        os.register_at_fork(after_in_child=lambda: self.switch(self.context))

    def switch(self, context: str) -> str:
        """Make `context` that of what is executed from here on; return the one before."""
        before, self.context = self.context, context
        coverage = Coverage.current()
        if coverage is not None:
            coverage.switch_context(context)
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test in its own context."""
        test = function_of(item.nodeid)
        known = getattr(item, "_fixtureinfo", None)
        definitions = known.name2fixturedefs.values() if known else ()
        self.fixtures[test].update(_identifier(one) for row in definitions for one in row if one.scope != "function")
        if test not in self.seconds:
            _forget_cached()
        before, begin, self.inside = self.switch(test), time.monotonic(), 0.0
        result = yield
        self.seconds[test] += time.monotonic() - begin - self.inside
        self.switch(before)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        """Set a fixture that several tests share up in a context of its own."""
        if fixturedef.scope == "function":
            return (yield)
        name, begin, nested = _identifier(fixturedef), time.monotonic(), self.inside
        before, phase = self.switch(name), os.environ.get(CURRENT, "")
        os.environ[CURRENT] = name
        try:
            return (yield)
        finally:
            os.environ[CURRENT] = phase
            self.switch(before)
            own = time.monotonic() - begin - (self.inside - nested)
            self.seconds[name] += own
            self.inside += own

    def pytest_sessionfinish(self) -> None:
        """Write the recorded values; a process that only distributes tests has none."""
        if self.seconds:
            fixtures = {test: sorted(names) for test, names in self.fixtures.items()}
            name = RECORDS.replace("*", str(os.getpid()))
            (Path(os.environ[FOLDER]) / name).write_text(json.dumps({"seconds": self.seconds, "fixtures": fixtures}))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Contexts())


def _identifier(fixture: pytest.FixtureDef) -> str:
    return f"fixture {fixture.baseid}::{fixture.argname}"


def _forget_cached() -> None:
    """Clear the caches of functions in the modules of tests and in what they share."""
    for module in list(sys.modules.values()):
        if TESTS in Path(getattr(module, "__file__", None) or "").parents:
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
