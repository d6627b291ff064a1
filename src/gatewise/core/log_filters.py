"""Drop log records of other libraries."""

import logging
import threading
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


@contextmanager
def without_logs_of(library: str) -> Generator[None]:
    """Print no records of a library's loggers that this thread writes while the block runs.

    Args:
        library: name of the library's logger, such as "torch"; loggers below it may have handlers of their own.
    """
    own = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != own

    known = [
        logger for logger in list(logging.Logger.manager.loggerDict.values()) if isinstance(logger, logging.Logger)
    ]
    own_loggers = [logger for logger in known if f"{logger.name}.".startswith(f"{library}.")]
    handlers = [handler for logger in own_loggers for handler in logger.handlers]
    for handler in handlers:
        handler.addFilter(of_others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_others)
