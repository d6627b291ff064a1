"""The exceptions that gatewise raises.

All derive from `GatewiseError`, so that one `except` catches them; the command line prints them in one line and exits
with code 2 (1 for `TrainingError`), while any other exception is a defect and keeps its traceback.
"""

_MAX_LENGTH = 2500


class GatewiseError(Exception):
    """Base of all exceptions of gatewise: a problem that the caller can solve; the message says how."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _MAX_LENGTH else f"{text[:1500]} ... {text[-900:]}"


class InvalidValueError(GatewiseError, ValueError):
    """An argument of the right type has a value that cannot be used."""


class InvalidTypeError(GatewiseError, TypeError):
    """An argument has a type that cannot be used."""


class DataError(GatewiseError, ValueError):
    """A file or folder of images cannot be used; the message names it."""


class MissingExtraError(GatewiseError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class NewerFormatError(DataError):
    """A file was written by a later version; the message has both numbers. It is not damaged: leave it alone."""


class StorageError(GatewiseError, OSError):
    """A file cannot be written; the message names it and the reason. What was there before is untouched."""


class TrainingError(GatewiseError, RuntimeError):
    """A training cannot go on; the message names the step."""


class UnsavedError(TrainingError):
    """A training cannot go on because its files cannot be written; the message names the last good checkpoint."""
