"""The connection to the Hugging Face hub, whose client retries for half a minute where there is none."""

# pyright: basic

from collections.abc import Generator
from contextlib import contextmanager

from gatewise.core.reasons import reason_of

_TIMEOUT = 10.0  # seconds


@contextmanager
def cache_if_unreachable() -> Generator[None]:
    """Let the hub's client use its local cache alone while the block runs, if the hub cannot be reached.

    Raises:
        OSError: the cache lacks a file of the hub; the message says why the hub cannot be reached.
    """
    try:
        from huggingface_hub import constants
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:  # then nothing in the block asks the hub
        yield
        return
    if (problem := _why_unreachable()) is None:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except (ConnectionError, LocalEntryNotFoundError) as error:
        raise OSError(
            f"{constants.ENDPOINT} cannot be reached ({problem}), and the local cache does not have what is needed"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _why_unreachable() -> str | None:
    """Return the error of a request to the hub, or None if it answers, also with an error."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session = get_session()
    try:
        session.head(constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception as error:  # of the client's HTTP library, which depends on its version
        return reason_of(error)
    return None
