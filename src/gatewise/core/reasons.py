"""The reason of another library's exception in one line, and its conversion to an error of gatewise."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from gatewise import errors

_COLOURS = re.compile("\x1b\\[[0-9;]*m")  # of terminals, in messages of torch.export


def reason_of(error: BaseException, most: int = 300) -> str:
    r"""Return the message of an exception in one line of at most `most` characters; its type if it has none.

    >>> reason_of(ValueError("bad\n  magic number")), reason_of(KeyError()), reason_of(RecursionError("maximum ..."))
    ('bad magic number', 'KeyError', 'nested too deeply')
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    message = " ".join(_COLOURS.sub("", str(error)).split())[:most].rstrip(".")
    kind = type(error).__name__
    if isinstance(error, LookupError) and message:  # a key alone explains nothing
        return f"{kind}: {message}"
    return message or kind


@contextmanager
def as_data_error(
    file: str | Path,
    problem: str,
    advice: str = "",
    *,
    of: type[Exception] | tuple[type[Exception], ...] = Exception,
    kind: type[errors.GatewiseError] = errors.DataError,
) -> Generator[None]:
    r"""Convert exceptions of the block to one line: "FILE PROBLEM (reason). ADVICE".

    Errors of gatewise pass unchanged.

    Args:
        file: what is named first.
        problem: what is wrong with it, for example "is not an ONNX model".
        advice: what to do, a sentence.
        of: exceptions to convert; decoders of untrusted bytes can raise any.
        kind: exception to raise.

    >>> with as_data_error("net.onnx", "is not an ONNX model", "Export it again."):
    ...     raise RuntimeError("bad\nmagic")
    Traceback (most recent call last):
        ...
    gatewise.errors.DataError: net.onnx is not an ONNX model (bad magic). Export it again.
    """
    try:
        yield
    except errors.GatewiseError:
        raise
    except of as error:
        raise kind(f"{file} {problem} ({reason_of(error)}).{advice and f' {advice}'}") from None
