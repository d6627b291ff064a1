"""Configure the documentation site. Build it with `make site`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extension"))

project = "gatewise"
author = "The gatewise developers"
version = release = version_of("gatewise")
html_title = f"gatewise {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = False
html_copy_source = html_show_sourcelink = False

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "command_page",
    "gate_pages",
    "readable_cells",
    "site_links",
]
exclude_patterns = ["_build", "jupyter_execute", "results/*/**", "extension"]  # myst-nb writes the second
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks have their outputs; `make notebooks` writes them
nb_render_markdown_format = "gfm"  # outputs in Markdown may have tables
smartquotes = False  # options and texts can be copied
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
pygments_style, pygments_dark_style = "friendly", "github-dark"
documented_modules = [
    "gatewise",
    "gatewise.errors",
    "gatewise.gates.functional",
    "gatewise.analysis",
    "gatewise.gates.registry",
    "gatewise.gates.spec",
    "gatewise.graph",
    "gatewise.insertion.tuning",
    "gatewise.models",
    "gatewise.gaternet",
    "gatewise.inference",
    "gatewise.models.serialization",
    "gatewise.models.weights",
    "gatewise.graph.measure",
    "gatewise.data",
    "gatewise.training",
    "gatewise.comparison",
    "gatewise.exporting",
    "gatewise.exporting.hub",
    "gatewise.exporting.prediction",
    "gatewise.analysis.benchmark",
]
