"""Make links to the HTML pages in docs/pages open these pages in the site instead of downloading them."""

import posixpath
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference

PAGES = "pages"  # folder of HTML pages, which are copied unchanged


def open_pages(app: Any, doctree: nodes.document) -> None:
    """Replace download links to these pages by plain links."""
    folder = posixpath.dirname(app.env.docname)
    for node in list(doctree.findall(download_reference)):
        target = posixpath.normpath(posixpath.join(folder, node["reftarget"])).lstrip("/")
        if target.startswith(f"{PAGES}/") and target.endswith(".html"):
            link = posixpath.relpath(target, folder or ".")
            node.replace_self(nodes.reference("", "", *node.children, refuri=link))


def copy_pages(app: Any, error: Exception | None) -> None:
    """Copy the pages into the site."""
    if error is None and app.builder.format == "html":
        shutil.copytree(Path(app.srcdir) / PAGES, Path(app.outdir) / PAGES, dirs_exist_ok=True)


def setup(app: Any) -> dict[str, bool]:
    """Register both steps with Sphinx."""
    app.connect("doctree-read", open_pages, priority=100)  # before Sphinx collects downloads
    app.connect("build-finished", copy_pages)
    return {"parallel_read_safe": True}
