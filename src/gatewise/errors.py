"""The exceptions that gatewise raises.

All but `Interrupted` derive from `GatewiseError`, so one `except` catches them. The command line prints them in one
line and exits with code 2 (1 for `TrainingError`); any other exception is a bug and prints its traceback.
"""

_MAX_LENGTH = 2500


class GatewiseError(Exception):
    """Base class of all exceptions of gatewise: an error that the caller can fix; the message explains how."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _MAX_LENGTH else f"{text[:1500]} ... {text[-900:]}"


class InvalidValueError(GatewiseError, ValueError):
    """An argument has the right type but an invalid value."""


class InvalidTypeError(GatewiseError, TypeError):
    """An argument has an invalid type."""


class DataError(GatewiseError, ValueError):
    """A file or folder cannot be used; the message has its path."""


class MissingExtraError(GatewiseError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class NewerFormatError(DataError):
    """A file was written by a newer version of gatewise; the message has both format numbers. The file is intact."""


class StorageError(GatewiseError, OSError):
    """A file cannot be written; the message has its path and the reason. An existing file is unchanged."""


class TrainingError(GatewiseError, RuntimeError):
    """Training cannot continue; the message has the step."""


class UnsavedError(TrainingError):
    """Training cannot continue because its files cannot be written; the message has the last valid checkpoint."""


class Interrupted(KeyboardInterrupt):
    """Raised after a signal has stopped a training; the message says after which step, and how to resume.

    Args:
        stopped: what was stopped, and where its state was saved.
        signal: number of the signal.
        remedy: how to resume.
    """

    def __init__(self, stopped: str, signal: int, remedy: str = "continue with the same command and --resume") -> None:
        super().__init__(f"{stopped}; {remedy}")
        self.stopped, self.signal = stopped, signal
