"""Networks of timm whose files are downloaded, from the Hugging Face hub or elsewhere."""

from collections.abc import Generator
from contextlib import contextmanager

from gatewise.core.hub_connection import cache_if_unreachable
from gatewise.core.reasons import as_data_error

_ON_THE_HUB = ("hf-hub:", "hf_hub:")  # what names of such networks begin with, in timm


@contextmanager
def downloading(name: str, *, pretrained: bool) -> Generator[None]:
    """Convert the errors of building a timm network whose files cannot be downloaded, and wait for no connection.

    Raises:
        DataError: the files are neither available nor in the local cache.
    """
    if not pretrained and not name.startswith(_ON_THE_HUB):
        yield
        return
    what, remedy = (
        (f"the pretrained weights of {name!r}", ", or omit pretrained=true") if pretrained else (repr(name), "")
    )
    advice = f"Check the connection to the internet{remedy}."
    with as_data_error("timm", f"cannot get {what}", advice, of=OSError), cache_if_unreachable():
        yield
