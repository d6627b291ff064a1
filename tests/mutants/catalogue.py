"""All mutants that are listed, from the modules of `mutants.list`."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from . import list as listed
from .change import Change, TextChange
from .mutant import DoesNotApplyError, Mutant

Changes = Mapping[str, Mapping[str, Mapping[str, Change | TextChange]]]  # module, symbol, name of the mutant


def mutants_of(changes: Changes) -> list[Mutant]:
    """Return the mutants of one module of the list."""
    return [
        Mutant(name, module, symbol, change)
        for module, symbols in changes.items()
        for symbol, named in symbols.items()
        for name, change in named.items()
    ]


def all_mutants() -> list[Mutant]:
    """Return every listed mutant.

    Raises:
        ValueError: Two have the same name.
    """
    areas = [
        importlib.import_module(f"{listed.__name__}.{area.name}") for area in pkgutil.iter_modules(listed.__path__)
    ]
    found = [mutant for area in areas for mutant in mutants_of(area.CHANGES)]
    twice = [name for name, count in Counter(mutant.name for mutant in found).items() if count > 1]
    if twice:
        raise ValueError(f"names of mutants that stand twice in the list: {twice}. Give each its own.")
    return found


def not_applicable(mutants: list[Mutant], package: Path) -> dict[Mutant, str]:
    """Return the mutants that do not apply to the code, and why."""
    trees: dict = {}
    reasons = {}
    for mutant in mutants:
        try:
            mutant.check(package, trees)
        except DoesNotApplyError as error:
            reasons[mutant] = str(error)
    return reasons
