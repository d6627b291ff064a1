"""Read from the results of benchmarks what gates cost in PyTorch and in other runtimes."""

import functools
import json
from pathlib import Path
from typing import Any

from gatewise.analysis.table import Cell, Table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EXPORTED, FUSED = "exported_gates-cpu.json", "fused-cpu.json"
_TITLES = {
    "torch": "PyTorch",
    "torch, optimised": "PyTorch, both optimised",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}


@functools.cache
def results(file: str) -> dict[str, Any]:
    """Return the results in a file."""
    return json.loads((RESULTS / file).read_text())


def times_of_gate(name: str) -> list[tuple[str, list[float], str]]:
    """Return where a gate was timed, its time relative to none with quartiles if known, and the file of the results.

    All times of one file are of one run. PyTorch's are those of the run of the other runtimes, if it has any.
    """
    measured = results(EXPORTED)["runtimes"]
    found = [
        (_TITLES[runtime], rows[name]["of_none"], EXPORTED)
        for runtime in _TITLES
        if name in (rows := measured.get(runtime, {}))
    ]
    return found if "torch" in measured else [*_fused(name), *found]


def _fused(name: str) -> list[tuple[str, list[float], str]]:
    """Return the times of a gate with its kernel, from the benchmark of the kernels."""
    rows = results(FUSED)["tables"].get(f"resnet50 with {name}, infer 1", {})
    own = next((row for row in rows if row.startswith("ours")), None)
    if own is None:
        return []
    ratio = [rows[own][key] for key in ("ratio", "ratio_low", "ratio_high")]
    optimised = rows[f"{own}, optimised"]["ratio"] / rows["plain, optimised"]["ratio"]
    return [(_TITLES["torch"], ratio, FUSED), (_TITLES["torch, optimised"], [optimised], FUSED)]


def times_table(name: str) -> str:
    """Return the times of a gate as a table, with their sources."""
    times = times_of_gate(name)
    if not times:
        return f"`{name}` was not timed; `python benchmarks/exported_gates.py --gates {name}` does it."
    rows = [[Cell(where), Cell(_text(ratio)), Cell(_link(file))] for where, ratio, file in times]
    sources = "\n".join(f"- {_link(file)}: {_source(file)}" for file in dict.fromkeys(file for *_, file in times))
    return f"{Table(['runtime', 'time', 'source'], rows).markdown()}\n\n{sources}"


def _text(ratio: list[float]) -> str:
    """Format a ratio and its quartiles.

    >>> _text([1.139, 1.11, 1.15]), _text([1.1])
    ('1.14 [1.11, 1.15]', '1.10')
    """
    median, *quartiles = (f"{value:.2f}" for value in ratio)
    return f"{median} [{', '.join(quartiles)}]" if quartiles else median


def _link(file: str) -> str:
    return f"[{file}](../../benchmarks/results/{file})"


def _source(file: str) -> str:
    """Say where and how often the results in a file were measured."""
    found = results(file)
    where = found["environment"]
    versions = [f"{name} {where[name]}" for name in ("torch", "onnxruntime", "openvino") if name in where]
    clock = ", time of the processor" if found.get("clock") == "processor" else ""
    return f"{where['hardware']}; {', '.join(versions)}; {found['rounds']} rounds{clock}"
