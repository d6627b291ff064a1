"""Draw the packages of gatewise, their layers and their imports.

    python tools/draw_layers.py [FILE]     # docs/images/layers.svg

The rows are the layers that import-linter enforces (pyproject.toml), the sentences are the first lines of the packages'
docstrings, and the arrows are read from the import statements. An arrow that follows from others is omitted: where A
imports B, B imports C and A imports C, only the first two are drawn.
"""

import ast
import itertools
import sys
import tomllib
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/gatewise"
IMAGE = ROOT / "docs/images/layers.svg"
WIDTH, ROW, BOX, MARGIN, GAP, LETTER = 1080, 92, 54, 20, 16, 6.3
Imports = dict[str, set[str]]
Box = tuple[float, float, float]  # left, top, width


def layers() -> list[list[str]]:
    """Return the names of the packages in each layer, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in settings if contract["type"] == "layers")
    return [[name.strip() for name in row.replace(":", "|").split("|")] for row in rows]


def imports(names: list[str]) -> Imports:
    """Return which of the packages each package imports, without those that follow from others."""
    graph = grimp.build_graph("gatewise")
    direct: Imports = {name: set() for name in names}
    for one, other in itertools.permutations(names, 2):
        if graph.direct_import_exists(importer=f"gatewise.{one}", imported=f"gatewise.{other}", as_packages=True):
            direct[one].add(other)
    reached: Imports = {}
    for name in TopologicalSorter(direct).static_order():
        reached[name] = direct[name].union(*(reached[other] for other in direct[name]))
    return {
        name: {other for other in others if not any(other in reached[way] for way in others - {other})}
        for name, others in direct.items()
    }


def sentence(name: str) -> str:
    """Return the first line of a package's docstring."""
    module = PACKAGE / f"{name}.py"
    first = module if module.exists() else PACKAGE / name / "__init__.py"
    return (ast.get_docstring(ast.parse(first.read_text())) or "").partition("\n")[0]


def wrapped(text: str, width: float) -> list[str]:
    """Break a text into lines of about `width` pixels."""
    lines = [""]
    for word in text.split():
        if lines[-1] and (len(lines[-1]) + 1 + len(word)) * LETTER > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def path(source: Box, target: Box) -> str:
    """Return the line from one box to another: sideways in a row, straight down, or past the rows between them."""
    (left, top, width), (there, below, wide) = source, target
    if top == below:
        return (
            f"M{left + width:.0f} {top + BOX / 2} H{there - 2:.0f}"
            if left < there
            else (f"M{left:.0f} {top + BOX / 2} H{there + wide + 2:.0f}")
        )
    low, high = max(left, there), min(left + width, there + wide)
    if below - top == ROW and high > low:
        return f"M{(low + high) / 2:.0f} {top + BOX} V{below - 2}"
    side, centre = WIDTH - MARGIN / 2, there + wide / 2
    return f"M{left + width:.0f} {top + BOX / 2} H{side} V{below - 18} H{centre:.0f} V{below - 2}"


def drawing() -> str:
    """Return the picture as SVG."""
    rows = layers()
    places: dict[str, Box] = {}
    for number, row in enumerate(rows):
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row) if len(row) > 1 else WIDTH / 2
        start = MARGIN if len(row) > 1 else WIDTH / 4
        for column, name in enumerate(row):
            places[name] = (start + column * (width + GAP), MARGIN + number * ROW, width)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * MARGIN + ROW * (len(rows) - 1) + BOX}"',
        'font-family="sans-serif" font-size="11.5">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path d="M0 0 8 4 0 8z" fill="#6b7280"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    parts.append('<g stroke="#6b7280" fill="none">')
    for name, others in imports(list(places)).items():
        for other in sorted(others, key=lambda other: places[other]):
            parts.append(f'<path d="{path(places[name], places[other])}" marker-end="url(#tip)"/>')
    parts.append("</g>")
    for name, (left, top, width) in places.items():
        parts.append(
            f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{BOX}" rx="6" fill="#eef2ff" '
            'stroke="#4f5bd5"/>'
        )
        parts.append(f'<text x="{left + 10:.0f}" y="{top + 18}" font-weight="bold" font-size="13">{name}</text>')
        for number, line in enumerate(wrapped(sentence(name), width - 20)[:2]):
            parts.append(f'<text x="{left + 10:.0f}" y="{top + 33 + 14 * number}">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    image = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGE
    image.write_text(drawing())
    print(image)
