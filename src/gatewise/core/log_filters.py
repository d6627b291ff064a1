"""Drop single log records of other libraries."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def without_records(logger: str | None, unwanted: Callable[[logging.LogRecord], bool]) -> Generator[None]:
    """Drop the unwanted records of one logger while the block runs; its level and handlers are not changed.

    Args:
        logger: name of the logger; None is the root logger. Records of child loggers are not filtered.
        unwanted: returns True for records to drop.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return not unwanted(record)

    source = logging.getLogger(logger)
    source.addFilter(wanted)
    try:
        yield
    finally:
        source.removeFilter(wanted)
