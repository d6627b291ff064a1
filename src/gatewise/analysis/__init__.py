"""Numbers, figures and pages made from networks and runs."""

import importlib
from typing import Any

from gatewise import _validation

_WHERE = {"GateStats": "gate_stats", "GateRecorder": "recording"}
__all__ = list(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Give `GateStats` and `GateRecorder`; torchmetrics is loaded when the first is asked for, not before."""
    if name not in _WHERE:
        raise AttributeError(f"module 'gatewise.analysis' has no attribute {name!r}")
    if name == "GateStats":
        _validation.optional_module("torchmetrics", "GateStats")
    return getattr(importlib.import_module(f"gatewise.analysis.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
