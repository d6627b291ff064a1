"""Run a script with the presets registered, as `python -m gatewise.integrations.timm`."""

import sys

from gatewise.integrations.timm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
