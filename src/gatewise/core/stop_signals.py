"""The signals that ask a program to stop."""

import signal


def stop_signals() -> list[signal.Signals]:
    """Return SIGINT, SIGTERM and, where the system has it, SIGHUP of a closed terminal, unless nohup ignores that."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]
