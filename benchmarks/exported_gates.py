"""Measure what gates cost in exported networks: as defined, and in their export form.

    python benchmarks/exported_gates.py [--gates gct,gc,se,eca] [--rounds 15] [--threads 1] [--out FILE]

A ResNet-50 at 224x224 for one image is exported to ONNX with each gate in its usual places, once with every gate as it
is defined and once as `gatewise export` writes it, and timed in turn with the network without gates in ONNX Runtime,
and in OpenVINO if it is installed. Two layers in the place of gct say where the limit is: one that multiplies each
channel by a number that comes from the image, "multiply", and one that only copies its map, "copy". With one thread the
time is that of the processor, which other programs hardly disturb.
"""

import argparse
import functools
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.exporting.formats import onnx as onnx_format
from gatewise.exporting.formats.registry import format_named
from gatewise.exporting.program import exported_program
from gatewise.exporting.runtimes import RUNTIMES
from gatewise.graph.measure import environment, interleaved_latency
from gatewise.insertion.insert import gates_in


def multiply(x: Tensor) -> Tensor:
    """Scale each channel by a number that no runtime can fold into weights."""
    return x * (1 + 0 * x[:, :, :1, :1])


def copy(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 1)


def network(gate: str) -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet50().eval()
    floors: dict[str, Callable[[Tensor], Tensor]] = {"multiply": multiply, "copy": copy}
    if gate != "none":
        gw.insert_gates(net, "gct" if gate in floors else gate)
    for each in gates_in(net).values():
        for parameter in each.parameters():
            nn.init.normal_(parameter, std=0.1)
        if gate in floors:
            each.__dict__["forward"] = floors[gate]
            each.__dict__["export_form"] = functools.partial(lambda form: form, floors[gate])
    return net


def write(net: nn.Module, file: Path, *, as_defined: bool) -> None:
    """Export a network, with `as_defined` without the rewrites of gatewise."""
    pool_globally = onnx_format.pool_globally
    if as_defined:
        onnx_format.pool_globally = lambda graph: None  # noqa: ARG005
    try:
        program = exported_program(net, torch.zeros(2, 3, 224, 224), free_size=False, export_forms=not as_defined)
        file.write_bytes(format_named("onnx").write(program, {}, "logits"))
    finally:
        onnx_format.pool_globally = pool_globally


def differences(files: dict[str, Path]) -> dict[str, float]:
    """Return for each gate how far the outputs of its two files are apart, relative to the largest output."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    outputs = {
        name: onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for name, file in files.items()
    }
    return {
        name: float(np.abs(output - outputs[f"{name}, as defined"]).max() / np.abs(output).max())
        for name, output in outputs.items()
        if f"{name}, as defined" in outputs
    }


def timed(files: dict[str, Path], runtime: str, threads: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of each file, and its time relative to the network without gates."""
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    calls = {n: functools.partial(RUNTIMES[runtime].ready(file, threads), image) for n, file in files.items()}
    clock = time.process_time if threads == 1 else time.perf_counter
    times = interleaved_latency(calls, rounds=rounds, seconds_per_turn=0.1, clock=clock)
    found: dict[str, Any] = {}
    for name, latency in times.items():
        over = latency.times(times["none"])
        found[name] = {"ms": 1e3 * latency.median_s, "of_none": [over.median_s, over.low_s, over.high_s]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", default="gct,gc,se,eca")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for gate in ("none", "copy", "multiply", *arguments.gates.split(",")):
            net = network(gate)
            for as_defined in (False, True)[: 1 if gate in ("none", "copy", "multiply") else 2]:
                name = f"{gate}, as defined" if as_defined else gate
                files[name] = Path(folder, f"{len(files)}.onnx")
                write(net, files[name], as_defined=as_defined)
                print(f"{name}: written", flush=True)
        found = {"onnxruntime": timed(files, "onnxruntime", arguments.threads, arguments.rounds)}
        if importlib.util.find_spec("openvino") is not None:
            found["openvino"] = timed(files, "openvino", arguments.threads, arguments.rounds)
        results = {
            "environment": environment(),
            "rounds": arguments.rounds,
            "clock": "processor" if arguments.threads == 1 else "wall",
            "differences": differences(files),
            "runtimes": found,
        }
    print(json.dumps(results, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
