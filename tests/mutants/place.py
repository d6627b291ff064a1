"""Find the old code of a change in a syntax tree, and write the source with the new code."""

import ast
import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

from . import snippet
from .change import Change


@dataclass
class Place:
    """The old nodes of a change, in `field` of `parent`, and the new ones."""

    parent: ast.AST
    field: str
    start: int | None  # in a list
    old: list[ast.AST]
    new: list[ast.AST]

    def unchanged(self) -> bool:
        """Return whether old and new code are the same."""
        return len(self.old) == len(self.new) and all(map(_equal, self.old, self.new))

    def put(self) -> None:
        """Insert the new nodes into the tree."""
        if self.start is None:
            setattr(self.parent, self.field, self.new[0])
            return
        nodes = getattr(self.parent, self.field)
        nodes[self.start : self.start + len(self.old)] = self.new
        if not nodes and self.field in {"body", "finalbody"}:
            nodes.append(ast.Pass())

    def rendered(self, source: str, tree: ast.Module) -> str:
        """Return the source with the new code, its other lines where they were if that can be."""
        around = _statements_around(tree, self.old[0])
        self.put()
        wanted = ast.dump(tree)
        for text in self._texts(source, tree, around):
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(text)) == wanted:
                    return text
        raise AssertionError("the last text is that of the tree")

    def _texts(self, source: str, tree: ast.Module, around: list[ast.stmt]) -> Iterator[str]:
        first, last = self.old[0], self.old[-1]
        if isinstance(first, ast.expr) and self.new:
            new = ast.unparse(ast.fix_missing_locations(self.new[0]))
            yield from _with_segment(source, first, last, new)
            yield from _with_segment(source, first, last, f"({new})")
        elif isinstance(first, ast.stmt):
            yield from _with_segment(source, first, last, _indented(self.new, first.col_offset) or "pass")
        for statement in around:
            yield from _with_segment(source, statement, statement, _indented([statement], statement.col_offset))
        yield ast.unparse(ast.fix_missing_locations(tree))


def _equal(a: ast.AST, b: ast.AST) -> bool:
    return ast.dump(a) == ast.dump(b)


def places(root: ast.AST, change: Change) -> Iterator[Place]:
    """Yield each place of the old code below `root`; below a module without its functions and classes."""
    readings = change.readings()
    for parent in _below(root):
        for name, value in ast.iter_fields(parent):
            nodes = value if isinstance(value, list) else [value]
            for old, new in readings:
                for start in range(len(nodes) - len(old) + 1):
                    held: list[list[ast.AST]] = []
                    if all(snippet.same(a, b, held) for a, b in zip(old, nodes[start:], strict=False)):
                        first = start if nodes is value else None
                        found = nodes[start : start + len(old)]
                        yield Place(parent, name, first, found, snippet.filled(copy.deepcopy(new), held))


def _below(root: ast.AST) -> Iterator[ast.AST]:
    yield root
    for child in ast.iter_child_nodes(root):
        if not (isinstance(root, ast.Module) and isinstance(child, snippet.Definition)):
            yield from _below(child)


def _statements_around(tree: ast.AST, node: ast.AST) -> list[ast.stmt]:
    """Return the statements that `node` is a part of, the innermost first."""
    statements = [found for found in ast.walk(tree) if isinstance(found, ast.stmt) and found is not node]
    return [found for found in reversed(statements) if any(inner is node for inner in ast.walk(found))]


def _indented(nodes: list[ast.AST], columns: int) -> str:
    lines = "\n".join(ast.unparse(ast.fix_missing_locations(node)) for node in nodes).split("\n")
    return ("\n" + " " * columns).join(lines)


def _with_segment(source: str, first: ast.AST, last: ast.AST, text: str) -> Iterator[str]:
    """Yield the source with `text` from `first` to `last`: with as many lines as before, then without."""
    lines = source.encode().splitlines(keepends=True)
    begin, end = first.lineno - 1, last.end_lineno - 1  # type: ignore[attr-defined]
    if isinstance(first, snippet.Definition) and first.decorator_list:
        begin = first.decorator_list[0].lineno - 1
    before = b"".join(lines[:begin]) + lines[begin][: first.col_offset]  # type: ignore[attr-defined]
    after = lines[end][last.end_col_offset :] + b"".join(lines[end + 1 :])  # type: ignore[attr-defined]
    missing = end - begin - text.count("\n")
    for padding in ("\n" * missing, "") if missing > 0 else ("",):
        yield before.decode() + text + padding + after.decode()
