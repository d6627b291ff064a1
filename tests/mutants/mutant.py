"""A mutant: one small change in one symbol of the package, and the source with that change in it."""

import ast
from dataclasses import dataclass
from pathlib import Path

from . import snippet
from .change import Change, TextChange
from .place import Place, places


class DoesNotApplyError(Exception):
    """The code has changed, so that a mutant no longer says what it changes."""


@dataclass(frozen=True)
class Mutant:
    """One change of `symbol` ("scale_channels", "GaterNet.forward", "" outside of all) in `module` ("data/load.py")."""

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
        if place.unchanged():
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

    def find(self, tree: ast.Module) -> Place:
        """Return where the old code stands.

        Raises:
            DoesNotApplyError: There is no symbol of that name, or the old code does not stand exactly once in it.
        """
        roots = [node for name, node in snippet.symbols(tree) if name == self.symbol] if self.symbol else [tree]
        if not roots:
            raise DoesNotApplyError(f"{self.module} has no {self.symbol}")
        assert isinstance(self.change, Change)
        found = [place for root in roots for place in places(root, self.change)]
        nth = self.change.nth
        if len(found) != 1 if nth is None else len(found) < nth:
            raise DoesNotApplyError(f"the old code stands {len(found)} times in {self.symbol or self.module}")
        return found[(nth or 1) - 1]


def read(file: Path) -> str:
    """Read a source file.

    Raises:
        DoesNotApplyError: There is no such file.
    """
    try:
        return file.read_text()
    except FileNotFoundError:
        raise DoesNotApplyError(f"there is no {file.name}") from None
