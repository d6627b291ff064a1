"""A mutant: one small change in one symbol of the package, and the source with that change in it."""

import ast
import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import snippet
from .change import Change, TextChange


class DoesNotApplyError(Exception):
    """The code has changed, so that a mutant no longer says what it changes."""


@dataclass(frozen=True)
class Mutant:
    """One change of `symbol` ("scale_channels", "GaterNet.forward", "" outside of all) in `module` ("insertion.py")."""

    name: str
    module: str
    symbol: str
    change: Change | TextChange

    @property
    def key(self) -> str:
        """Return the name by which the map of tests knows the symbol."""
        return f"{self.module}::{self.symbol}"

    def mutated(self, package: Path) -> str:
        """Return the module's source with the change.

        Raises:
            DoesNotApplyError: The symbol is gone, or the old code does not stand exactly once in it.
        """
        source = read(package / self.module)
        if isinstance(self.change, TextChange):
            if source.count(self.change.old) != 1:
                raise DoesNotApplyError(f"{self.change.old!r} stands {source.count(self.change.old)} times in the file")
            return source.replace(self.change.old, self.change.new)
        tree = ast.parse(source)
        place = self.find(tree)
        if isinstance(place.parent, ast.AST) and place.unchanged():
            raise DoesNotApplyError("it changes nothing")
        return place.rendered(source, tree)

    def check(self, package: Path, trees: dict[str, ast.Module]) -> None:
        """Raise DoesNotApplyError where `mutated` would; quicker, with the modules that are parsed already."""
        if isinstance(self.change, TextChange):
            self.mutated(package)
            return
        if self.module not in trees:
            trees[self.module] = ast.parse(read(package / self.module))
        self.find(trees[self.module])

    def find(self, tree: ast.Module) -> "Place":
        """Return where the old code stands.

        Raises:
            DoesNotApplyError: There is no symbol of that name, or the old code does not stand exactly once in it.
        """
        roots = [node for name, node in snippet.symbols(tree) if name == self.symbol] if self.symbol else [tree]
        if not roots:
            raise DoesNotApplyError(f"{self.module} has no {self.symbol}")
        assert isinstance(self.change, Change)
        places = [place for root in roots for place in _places(root, self.change)]
        nth = self.change.nth
        if len(places) != 1 if nth is None else len(places) < nth:
            raise DoesNotApplyError(f"the old code stands {len(places)} times in {self.symbol or self.module}")
        return places[(nth or 1) - 1]


def read(file: Path) -> str:
    """Read a source file.

    Raises:
        DoesNotApplyError: There is no such file.
    """
    try:
        return file.read_text()
    except FileNotFoundError:
        raise DoesNotApplyError(f"there is no {file.name}") from None


@dataclass
class Place:
    """Where a change's old nodes stand, in `field` of `parent`, and the new ones."""

    parent: ast.AST
    field: str
    start: int | None  # in a list
    old: list[ast.AST]
    new: list[ast.AST]

    def unchanged(self) -> bool:
        """Return whether old and new code are the same."""
        return len(self.old) == len(self.new) and all(map(_equal, self.old, self.new))

    def put(self) -> None:
        """Put the new nodes into the tree."""
        if self.start is None:
            setattr(self.parent, self.field, self.new[0])
            return
        nodes = getattr(self.parent, self.field)
        nodes[self.start : self.start + len(self.old)] = self.new
        if not nodes and self.field == "body":
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


def _places(root: ast.AST, change: Change) -> Iterator[Place]:
    """Yield where the old code stands below `root`; below a module without its functions and classes."""
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
        if not (isinstance(root, ast.Module) and isinstance(child, snippet.DEFINITIONS)):
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
    if isinstance(first, snippet.DEFINITIONS) and first.decorator_list:
        begin = first.decorator_list[0].lineno - 1
    before = b"".join(lines[:begin]) + lines[begin][: first.col_offset]  # type: ignore[attr-defined]
    after = lines[end][last.end_col_offset :] + b"".join(lines[end + 1 :])  # type: ignore[attr-defined]
    missing = end - begin - text.count("\n")
    for padding in ("\n" * missing, "") if missing > 0 else ("",):
        yield before.decode() + text + padding + after.decode()
