"""Write generated pages only if they changed, so that Sphinx does not read unchanged pages again."""

from collections.abc import Mapping
from pathlib import Path


def write_page(file: Path, text: str) -> None:
    """Write a page if the file does not exist or has a different text."""
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


def fill_folder(folder: Path, texts: Mapping[str, str]) -> None:
    """Write these pages to the folder, and delete all other pages in it."""
    for file in folder.glob("*.md"):
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        write_page(folder / name, text)
