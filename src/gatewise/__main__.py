"""Entry point of `python -m gatewise` and of the `gatewise` command."""

import signal
import sys


def main() -> int:
    """Run the command line and return its exit code; report missing packages in one line."""
    try:
        from gatewise.cli import run
        from gatewise.core.stop_signals import stop_signals
    except ModuleNotFoundError as error:
        print(f"gatewise: the command line needs {error.name!r}: pip install 'gatewise[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gatewise: interrupted during start-up, nothing was done", file=sys.stderr)
        return 130
    code = run()
    # Ignore signals while the interpreter shuts down. Python removes Python-level handlers early, but keeps SIG_IGN.
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
