"""Run the notebooks of the documentation and store their outputs.

    python tools/run_notebooks.py [NOTEBOOK ...]     # docs/notebooks/*.ipynb; a minute or so each

`tests/integration/test_notebooks.py` runs them too and compares the outputs with the stored ones.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "docs/notebooks"
COMMANDS = Path(sys.executable).parent  # where `!gatewise` is found


def run(file: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a new run, without times; an error in a cell is raised."""
    notebook = nbformat.read(file, as_version=4)
    environment = {
        **os.environ,
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # of tqdm, if ipywidgets is not installed
    }
    NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True).execute(env=environment)
    notebook.metadata.language_info = {"name": "python"}  # without the version of Python that ran it
    return notebook


if __name__ == "__main__":
    for file in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(run(file), file)
