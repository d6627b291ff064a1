"""Registries of what can be added to gatewise by name, with a decorator."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any, TypeVar

from gatewise import errors
from gatewise.core import _validation

T = TypeVar("T")


class Registry(dict[str, T]):
    """Things of one kind by name.

    Args:
        kind: the kind of thing in messages, such as "gate".
        decorated: the attribute of an item that holds what was decorated; "" if that is the item itself.
        filled_by: module whose import registers the items, for a registry that is looked up in lower layers.

    >>> Registry("gate", "gate").lookup("gct")
    Traceback (most recent call last):
        ...
    gatewise.errors.InvalidValueError: unknown gate 'gct'; expected one of nothing (there are none).
    """

    def __init__(self, kind: str, decorated: str = "", filled_by: str = "") -> None:
        super().__init__()
        self.kind, self.decorated, self.filled_by = kind, decorated, filled_by

    def lookup(self, name: object) -> T:
        """Return the item `name`; raise InvalidValueError with the nearest known name if it is unknown."""
        return self[_validation.check_one_of(self.kind, name, self.names())]

    def names(self) -> list[str]:
        """Return the names of all items in alphabetical order."""
        if self.filled_by:
            importlib.import_module(self.filled_by)
        return sorted(self)

    def check_new(self, name: str) -> None:
        """Raise InvalidValueError if the name is in use or not an identifier."""
        if name in self:
            item: Any = self[name]
            owner = (getattr(item, self.decorated) if self.decorated else item).__name__
            raise errors.InvalidValueError(
                f"{self.kind} {name!r} is already registered, by {owner}. Choose another name."
            )
        if not name.isidentifier():
            raise errors.InvalidValueError(
                f"the name of a {self.kind} must consist of letters, digits and '_', got {name!r}."
            )


def import_files(package: str, path: Iterable[str]) -> None:
    """Import every file of a package, so that each registers what it defines; `path` is the package's `__path__`."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


PLACES: Registry[Any] = Registry("place", "rule", "gatewise.graph.places")  # of PlaceKind; gates name places
