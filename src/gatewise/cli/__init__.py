"""Command-line interface: parse arguments, call the library, print results."""

from gatewise.cli import benching as benching  # importing a module registers its commands
from gatewise.cli import checking as checking
from gatewise.cli import comparing as comparing
from gatewise.cli import completing as completing
from gatewise.cli import demonstration as demonstration
from gatewise.cli import execution as execution
from gatewise.cli import explanation as explanation
from gatewise.cli import gates as gates
from gatewise.cli import judging as judging
from gatewise.cli import prediction as prediction
from gatewise.cli import scoring as scoring
from gatewise.cli import training as training
from gatewise.cli.app import app as app
from gatewise.cli.app import run as run
