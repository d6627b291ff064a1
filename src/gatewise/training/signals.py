"""Graceful shutdown: on Ctrl-C, SIGTERM or a closed terminal finish the current step, save a checkpoint, then exit."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

from gatewise.core.stop_signals import stop_signals
from gatewise.errors import Interrupted as Interrupted

_ECHO_S = 5.0


class Interruption:
    """Context manager that records the first SIGINT, SIGTERM or SIGHUP; a second one has its usual effect.

    Outside the main thread it records nothing, since Python allows signal handlers only there.

    Args:
        launched: whether a launcher started this process. A launcher forwards Ctrl-C, which the terminal has already
            sent to this process, so signals within five seconds of the first are ignored.

    Attributes:
        signal: number of the recorded signal, or None.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.signal: int | None = None
        self._launched, self._noted_at = launched, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
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
