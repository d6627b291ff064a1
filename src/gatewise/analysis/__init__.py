"""Numbers, figures and pages made from networks and runs."""

from typing import Any

from gatewise import _checks


def __getattr__(name: str) -> Any:
    """Give `GateStats` and `GateRecorder`; torchmetrics is loaded when the first is asked for, not before."""
    if name == "GateStats":
        _checks.optional_module("torchmetrics", "GateStats")
        from gatewise.analysis.gate_stats import GateStats

        return GateStats
    if name == "GateRecorder":
        from gatewise.analysis.recording import GateRecorder

        return GateRecorder
    raise AttributeError(f"module 'gatewise.analysis' has no attribute {name!r}")
