"""The connection to the Hugging Face hub, whose client retries for half a minute where there is none."""

# pyright: basic

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from gatewise.core.reasons import reason_of

_TIMEOUT = 10.0  # seconds


@contextmanager
def cache_if_unreachable() -> Generator[None]:
    """Let the hub's client use its local cache alone while the block runs, if the hub cannot be reached.

    Raises:
        OSError: the block needs the hub; the message says why it cannot be reached.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:  # then nothing in the block asks the hub
        yield
        return
    constants: Any = huggingface_hub.constants
    problem = _why_unreachable(huggingface_hub)
    if problem is None:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{constants.ENDPOINT} cannot be reached ({problem}), and the local cache does not have what is needed"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _why_unreachable(hub: Any) -> str | None:
    """Return the error of a request to the hub, or None if it answers, also with an error."""
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception as error:  # of the client's HTTP library, which depends on its version
        return reason_of(error)
    return None
