"""Mutants: small bugs in the package, each of which a test must catch.

`Mutant(name, module, symbol, change)` is one entry of `mutants.list`. Its change is compared as syntax tree with the
code of its symbol, so that layout, comments and moves of a function make no difference.
"""

from .change import drop_call, flip, off_by_one, remove, replace, replace_text, swap
from .mutant import DoesNotApplyError, Mutant

__all__ = [
    "DoesNotApplyError",
    "Mutant",
    "drop_call",
    "flip",
    "off_by_one",
    "remove",
    "replace",
    "replace_text",
    "swap",
]
