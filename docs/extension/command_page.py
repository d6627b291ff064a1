"""Write the page of all commands and flags, with the command line's own parser."""

import re
from pathlib import Path
from typing import Any

from written import write_page

from gatewise.cli import app as commands


def page() -> str:
    """Return the commands, their flags and their examples as Markdown."""
    text = commands.generate_docs(output_format="markdown", usage_name="gatewise")
    text = re.sub(
        r"^(gatewise \w+) -m \w+", r"\1", text, flags=re.MULTILINE
    )  # comes from the running `python -m sphinx`
    text = re.sub(
        r"## Table of Contents\n.*?(?=\*\*Commands)", "", text, flags=re.DOTALL
    )  # the list of commands is enough
    text = re.sub(r"^Example: (.+)$", r"```bash\n\1\n```", text, flags=re.MULTILINE)
    # Flags inside descriptions are formatted as code, to keep their dashes.
    text = re.sub(r"(```.*?```|`[^`]*`)|(--[a-z][a-z-]*)", lambda m: m[1] or f"`{m[2]}`", text, flags=re.DOTALL)
    return text.replace("# gatewise\n", "# Commands\n", 1)


def write(app: Any) -> None:
    """Write the page."""
    write_page(Path(app.srcdir) / "commands.md", page())


def setup(app: Any) -> dict[str, bool]:
    """Write the page before Sphinx reads its sources."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
