"""Statistics, figures and HTML pages about gates and trained runs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatewise.analysis.gate_stats import GateStats
    from gatewise.analysis.recording import GateRecorder

__all__ = ["GateRecorder", "GateStats"]

if not TYPE_CHECKING:  # otherwise type checkers would accept misspelt names

    def __getattr__(name: str) -> Any:
        """Import `GateStats` and `GateRecorder` on first use, because `GateStats` loads torchmetrics."""
        if name not in __all__:
            raise AttributeError(f"module 'gatewise.analysis' has no attribute {name!r}")
        file = {"GateStats": "gate_stats", "GateRecorder": "recording"}[name]
        return getattr(importlib.import_module(f"gatewise.analysis.{file}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
