"""Keep single messages of other libraries from the user, and nothing else."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def without_records(logger: str | None, unwanted: Callable[[logging.LogRecord], bool]) -> Generator[None]:
    """Drop the unwanted records of one logger; its level, its handlers and all other records stay as they are.

    Args:
        logger: its name; None is the root logger. Records of its children do not pass through it.
        unwanted: whether to drop a record.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return not unwanted(record)

    source = logging.getLogger(logger)
    source.addFilter(wanted)
    try:
        yield
    finally:
        source.removeFilter(wanted)
