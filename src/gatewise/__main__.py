"""`python -m gatewise`, and the `gatewise` command."""

import os
import signal
import sys


def main() -> int:
    """Run the command line; without its packages, say how to get them."""
    try:
        from gatewise.cli import run
    except ModuleNotFoundError as error:
        print(f"gatewise: the command line needs {error.name!r}: pip install 'gatewise[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gatewise: interrupted before anything was begun", file=sys.stderr)
        return 130
    code = run()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is done and said: Python's own end, seconds, can be cut short
        signal.signal(number, lambda *_: os._exit(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
