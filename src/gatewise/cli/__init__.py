"""The command line: parse, call, print."""

from gatewise.cli import execution, explanation, gates, prediction, training  # noqa: F401  (importing them adds their commands)
from gatewise.cli.app import app as app
from gatewise.cli.app import run as run
