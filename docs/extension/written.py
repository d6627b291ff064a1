"""Pages that the build itself writes: only what changed, so that Sphinx reads nothing twice."""

from collections.abc import Mapping
from pathlib import Path


def write_page(file: Path, text: str) -> None:
    """Write a page if it is not there or another one is."""
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


def fill_folder(folder: Path, texts: Mapping[str, str]) -> None:
    """Let the folder hold these pages, by their names, and no others."""
    for file in folder.glob("*.md"):
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        write_page(folder / name, text)
