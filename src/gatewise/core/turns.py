"""A lock for what one thread at a time can do with a network."""

import threading
from typing import Any


class Turns:
    """A context that threads enter in turn, and one thread any number of times; each copy has turns of its own.

    >>> import copy
    >>> turns = Turns()
    >>> with turns, copy.deepcopy(turns):
    ...     print("entered")
    entered
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Turns, ()
