"""`python -m gatewise`, and the `gatewise` command."""

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
    # All is done and said, and Python takes a second to end. A handler of ours would not do: Python takes those away
    # first, and what it ignores not.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
