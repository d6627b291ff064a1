"""Run a script with the presets registered, as `python -m gatewise.integrations.timm`."""

import runpy

runpy.run_module("gatewise.integrations.timm", run_name="__main__", alter_sys=True)
