"""Types that cannot be narrower, each with the reason."""

from typing import Any, TypeAlias

Example: TypeAlias = Any  # what the forward of a user's network takes: a tensor, or a tuple of its arguments
Output: TypeAlias = Any  # what the forward of a user's network returns: a tensor, a tuple, a dict, a dataclass
