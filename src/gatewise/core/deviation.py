"""How far numbers are from those that are expected, where some are not finite."""

import math

import torch
from torch import Tensor


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Return max |found - expected| over finite entries; infinity if the shape or an entry inf, -inf or NaN differs.

    >>> expected = torch.tensor([1.0, -torch.inf])
    >>> [largest_error(torch.tensor(found), expected) for found in ([1.5, -torch.inf], [1.0, 0.0], [torch.nan] * 2)]
    [0.5, inf, inf]
    """
    if found.shape != expected.shape:
        return math.inf
    kind = torch.promote_types(expected.dtype, torch.float32)
    found, expected = found.to(kind), expected.to(kind)
    equal = (found == expected) | (found.isnan() & expected.isnan())
    alike = torch.where(expected.isfinite(), found.isfinite(), equal)
    return largest_finite(found - expected) if bool(alike.all()) else math.inf


def largest_finite(x: Tensor) -> float:
    """Return max |x| over the finite entries of a tensor; 0 if it has none.

    >>> largest_finite(torch.tensor([1.0, -2.0, torch.inf]))
    2.0
    """
    finite = x[x.isfinite()]
    return float(finite.to(torch.promote_types(x.dtype, torch.float32)).abs().max()) if len(finite) else 0.0
