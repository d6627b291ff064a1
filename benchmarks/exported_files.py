"""What the benchmarks of ONNX files share: their flags, times in turn, and the results."""

import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise.core.files import write_json
from gatewise.exporting.runtimes import RUNTIMES, versions
from gatewise.graph.measure import Latency, environment, interleaved_latency

INSTALLED = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def parser(description: str | None, *, threads: int) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark of files."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=15)
    found.add_argument("--threads", type=int, default=threads)
    found.add_argument("--out", type=Path)
    return found


def timed(
    sources: Mapping[str, Any], images: Tensor, runtime: str, arguments: argparse.Namespace
) -> dict[str, Latency]:
    """Time files, or networks for torch, in turn; with one thread in seconds of the processor."""
    ready = RUNTIMES[runtime].ready
    calls = {n: functools.partial(ready(source, arguments.threads), images) for n, source in sources.items()}
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    with torch.inference_mode():
        return interleaved_latency(calls, rounds=arguments.rounds, seconds_per_turn=0.1, clock=clock)


def spread(latency: Latency) -> list[float]:
    """Return the median and the quartiles."""
    return [latency.median_s, latency.low_s, latency.high_s]


def publish(found: dict[str, Any], arguments: argparse.Namespace, clock: str | None = None) -> None:
    """Print what was measured, after where and how, and write it to the file that was asked for."""
    results = {
        "environment": {**environment(), **versions(INSTALLED)},
        "rounds": arguments.rounds,
        "clock": clock or ("processor" if arguments.threads == 1 else "wall"),
        **found,
    }
    print(json.dumps(results, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, results)
