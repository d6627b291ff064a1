"""Ctrl-C and SIGTERM as a wish: the step that runs is finished, its result saved, and only then the training ends."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

_ECHO_S = 5.0


class Interrupted(KeyboardInterrupt):
    """A training that was asked to stop has stopped; the message says where, and how to go on.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class Interruption:
    """Notes a first SIGINT or SIGTERM while it is open; a second one acts as ever.

    Outside the main thread, where Python allows no handlers, it notes nothing.

    Args:
        launched: whether a launcher started this process. It passes on Ctrl-C, which the terminal has sent here
            already, so what comes within seconds of the first signal is the same wish.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.signal: int | None = None
        self._launched, self._noted_at = launched, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is None:
            self.signal, self._noted_at = number, time.monotonic()
            if not self._launched:
                self._restore()
        elif time.monotonic() - self._noted_at > _ECHO_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
