"""Measure the memory that `gatewise explain` needs for all training images of a run.

    python benchmarks/recording_memory.py RUN [RUN ...] --data FOLDER [--out FILE]

Each run is opened in a new process. The process reads its peak resident memory (Linux) three times: with the network
loaded, with the images loaded too, and after all numbers of `gatewise explain` have been computed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from gatewise.analysis.findings import find
from gatewise.core.files import write_json
from gatewise.graph.measure import environment
from gatewise.models.serialization import load_model
from gatewise.training.runs import open_runs


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(run: str, data: str) -> dict[str, float | int | str]:
    load_model(run)
    network = peak_mb()
    (opened,) = open_runs([run], data, "train")
    assert opened.images is not None
    loaded = peak_mb()
    started = time.perf_counter()
    find(opened)
    found = {"network_mb": network, "with_images_mb": loaded, "peak_mb": peak_mb()}
    return {
        "gates": str(opened.spec),
        "images": len(opened.images),
        **{name: round(value) for name, value in found.items()},
        "above_network_mb": round(found["peak_mb"] - network),
        "seconds": round(time.perf_counter() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recording_memory-cpu.json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.runs[0], options.data)))
        return
    rows = []
    for run in options.runs:
        command = [sys.executable, __file__, run, "--data", options.data, "--here"]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    write_json(options.out, {"environment": environment(torch.device("cpu")), "runs": rows})
    print(options.out)


if __name__ == "__main__":
    main()
