"""Run a script with the presets in timm's registry.

    python -m gatewise.integrations.timm train.py --model gct_resnet50.gatewise ...
    torchrun --nproc-per-node 2 -m gatewise.integrations.timm train.py --model gct_resnet50.gatewise ...

Without a script it prints the presets.
"""

import runpy
import sys

from gatewise import errors
from gatewise.core import _validation
from gatewise.integrations.timm import PRESETS, TAG


def main(arguments: list[str]) -> int:
    """Run a script with its arguments; without a script, print the presets."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: python -m gatewise.integrations.timm SCRIPT [ARGUMENTS ...]\n")
        print("Networks that SCRIPT can create with timm:")
        for name, spec in PRESETS.items():
            print(f"  {name + '.' + TAG:<24} {spec}")
        return 0
    try:
        script = _validation.check_path_exists("script", arguments[0])
    except errors.GatewiseError as error:
        print(f"gatewise: {error}", file=sys.stderr)
        return 2
    sys.argv = arguments
    sys.path.insert(0, str(script.resolve().parent))  # as `python SCRIPT` does
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
