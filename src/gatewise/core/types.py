"""Type aliases that are necessarily `Any`, each with the reason."""

from typing import Any, TypeAlias

Example: TypeAlias = Any  # input of a user's network: a tensor, or a tuple of arguments
Output: TypeAlias = Any  # output of a user's network: a tensor, a tuple, a dict, a dataclass
